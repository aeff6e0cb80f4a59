"""`freezetrain extend`: new tokens for a base."""
