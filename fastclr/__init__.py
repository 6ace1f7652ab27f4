"""SimCLR pre-training that runs at the speed of its data loading."""

__version__ = "0.1.0"
