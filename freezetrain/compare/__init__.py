"""`freezetrain compare`: variants of a training run at equal gain."""
