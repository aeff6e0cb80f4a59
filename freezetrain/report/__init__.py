"""What the pages share, and the page of runs."""
