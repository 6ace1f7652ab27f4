"""Mutated checkpoints: refused in one line that names the file, or loaded with what was saved.

2,000 cases: `PYTHONPATH=tests python tests/fuzz/test_fuzz_checkpoint.py`.
"""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from fuzz.harness import Original, fuzz, main

from fastclr.model import resnet
from fastclr.train.checkpoint import FORMAT, load_checkpoint


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = resnet(10, 0.125, stem="cifar")
    return {
        "format": FORMAT,
        "step": 7,
        "identity": {"train.epochs": 5, "views.scale": (0.08, 1.0), "the data's fingerprint": "0a1b"},
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(64)}}, "param_groups": [{"lr": 0.5}]},
        "loader": {"epoch": 3, "consumed": 40},
        "random": {"cpu": torch.get_rng_state(), "cuda": None},
        "time": 1000.0,
    }


def original(saved: dict[str, Any]) -> Original:
    """The bytes of a checkpoint; most mutations hit its zip headers, its pickle or its end."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    data = buffer.getvalue()
    fields = [(0, 64), (64, 512), (len(data) - 120, 12), (len(data) - 40, 40)]
    for signature, length in ((b"PK\x03\x04", 30), (b"PK\x01\x02", 46)):
        at = data.find(signature)
        while at >= 0 and len(fields) < 200:
            fields.append((at, length))
            at = data.find(signature, at + 1)
    return Original(data, fields)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    saved = state()

    def attempt(file: Path) -> None:
        assert same(load_checkpoint(file), saved), "loaded with other content"

    return fuzz([original(saved)], attempt, folder / "last.pt", count, seed)


def test_mutated_checkpoints(tmp_path):
    outcomes = run(tmp_path, 200, 0)
    assert outcomes["refused"] > 150


if __name__ == "__main__":
    main("last.pt", run)
