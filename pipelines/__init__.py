"""The data plane: from bytes on disk to augmented views.  Knows nothing of training."""
