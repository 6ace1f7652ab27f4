"""Length of restart intervals: what the user may choose, and what fits into a row of an image."""

from typing import Literal

Restart = Literal["auto", "none"] | int
"""MCUs per restart interval: "auto" is the largest divisor of a row of MCUs that is up to `AUTO_WIDTH` pixels wide."""
AUTO_WIDTH = 64
"""Maximum width of an interval in pixels, for "auto"."""


class TranscodeError(ValueError):
    """The JPEG is corrupt, or of a kind to which restart markers are not added; the message says which."""


def restart_interval(restart: Restart, mcus_per_row: int, mcu_width: int) -> int:
    """Return the MCUs per interval: a divisor of the MCUs of a row, so that no interval continues in the next row.

    Args:
        restart: the user's choice; a number that is no divisor is lowered to the next divisor.
        mcus_per_row: MCUs of a row of the image.
        mcu_width: pixels.

    Returns:
        MCUs per interval, at least 1; 0 for "none".

    >>> restart_interval("auto", 32, 16), restart_interval("auto", 31, 16), restart_interval(4, 30, 16)
    (4, 1, 3)
    """
    if restart == "none":
        return 0
    limit = max(1, AUTO_WIDTH // mcu_width) if restart == "auto" else restart
    return next(n for n in range(min(limit, mcus_per_row), 0, -1) if mcus_per_row % n == 0)
