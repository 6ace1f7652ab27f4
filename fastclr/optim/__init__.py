"""Optimization: LARS, Muon, and the learning rate schedule."""

from fastclr.optim.lars import LARS
from fastclr.optim.muon import Muon
from fastclr.optim.schedule import num_steps, num_warmup_steps, scaled_lr, warmup_cosine

__all__ = ["LARS", "Muon", "num_steps", "num_warmup_steps", "scaled_lr", "warmup_cosine"]
