"""Which device a process computes on, and whether that has bfloat16."""

import torch


def pick_device(
    name: str, local_rank: int = 0, local_world_size: int = 1, option: str = "--device"
) -> torch.device:
    """Return the device that a setting names; each rank of a machine gets a GPU of its own.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.
        local_rank: number of this process among those of the run on this machine.
        local_world_size: how many those are.
        option: what the user calls the setting, for messages.

    Raises:
        ValueError: a GPU that this machine does not have; one GPU for several ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{option} is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"{option} is {name!r}, but torch sees no GPU here; use {option} cpu")
    if device.index is not None and local_world_size > 1:
        raise ValueError(
            f"{option} is {name!r}, one GPU, and torchrun started {local_world_size} ranks here; "
            f"use {option} cuda: each takes its own"
        )
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"there is no GPU {index}: torch sees {torch.cuda.device_count()} of them here")
    return torch.device("cuda", index)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; without that it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # older versions of torch have no get_capabilities
    if not hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
