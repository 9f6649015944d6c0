"""The toy world: drawing it, its mini splits, and training the two toy models on it."""
