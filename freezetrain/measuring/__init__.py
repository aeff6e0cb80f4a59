"""`freezetrain forgetting`: what models lost against their base, wherever they were trained."""
