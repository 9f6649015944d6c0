"""Draw the toy world and its mini splits, and train the two toy models on the toy world."""
