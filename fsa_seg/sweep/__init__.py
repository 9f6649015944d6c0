"""Plans of many cells, the workers that run them, and what they cost."""
