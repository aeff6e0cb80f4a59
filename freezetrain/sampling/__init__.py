"""`freezetrain rehearse`: sequences that the base draws, with what it says at each place."""
