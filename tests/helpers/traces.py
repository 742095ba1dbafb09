"""How often a function is compiled, by counting its traces."""

import jax


def jitted(function):
    """The function under `jax.jit`, and a list of the arguments' shapes at each of its traces.

    What jaxlib counts of a cache (`_cache_size`) is wrong as soon as any test has cleared one.
    """
    traces = []

    def traced(*arguments):
        traces.append([getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(arguments)])
        return function(*arguments)

    return jax.jit(traced), traces
