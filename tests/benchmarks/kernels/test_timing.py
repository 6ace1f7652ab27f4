"""In-process timing: turns, means against medians, memory, and what happens to variants that can't run."""

import sys
from collections.abc import Callable

import pytest
import torch
from support.triton_support import on_gpu

from benchmarks.kernels.timing import NotMeasured, Variant, captured, measure, require

CPU = torch.device("cpu")


class Clock:
    """A clock that moves when a function says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[[], None]:
        def function() -> None:
            self.now += seconds

        return function


def test_times_are_those_of_the_function():
    clock = Clock()
    variants = [
        Variant("short", lambda: clock.takes(0.002)),
        Variant("long", lambda: clock.takes(0.01)),
    ]
    short, long = measure(variants, CPU, rounds=2, turn_s=0.01, clock=clock)
    assert short.turns_s == pytest.approx([0.002] * 2) and long.turns_s == pytest.approx([0.01] * 2)
    assert short.calls == 2 * 5 and long.calls == 2 * 3  # as many as fit into a turn, at least 3
    assert short.device == "cpu" and short.method == "perf_counter"
    assert (short.low_s, short.median_s, short.high_s) == pytest.approx((0.002, 0.002, 0.002))


def test_variants_take_turns_and_each_starts_a_round():
    called = []
    variants = [Variant(name, lambda n=name: lambda: called.append(n)) for name in "abc"]
    measure(variants, CPU, rounds=3, calls=1)
    turns = called[-18:]  # a turn is one call to warm up and one that counts
    assert "".join(turns[::2]) == "".join(turns[1::2]) == "abc" + "bca" + "cab"


def test_a_stall_now_and_then_counts_in_the_mean_only():
    clock, count = Clock(), 0

    def stalls() -> None:
        nonlocal count
        count += 1
        clock.now += 0.021 if count % 5 == 0 else 0.001

    (apart,) = measure([Variant("stalls", lambda: stalls)], CPU, rounds=1, calls=10, clock=clock)
    (mean,) = measure(
        [Variant("stalls", lambda: stalls)], CPU, rounds=1, calls=10, mean_of_turn=True, clock=clock
    )
    assert apart.median_s == pytest.approx(0.001)
    assert mean.median_s == pytest.approx(0.005)  # two of ten calls stall for 0.02 s


def test_what_cannot_run_says_why_and_the_others_go_on():
    def missing():
        raise NotMeasured("needs a thing: pip install thing")

    def breaks_later():
        calls = iter(range(4))
        return lambda: next(calls)  # the fifth call raises StopIteration

    variants = [
        Variant("missing", missing),
        Variant("captured", lambda: lambda: None, graph=True),
        Variant("breaks later", breaks_later),
        Variant("runs", lambda: lambda: None),
    ]
    absent, graph, broken, runs = measure(variants, CPU, rounds=2, calls=1)
    assert absent.error == "needs a thing: pip install thing" and absent.median_s is None
    assert graph.error == "needs a CUDA device"
    assert broken.error.startswith("StopIteration") and broken.median_s is broken.low_s is None
    assert runs.error == "" and runs.median_s is not None and runs.rounds == 2


def test_figures_of_the_result_are_kept():
    variant = Variant("one", lambda: lambda: 41, check=lambda result: {"gradient_error": result + 1})
    assert measure([variant], CPU, rounds=1, calls=1)[0].gradient_error == 42


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is Linux's")
def test_memory_of_a_call_is_its_high_water_mark():
    def takes_64_mib_often() -> float:
        return sum(torch.ones(16 << 20).sum().item() for _ in range(6))

    (timing,) = measure([Variant("ones", lambda: takes_64_mib_often)], CPU, rounds=1, calls=1)
    if timing.peak_bytes is None:
        pytest.skip("this kernel doesn't tell")
    # one at a time, or two where the allocator gives the first back late; never all six
    assert 60 << 20 <= timing.peak_bytes <= 160 << 20


def test_missing_packages_are_named_with_what_installs_them():
    require("torch")
    with pytest.raises(NotMeasured, match=r"nosuchpeer is not installed: pip install 'fastclr\[bench\]'"):
        require("nosuchpeer")


@on_gpu
def test_gpu_times_are_of_the_gpu_and_not_of_the_launch():
    """A copy of 1 GiB moves 2 GiB: at most 10 TB/s on any GPU, so 0.2 ms at least; its launch takes 0.01 ms."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    device = torch.device("cuda")
    variants = [
        Variant("copy", lambda: lambda: target.copy_(source)),
        Variant("copy, graph", lambda: lambda: target.copy_(source), graph=True),
        Variant("new", lambda: lambda: source + 1),
    ]
    plain, graph, new = measure(variants, device, rounds=2, turn_s=0.02)
    for timing in (plain, graph):
        assert timing.median_s is not None and timing.median_s > 2e-4
        assert timing.device == torch.cuda.get_device_name()
    assert graph.method == "CUDA graph"
    assert plain.peak_bytes == 0 and new.peak_bytes == 1 << 30


@on_gpu
def test_captured_replays_on_what_the_inputs_hold_by_then():
    x = torch.ones(1000, device="cuda")
    double = captured(lambda: 2 * x)
    x.fill_(3)
    assert double().tolist() == [6.0] * 1000
