"""Where the course of a run is written: loggers of Lightning's, opened on rank 0 alone."""
