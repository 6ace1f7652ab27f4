"""Training: one loop, its run folder, checkpoints and ranks."""
