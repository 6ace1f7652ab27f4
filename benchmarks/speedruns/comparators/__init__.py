"""Comparators of the ladder: methods without gradients, by the same kNN and within the same budget."""
