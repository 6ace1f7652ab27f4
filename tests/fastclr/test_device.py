import pytest
import torch

from fastclr.device import pick_device


def test_device_names():
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_device("auto") == (torch.device("cuda", 0) if torch.cuda.is_available() else cpu)
    for name in ("tpu", "meta", "mps"):
        with pytest.raises(ValueError, match=f"--device is '{name}'; it must be auto, cpu, cuda"):
            pick_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"torch sees no GPU here; use --device cpu"):
            pick_device("cuda")
        with pytest.raises(ValueError, match=r"--train.device is 'cuda:1', but .*; use --train.device cpu"):
            pick_device("cuda:1", option="--train.device")
    else:
        with pytest.raises(ValueError, match="there is no GPU 99"):
            pick_device("cuda:99")
