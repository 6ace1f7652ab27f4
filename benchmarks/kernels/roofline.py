"""The roofline: the shortest time of each kernel on one H100, from its operations and its bytes.

A floor is the largest of three times: operations over the rate of the matrix units, bytes (each input read once,
each output written once) over the memory's bandwidth, and exponentials over the rate of their units.  No version
runs much faster; time over floor is the maximum speed-up that is still possible.  On another GPU the floor is still an
H100's, and the row says which GPU was measured.

Legend: M rows of both views, D dimension of z, S side of a view in pixels.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Rates of a GPU that are reached in practice, not those of the data sheet."""

    name: str
    half_flops: float
    """Dense half-precision operations per second."""
    bytes_per_s: float
    """Bandwidth of the device memory, read plus written."""
    num_multiprocessors: int
    clock_hz: float
    exp_per_clock: int
    """Exponentials per clock and multiprocessor."""

    @property
    def exps_per_s(self) -> float:
        return self.num_multiprocessors * self.clock_hz * self.exp_per_clock


H100 = Gpu("H100", 800e12, 3.0e12, 132, 1.7e9, 16)


def nt_xent_floor_s(num_rows: int, width: int, bytes_per_value: int = 4, gpu: Gpu = H100) -> float:
    """Return the floor of NT-Xent, forward and backward.

    2M²D operations for the logits, 4M²D for logits and gradient, and an exponential for each.

    >>> round(nt_xent_floor_s(8192, 128) * 1e6)
    64
    """
    flops = 6 * num_rows**2 * width
    exps = 2 * num_rows**2
    moved = 2 * num_rows * width * bytes_per_value
    return max(flops / gpu.half_flops, moved / gpu.bytes_per_s, exps / gpu.exps_per_s)


def lars_floor_s(num_params: int, gpu: Gpu = H100) -> float:
    """Return the floor of a LARS step, which moves 28 bytes a parameter.

    Weight and gradient for the norms; those, momentum, and two writes for the update.

    >>> round(lars_floor_s(25_557_032) * 1e6)
    239
    """
    return 28 * num_params / gpu.bytes_per_s


def augment_floor_s(num_views: int, size: int, bytes_per_value: int = 2, gpu: Gpu = H100) -> float:
    """Return the floor of the augmentation: 3S² bytes read once, 3S² values written once.

    The blur's own traffic is not counted.

    >>> round(augment_floor_s(512, 224) * 1e6)
    77
    """
    return num_views * 3 * size**2 * (1 + bytes_per_value) / gpu.bytes_per_s


def flops_floor_s(flops: float, gpu: Gpu = H100) -> float:
    """Return the time of matrix products and convolutions at the full rate of the matrix units."""
    return flops / gpu.half_flops
