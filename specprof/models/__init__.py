"""Models: which ones there are, how their weights get into memory, and how they compute."""
