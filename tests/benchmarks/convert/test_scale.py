"""The benchmark of scale, at a small one."""

import json
import tarfile

import pytest

from benchmarks.convert import scale
from benchmarks.core.report import load


def test_a_tar_of_repeated_images(tiny_photos, tmp_path):
    jpegs = scale.jpegs_of(tiny_photos)
    assert len(jpegs) == 40
    for of_tars in (False, True):
        with tarfile.open(scale.write_tar(tmp_path / "a.tar", tiny_photos, 2100, of_tars)) as tar:
            members = tar.getmembers()
            assert len(members) == (1000 if of_tars else 2100)
            assert len({member.name for member in members}) == len(members)
            if not of_tars:
                assert tar.extractfile(members[41]).read() == jpegs[1]
    with pytest.raises(ValueError, match="holds no JPEG"):
        scale.jpegs_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shards", "3"], ["--shards", "3", "--tables-only"]])
def test_the_command(tiny_photos, tmp_path, more):
    out = tmp_path / "scale.json"
    scale.main([f"{tiny_photos}", "--images", "1500", "--workers", "2", "--out", f"{out}", *more])
    report = load(out, scale.ScaleReport)
    assert (report.images, report.shards) == (1500, 3 if more else 1)
    assert (report.conversion is None) == ("--tables-only" in more)
    assert report.reading.order_s.keys() == {"random", "sequential", "blocks"}
    assert report.reading.open_s > 0
    if report.conversion:
        assert report.conversion.images_per_s == pytest.approx(1500 / report.conversion.seconds)
        assert 50e6 < report.conversion.peak_bytes < 2e9
    assert json.loads(out.read_text())["benchmark"] == "convert scale"
