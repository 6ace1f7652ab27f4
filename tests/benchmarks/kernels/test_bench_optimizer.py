"""`fastclr bench optimizer` on the CPU."""

import importlib.util
import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks.kernels.inputs import random_parameters
from benchmarks.kernels.optimizer import COLUMNS, Options, resnet_shapes, run
from benchmarks.kernels.report import print_group


def test_resnet50_has_the_parameters_that_the_floor_is_counted_for():
    shapes = resnet_shapes("resnet50")
    assert sum(shape.numel() for shape in shapes) == 25_557_032 and len(shapes) == 161


def test_report_on_a_cpu():
    report = run(Options(model="resnet18", rounds=1, turn_s=0.001, device="cpu"))
    (group,) = report.groups
    rows = {row.name: row for row in group.rows}
    assert group.num_params == 11_689_512
    assert {row.device for row in rows.values()} == {"cpu"}
    assert rows["fastclr reference"].median_s > 0
    assert rows["fastclr fused"].error == rows["fastclr fused, graph"].error == "needs a CUDA device"
    if importlib.util.find_spec("amp_C") is None:
        assert "docker run" in rows["fastclr apex"].error
    for package, name in (("lightly", "lightly LARS"), ("timm", "timm Lars")):
        if importlib.util.find_spec(package) is None:
            assert rows[name].error == f"{package} is not installed: pip install 'fastclr[bench]'"
        else:
            assert rows[name].median_s > 0
    assert report.targets[0].state == "not measured"

    missing = replace(rows["lightly LARS"], error="lightly is not installed: pip install 'fastclr[bench]'")
    group = replace(group, rows=[missing])
    printed = io.StringIO()
    print_group(Console(file=printed, width=200), group, COLUMNS)
    assert "pip install 'fastclr[bench]'" in printed.getvalue()  # brackets are markup to rich


def test_parameters_have_gradients_and_are_the_same_each_time():
    shapes = [torch.Size([3, 2]), torch.Size([5])]
    first, second = (random_parameters(shapes, torch.device("cpu")) for _ in range(2))
    assert [p.shape for p in first] == shapes
    for a, b in zip(first, second, strict=True):
        assert a.grad is not None and b.grad is not None
        assert a.equal(b) and a.grad.equal(b.grad) and a.grad.norm() > 0
        assert a.data_ptr() != b.data_ptr()


def test_unknown_models_are_refused():
    with pytest.raises(ValueError, match=r"--model is 'vgg11'; it must be one of resnet101"):
        run(Options(model="vgg11", device="cpu"))
