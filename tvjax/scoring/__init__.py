"""How well nets do: metrics of arrays, scores of a split or a file, and runs compared."""
