"""A training run that takes a second: a file of 16-pixel images and a recipe for a very small ResNet."""

from pathlib import Path

import numpy as np

from pipelines.beton import BetonWriter

TINY_RECIPE = """
[views]
size = 16
[model]
depth = 10
width = 0.125
head_layers = 2
proj_dim = 16
[loss]
temperature = 0.2
[optim]
name = "lars"
base_lr = 1.0
warmup_epochs = 1
[train]
epochs = 5
batch_size = 20
threads = 1
log_every = 1
device = "cpu"
"""
"""On 79 images: 3 batches and 19 left-over images per epoch, ⌊79·5/20⌋ + 1 = 20 steps."""


def write_tiny_file(path: Path, num_images: int = 79, seed: int = 0) -> Path:
    """Raw 16 × 16 images of five classes: a coarse pattern of the class and noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(40, 215, (5, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    with BetonWriter(path, num_images) as writer:
        for index in range(num_images):
            pixels = patterns[index % 5] + rng.normal(0, 20, (16, 16, 3))
            writer.add_raw(pixels.clip(0, 255).astype(np.uint8), label=index % 5)
    return path


def write_tiny_recipe(path: Path) -> Path:
    path.write_text(TINY_RECIPE)
    return path
