"""Where Triton can't start, the plain forms run and say why."""

import sys

import pytest
import torch

from pipelines import BetonReader, ViewSpec
from pipelines.engines import ENGINES
from pipelines.engines.resident.host import ResidentEngine
from pipelines.ops.augment import reference
from pipelines.planner import BatchPlanner
from pipelines.prefetch import _augmentation
from pipelines.system import triton as triton_driver
from pipelines.system.triton import _start, why_no_triton

NO_COMPILER = "Triton cannot start (no gcc); it needs a C compiler: apt-get install gcc"
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _start.cache_clear()
    yield
    monkeypatch.undo()
    _start.cache_clear()


def test_triton_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    assert why_no_triton() == "Triton is not installed: pip install triton"


def test_triton_cannot_compile_its_driver(monkeypatch):
    triton = pytest.importorskip("triton")

    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler.\n")

    monkeypatch.setattr(triton.runtime, "driver", Driver())
    assert why_no_triton() == (
        "Triton cannot start (Failed to find C compiler.); it needs a C compiler and Python's headers: "
        "apt-get install gcc python3-dev"
    )


def test_kernels_in_the_interpreter_need_no_driver(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_no_triton() is None


def test_torch_compile_needs_triton_itself():
    def identity(x: torch.Tensor) -> torch.Tensor:
        return x if why_no_triton() is None else 2 * x

    compiled = torch.compile(identity, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.ones(2))


def test_augmentation_is_the_plain_one(monkeypatch, tiny_beton):
    monkeypatch.setattr(triton_driver, "_start", lambda: NO_COMPILER)
    spec = ViewSpec.simclr(24)
    with BetonReader(tiny_beton) as reader:
        sampler = BatchPlanner(reader.heights, reader.widths, (spec,), 4)
        engine = ResidentEngine(reader, sampler, num_threads=1, augment=False)
        crops = next(engine.run(sampler.plans(0), sampler))
        engine.close()
    with pytest.warns(RuntimeWarning, match=r"plain torch, slower: .*apt-get install gcc"):
        augment = _augmentation(GPU, 1)
    pixels, params = torch.from_numpy(crops.pixels[0]), crops.plan.params
    expected = reference.augment(pixels, params, spec)
    assert torch.equal(augment(pixels, params, sampler.groups[0], torch.float32), expected)


def test_the_resident_set_stays_in_the_memory_of_the_host(monkeypatch, tiny_beton):
    monkeypatch.setattr(triton_driver, "_start", lambda: NO_COMPILER)
    with BetonReader(tiny_beton) as reader:
        sampler = BatchPlanner(reader.heights, reader.widths, (ViewSpec.simclr(24),), 4)
        engine = ENGINES["resident"](reader, sampler, num_threads=1, device=GPU)
        assert isinstance(engine, ResidentEngine)
        assert not engine.augment  # the stage behind it does, on the GPU
        engine.close()
