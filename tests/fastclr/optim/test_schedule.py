import math
from itertools import pairwise

import pytest

from fastclr.optim import num_steps, num_warmup_steps, scaled_lr, warmup_cosine


def test_linear_and_sqrt_scaling_meet_at_4096() -> None:
    assert scaled_lr(0.3, 4096, "linear") == pytest.approx(0.3 * 4096 / 256) == pytest.approx(4.8)
    assert scaled_lr(0.075, 4096, "sqrt") == pytest.approx(0.075 * math.sqrt(4096)) == pytest.approx(4.8)
    assert scaled_lr(1.0, 512) == 2.0  # the authors' CIFAR setting
    assert scaled_lr(0.075, 256, "sqrt") == pytest.approx(1.2)


def test_unknown_scaling() -> None:
    with pytest.raises(ValueError, match="'cubic' is unknown; there are linear and sqrt"):
        scaled_lr(0.3, 256, "cubic")


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "steps"),
    [
        (50_000, 1000, 512, 97_657),  # 97,656.25
        (1_281_167, 100, 4096, 31_279),
        (512, 2, 512, 3),  # one more even where it comes out whole
        (100, 0.5, 512, 1),
    ],
)
def test_num_steps(images: int, epochs: float, batch: int, steps: int) -> None:
    assert num_steps(images, epochs, batch) == steps
    assert num_warmup_steps(images, epochs, batch) == steps - 1


def test_warmup_is_a_straight_line_from_zero_to_the_peak() -> None:
    assert [warmup_cosine(step, 100, 10, 4.8) for step in range(11)] == pytest.approx(
        [0.48 * step for step in range(11)]
    )


def test_cosine_closed_forms() -> None:
    peak, total, warmup = 4.8, 110, 10
    assert warmup_cosine(10, total, warmup, peak) == peak
    assert warmup_cosine(60, total, warmup, peak) == pytest.approx(peak / 2)
    assert warmup_cosine(10 + 100 // 4, total, warmup, peak) == pytest.approx(peak * (2 + math.sqrt(2)) / 4)
    assert warmup_cosine(110, total, warmup, peak) == 0
    assert warmup_cosine(1000, total, warmup, peak) == 0
    # falls all the way, and symmetrically about its middle
    values = [warmup_cosine(step, total, warmup) for step in range(10, 111)]
    assert all(a > b for a, b in pairwise(values))
    assert [a + b for a, b in zip(values, values[::-1], strict=True)] == pytest.approx([1.0] * 101)


def test_runs_that_are_all_warmup_or_none() -> None:
    assert [warmup_cosine(step, 4, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 0, 0]
    assert warmup_cosine(0, 4, 0, 2.0) == 2.0
    with pytest.raises(ValueError, match="a warm-up of 5 steps does not fit a run of 4"):
        warmup_cosine(0, 4, 5)
