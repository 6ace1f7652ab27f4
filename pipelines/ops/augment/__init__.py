"""Augmentation: from uint8 crops and their drawn numbers to normalised float views.

Three executors agree: `reference` (plain torch, any device), `cpu` (fused numba), `gpu` (fused Triton).  Each has a
function `augment` that returns [V, B, 3, H, W], channels last in memory.
"""
