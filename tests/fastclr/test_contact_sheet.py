"""The contact sheet shows what a training run sees, with the numbers that were drawn for it."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastclr import preview
from fastclr.preview import CELL, MARGIN, SOURCE, VIEW_COLORS, contact_sheet, draw_samples, save_picture
from pipelines import BetonReader, TwoViewLoader, ViewSpec
from pipelines.beton import BetonWriter


def jpeg(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("sheet") / "set.beton"
    rng = np.random.default_rng(0)
    with BetonWriter(path, 9) as writer:
        for index in range(9):
            height, width = rng.integers(40, 120, 2)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
            writer.add_jpeg(
                jpeg(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))), label=index % 3
            )
    with BetonReader(path) as opened:
        yield opened


@pytest.mark.parametrize("size", [32, 50])  # without blur, with blur
def test_the_views_are_those_of_a_training_run(reader, size):
    spec = ViewSpec.simclr(size)
    samples = draw_samples(reader, spec, rows=4, seed=5, epoch=3)
    with TwoViewLoader(reader, 4, spec=spec, seed=5, num_threads=1) as loader:
        loader.set_epoch(3)
        batch = next(iter(loader))
    assert [sample.index for sample in samples] == batch.indices.tolist()
    for row, sample in enumerate(samples):
        levels = batch.views[:, row].permute(0, 2, 3, 1) * torch.tensor(spec.std) + torch.tensor(spec.mean)
        assert np.abs(sample.views - 255 * levels.numpy()).max() <= 0.51
        assert sample.label == f"class {batch.labels[row]}"
        assert (sample.source == reader.decode(sample.index)).all()


MULTI_CROP = (
    ViewSpec(size=50, num_views=1, blur_p=1.0),
    ViewSpec(size=50, num_views=1, blur_p=0.0, solarize_p=1.0, solarize_threshold=0.25),
    ViewSpec(size=24, num_views=3, scale=(0.05, 0.4)),
)


def test_views_of_several_specs_and_sizes(reader):
    samples = draw_samples(reader, MULTI_CROP, rows=4, seed=5, epoch=3)
    with TwoViewLoader(reader, 4, views=MULTI_CROP, seed=5, num_threads=1) as loader:
        loader.set_epoch(3)
        batch = next(iter(loader))
    expected = [view for group in batch.views for view in group]
    assert [len(view) for view in samples[0].views] == [50, 50, 24, 24, 24]
    mean, std = torch.tensor(MULTI_CROP[0].mean), torch.tensor(MULTI_CROP[0].std)
    for row, sample in enumerate(samples):
        for ours, theirs in zip(sample.views, expected, strict=True):
            levels = 255 * (theirs[row].permute(1, 2, 0) * std + mean)
            assert np.abs(ours - levels.numpy()).max() <= 0.51


@pytest.mark.parametrize(("num_local", "below"), [(0, 0), (3, preview.CELL_HEIGHT)])
def test_more_than_two_views_stand_below_their_crops(reader, num_local, below):
    samples = draw_samples(reader, MULTI_CROP[: 2 + (num_local > 0)], indices=[4, 1])
    sheet = np.asarray(contact_sheet(samples, "title"))
    num_views = 2 + num_local
    places = preview._places(num_views)
    header, height = MARGIN + 58, places[-1][1] + preview.CELL_HEIGHT
    assert sheet.shape[:2] == (header + 2 * height + MARGIN - 12, places[-1][0] + CELL + MARGIN)
    for row, sample in enumerate(samples):
        for number, picture in enumerate([*sample.crops, *sample.views]):
            left, down = places[1 + number]
            assert down == (below if number >= num_views else 0)
            top = header + row * height + down
            cell = sheet[top : top + CELL, left : left + CELL]
            assert (cell[8:-8, 8:-8] == np.asarray(preview._fitted(picture))[8:-8, 8:-8]).all()
            color = preview._view_color(number % num_views)
            assert (sheet[top - 3, left] == [int(color[k : k + 2], 16) for k in (1, 3, 5)]).all()
    assert len({left for left, _ in places}) == (1 + num_views if below else 1 + 2 * num_views)


def test_names_and_texts_of_several_specs(reader, monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(
        preview.ImageDraw.ImageDraw, "text", lambda pen, at, text, *rest: written.append(text)
    )
    contact_sheet(draw_samples(reader, MULTI_CROP, indices=[4]), "")
    assert written[1:7] == [
        "source",
        *(f"crop and view {n}, {s} px" for n, s in enumerate([50, 50, 24, 24, 24], 1)),
    ]
    assert sum("solarized" in text for text in written) == 1
    written.clear()
    contact_sheet(draw_samples(reader, (MULTI_CROP[0], ViewSpec(size=24, num_views=1)), indices=[4]), "")
    assert written[1:6] == ["source", "crop 1, 50 px", "crop 2, 24 px", "view 1, 50 px", "view 2, 24 px"]


def test_cells_and_boxes_lie_where_they_should(reader):
    spec = ViewSpec.simclr(CELL)  # views of the size of a cell are shown pixel for pixel
    samples = draw_samples(reader, spec, indices=[7, 2])
    sheet = np.asarray(contact_sheet(samples, "title"))
    found = 0
    for sample in samples:
        for picture in (*sample.crops, *sample.views):
            inner = picture[8:-8, 8:-8]  # the frames cover the outermost pixels
            corner = np.flatnonzero((sheet[:-200, :-200] == inner[0, 0]).all(-1).ravel())
            places = (divmod(int(at), sheet.shape[1] - 200) for at in corner)
            found += any(
                np.array_equal(sheet[y : y + len(inner), x : x + len(inner)], inner) for y, x in places
            )
    assert found == 2 * 4


def test_the_box_is_drawn_around_the_crop(reader):
    sample = draw_samples(reader, ViewSpec.simclr(32), indices=[4])[0]
    height, width = sample.source.shape[:2]
    scale = min(SOURCE / width, CELL / height)
    sheet = np.asarray(contact_sheet([sample], ""))[:, : MARGIN + SOURCE]
    color = [int(VIEW_COLORS[1][k : k + 2], 16) for k in (1, 3, 5)]  # view 2 is drawn over view 1
    rows, columns = np.nonzero((sheet == color).all(-1))
    _, left, box_height, box_width = sample.params.box[1, 0]
    assert abs(columns.min() - (MARGIN + left * scale)) <= 2
    assert abs(columns.max() - (MARGIN + (left + box_width) * scale)) <= 3
    assert abs(rows.max() - rows.min() - box_height * scale) <= 4


def test_the_texts_are_the_drawn_numbers(reader, monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(
        preview.ImageDraw.ImageDraw, "text", lambda pen, at, text, *rest: written.append(text)
    )
    sample = draw_samples(reader, ViewSpec.simclr(64, gray_p=1.0, blur_p=1.0, jitter_p=1.0), indices=[4])[0]
    contact_sheet([sample], "a title")
    params = sample.params
    assert written[:6] == ["a title", "source", "crop 1", "crop 2", "view 1", "view 2"]
    for view in (0, 1):
        top, left, height, width = params.box[view, 0]
        assert f"{width} × {height} at ({left}, {top})" in written
        names = [preview.OPERATIONS[k] for k in params.jitter_order[view, 0]]
        lines = [line for line in written if line.startswith(names[0]) and f", {names[1]} " in line]
        assert lines
        assert f"grayscale, blur σ {params.blur_sigma[view, 0]:.2f} px" in written
        assert any(f"contrast ×{params.jitter_factors[view, 0, 1]:.2f}" in line for line in written)
        assert any(f"hue {360 * params.jitter_factors[view, 0, 3]:+.0f}°" in line for line in written)
    plain = draw_samples(reader, ViewSpec.simclr(64, gray_p=0.0, blur_p=0.0, jitter_p=0.0), indices=[4])
    written.clear()
    contact_sheet(plain, "")
    assert written.count("no color jitter") == 2
    assert not any("gray" in line or "blur" in line for line in written)


def test_a_corrupt_image_is_shown_as_its_replacement(tmp_path, reader):
    with BetonWriter(tmp_path / "bad.beton", 3) as writer:
        for index in range(3):
            data = bytes(reader.image_bytes(index))
            writer.add_jpeg(data[: len(data) // 2] if index == 1 else data, label=index)
    with BetonReader(tmp_path / "bad.beton") as bad, pytest.warns(RuntimeWarning, match="sample 1"):
        samples = draw_samples(bad, ViewSpec.simclr(32), indices=[0, 1])
    assert [sample.index for sample in samples] == [0, 2]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10000), (10000, 1)])
def test_extreme_images_have_a_sheet(tmp_path, height, width):
    with BetonWriter(tmp_path / "odd.beton", 1) as writer:
        writer.add_raw(np.full((height, width, 3), 77, np.uint8), label=-1)
    with BetonReader(tmp_path / "odd.beton") as odd:
        samples = draw_samples(odd, ViewSpec.simclr(32, jitter_p=0.0, gray_p=0.0))
    assert samples[0].label == "no label"
    assert all((view == 77).all() for view in samples[0].views)
    sheet = contact_sheet(samples, "odd")
    assert sheet.width == contact_sheet(samples, "").width
    assert sheet.height < 500


def test_an_index_beyond_the_file(reader):
    with pytest.raises(ValueError, match=r"has no image 9; its images are 0 to 8"):
        draw_samples(reader, ViewSpec.simclr(32), indices=[0, 9])


def test_pictures_are_saved_whole_or_not_at_all(tmp_path):
    picture = Image.new("RGB", (30, 20), "teal")
    for name, kind in (("a.png", "PNG"), ("b.JPG", "JPEG")):
        save_picture(picture, tmp_path / name)
        assert Image.open(tmp_path / name).format == kind
    with pytest.raises(ValueError, match=r"\.xyz names no format"):
        save_picture(picture, tmp_path / "c.xyz")
    with pytest.raises(ValueError, match="no suffix"):
        save_picture(picture, tmp_path / "c")
    with pytest.raises(OSError, match="nowhere"):
        save_picture(picture, Path(tmp_path / "nowhere" / "d.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.JPG"]
