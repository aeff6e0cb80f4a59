"""`freezetrain train`: further pre-training of one model in one folder."""
