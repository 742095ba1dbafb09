"""A benchmark of hypergradient solvers on problems whose value function is known."""
