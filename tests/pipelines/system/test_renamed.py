"""Old names of fields and arguments work, with a warning that names the new one."""

from dataclasses import dataclass

import pytest

from pipelines.system.renamed import accept_old_arguments, accept_old_fields


@dataclass(frozen=True)
class Box:
    height: int
    depth: int = 1


accept_old_fields(Box, {"tallness": "height"})


def test_fields_by_their_old_names():
    with pytest.warns(DeprecationWarning, match=r"Box\.tallness is now height"):
        box = Box(tallness=3, depth=2)
    assert (box.height, box.depth) == (3, 2)
    with pytest.warns(DeprecationWarning, match=r"Box\.tallness is now height"):
        assert box.tallness == 3
    with pytest.raises(TypeError, match="width"):
        Box(width=3)


def test_arguments_by_their_old_names(recwarn):
    @accept_old_arguments("volume", {"w": "width"})
    def volume(width: int, height: int) -> int:
        return width * height

    assert volume(2, height=5) == 10 and not recwarn.list
    with pytest.warns(DeprecationWarning, match=r"volume\.w is now width"):
        assert volume(w=2, height=5) == 10
