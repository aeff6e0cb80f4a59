"""`freezetrain train`: the recipe, the run in its folder, engines, checkpoints and the export."""
