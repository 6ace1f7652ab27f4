"""Engines that decode only windows give the crops that they give from whole images, bit for bit."""

import numpy as np
import pytest

from pipelines import BetonReader, TwoViewLoader, ViewSpec
from pipelines.beton import BetonWriter
from pipelines.convert import Encoding, convert, open_source
from pipelines.errors import CorruptSample
from pipelines.jpeg import add_restarts
from pipelines.views import PRESETS

MULTI_CROP = (ViewSpec(64, scale=(0.2, 1.0)), ViewSpec(24, scale=(0.02, 0.1), num_views=3))
SPECS = {
    "two views": ViewSpec.simclr(64),
    "multi-crop": MULTI_CROP,
    "centre": ViewSpec.center(64),
    "small crops": ViewSpec(32, scale=(0.001, 0.01)),
}


@pytest.fixture(scope="module")
def both(tiny_photos, tmp_path_factory):
    """Two files of the same images, one without restart markers and one with markers in some of them."""
    folder = tmp_path_factory.mktemp("windows")
    convert(open_source([str(tiny_photos)]), folder / "whole.beton", Encoding(jpeg="keep"))
    with (
        BetonReader(folder / "whole.beton") as reader,
        BetonWriter(folder / "markers.beton", len(reader), 500) as out,
    ):
        for index in range(len(reader)):
            jpeg = reader.image_bytes(index).tobytes()
            out.add_jpeg(jpeg if index % 7 == 3 else add_restarts(jpeg, 1), int(reader.labels[index]))
        out.finish()
    return folder / "whole.beton", folder / "markers.beton"


def crops(file, engine, spec, epochs=3):
    with TwoViewLoader(file, 8, views=spec, engine=engine, augment=False, num_threads=2, seed=3) as loader:
        for _ in range(epochs):
            for batch in loader:
                views = batch.views if isinstance(batch.views, tuple) else (batch.views,)
                yield batch.indices.numpy(), [np.asarray(view) for view in views]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("engine", ["native", "ffcv", "dali"])
def test_the_same_crops(both, engine, spec, require_package):
    if engine != "native":
        require_package({"ffcv": "ffcv", "dali": "nvidia.dali"}[engine])
    for (indices, whole), (again, windows) in zip(
        *(crops(file, engine, SPECS[spec]) for file in both), strict=True
    ):
        assert np.array_equal(indices, again)
        for one, other in zip(whole, windows, strict=True):
            # DALI blends its outermost pixels with what lies beyond the box, which a window may lack
            assert (
                np.array_equal(one, other) if engine != "dali" else np.abs(one.astype(int) - other).max() <= 1
            )


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_crops_by_simplejpeg(both, spec, monkeypatch):
    def missing(*_):
        raise OSError("no libturbojpeg")

    expected = list(crops(both[0], "native", SPECS[spec]))
    monkeypatch.setattr("pipelines.engines.native.engine.bind_turbojpeg", missing)
    for (_, whole), (_, windows) in zip(expected, crops(both[1], "native", SPECS[spec]), strict=True):
        for one, other in zip(whole, windows, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.slow
def test_photos(photo_beton, imagenet_photos, tmp_path):
    """250 photos, 20 epochs of SimCLR's boxes, and DINO's for a while."""
    without = tmp_path / "without.beton"
    convert(
        open_source([str(imagenet_photos)]), without, Encoding(jpeg="recompress", restart="none"), workers=2
    )
    for views, epochs in ((ViewSpec.simclr(), 20), (PRESETS["dino"](), 2)):
        pair = (crops(file, "native", views, epochs) for file in (without, photo_beton))
        for (indices, whole), (again, windows) in zip(*pair, strict=True):
            assert np.array_equal(indices, again)
            assert all(np.array_equal(one, other) for one, other in zip(whole, windows, strict=True))


def corrupt(both, tmp_path, at_end: bool):
    """A copy of the file with markers, one image of which is overwritten, at its end or in its middle; its number."""
    path = tmp_path / "damaged.beton"
    data = bytearray(both[1].read_bytes())
    with BetonReader(both[1]) as reader:
        index = int(np.argmax(np.where(np.arange(len(reader)) % 7 == 3, 0, reader.sizes)))
        first, size = int(reader.offsets[index]), int(reader.sizes[index])
    at = first + (size - 40 if at_end else size // 2)
    data[at : at + 30] = bytes(range(1, 31))
    path.write_bytes(data)
    return path, index


def test_damage_inside_of_the_window_is_found(both, tmp_path):
    path, index = corrupt(both, tmp_path, at_end=False)
    with pytest.warns(CorruptSample, match=f"sample {index}"):
        found = np.concatenate(
            [indices for indices, _ in crops(path, "native", ViewSpec(32, scale=(0.9, 1.0)), 1)]
        )
    assert index not in found


def test_damage_inside_of_the_window_ends_ffcv(both, tmp_path, require_package):
    """Engine ffcv does not replace a corrupt sample; its error names it."""
    require_package("ffcv")
    path, index = corrupt(both, tmp_path, at_end=False)
    with pytest.raises(ValueError, match=f"sample {index}: .*engine ffcv replaces no sample"):
        list(crops(path, "ffcv", ViewSpec(32, scale=(0.9, 1.0)), 1))


def test_damage_outside_of_the_window_may_go_unseen(both, tmp_path):
    """The image's last rows are corrupt; a crop of its first rows does not decode them."""
    path, index = corrupt(both, tmp_path, at_end=True)
    from pipelines.jpeg.window import cut_window

    with BetonReader(path) as reader, BetonReader(both[1]) as intact:
        import simplejpeg

        pixels = [
            simplejpeg.decode_jpeg(cut_window(r.image_bytes(index), 0, 0, 8, 8)[0]) for r in (reader, intact)
        ]
        assert np.array_equal(*pixels)
        with pytest.raises(ValueError, match=f"sample {index}"):
            reader.decode(index)
