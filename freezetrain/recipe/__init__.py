"""What the recipes of several rooms share. Nothing here imports torch."""
