"""Mutated encoder files: refused in one line that names the file, or loaded with what was saved.

Those of fastclr 0.1 have no checksum: what they hold may be another encoder then, but nothing worse.
2,000 cases: `PYTHONPATH=tests python tests/fuzz/test_fuzz_encoder.py`.
"""

import json
from collections import Counter
from pathlib import Path

import torch
from fuzz.harness import Original, fuzz, main
from safetensors.torch import save

from fastclr.model import resnet
from fastclr.train.encoder_file import ENCODER, export_encoder, load_encoder

META = {"depth": 10, "width": 0.125, "stem": "cifar", "sk_ratio": 0.0, "size": 16, "step": 7}
META |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


def original(data: bytes) -> Original:
    """The bytes of an encoder file; most mutations hit the length of its header, or the header."""
    header = int.from_bytes(data[:8], "little")
    metadata = data.index(b'"__metadata__"')
    return Original(
        data, [(0, 8), (8, 40), (8 + header - 60, 60), *((metadata + at, 20) for at in range(0, 400, 20))]
    )


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, stem="cifar")
    file = folder / ENCODER
    export_encoder(file, encoder, META)
    new, (_, expected) = file.read_bytes(), load_encoder(file)
    entries = {"format": "pt", **{key: json.dumps(value) for key, value in META.items()}}
    old = save({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, entries)

    def attempt(path: Path) -> None:
        found, meta = load_encoder(path)
        assert meta == expected, "loaded with other metadata"
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, found.state_dict()[name]), f"loaded with another {name}"

    outcomes = fuzz([original(new)], attempt, file, count - count // 2, seed)
    return outcomes + fuzz([original(old)], load_encoder, file, count // 2, seed + 1)


def test_mutated_encoders(tmp_path):
    outcomes = run(tmp_path, 200, 0)
    assert outcomes["refused"] > 120


if __name__ == "__main__":
    main(ENCODER, run)
