"""The learning rate: scaling with the batch, linear warm-up, cosine to zero.  Pure functions.

Chen et al. 2020 (arXiv 2002.05709), section 2.2 and appendix B.1; the counting of steps is the authors' code's.
"""

import math


def scaled_lr(base: float, batch_size: int, scaling: str = "linear") -> float:
    """Return the peak learning rate of a global batch: base·B/256 ("linear") or base·√B ("sqrt").

    Linear with base 0.3 (ImageNet) or 1.0 (CIFAR), square root with 0.075; the latter is better for small
    batches and short runs (appendix B.1), and both meet at B = 4096.

    Raises:
        ValueError: unknown scaling.

    >>> round(scaled_lr(0.3, 4096), 6), round(scaled_lr(0.075, 4096, "sqrt"), 6)
    (4.8, 4.8)
    """
    if scaling == "linear":
        return base * batch_size / 256
    if scaling == "sqrt":
        return base * math.sqrt(batch_size)
    raise ValueError(f"learning rate scaling {scaling!r} is unknown; there are linear and sqrt")


def num_steps(num_images: int, epochs: float, batch_size: int) -> int:
    """Return the steps of a run, ⌊N·epochs / B⌋ + 1, with the global batch size B.

    >>> num_steps(1_281_167, 100, 4096)
    31279
    """
    return int(num_images * epochs // batch_size) + 1


def num_warmup_steps(num_images: int, epochs: float, batch_size: int) -> int:
    """Return the steps of the warm-up, ⌊N·epochs / B⌋.

    >>> num_warmup_steps(1_281_167, 10, 4096)
    3127
    """
    return int(num_images * epochs // batch_size)


def warmup_cosine(step: int, total: int, warmup: int, peak: float = 1.0) -> float:
    """Return the learning rate of a step: from 0 linearly to `peak` in `warmup` steps, then half a cosine to 0.

        step < warmup:   peak · step / warmup
        later:           peak · ½(1 + cos(π · (step − warmup) / (total − warmup)))

    Args:
        step: number of the step, from 0; the first has rate 0 if there is a warm-up, and `total` has 0.
        total: steps of the run.
        warmup: steps of the warm-up, 0 to `total`.
        peak: rate at the end of the warm-up.

    Raises:
        ValueError: a warm-up longer than the run.

    >>> [round(warmup_cosine(step, 8, 4), 3) for step in range(9)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"a warm-up of {warmup} steps does not fit a run of {total}; shorten the warm-up")
    if step < warmup:
        return peak * step / warmup
    if step >= total:
        return 0.0
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
