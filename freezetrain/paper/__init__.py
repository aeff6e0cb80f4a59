"""`freezetrain paper`: the experiments of the paper, on any model."""
