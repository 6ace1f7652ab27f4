"""Augmentation: from uint8 crops and their drawn numbers to normalised float views.

Executors that agree: `reference` (plain torch, any device), `cpu` (fused numba), `gpu` (fused Triton).  Each has
an `augment` that gives [V, B, 3, H, W], channels last in memory; that of `gpu` takes pixels and numbers apart.
"""
