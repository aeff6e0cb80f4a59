"""`freezetrain quickstart`: the paper in minutes."""
