"""Files whose fields have other names than "image" and "label": written, read, and by the stock ffcv package."""

import pickle

import numpy as np
import pytest

from fastclr.cli.main import main
from pipelines import ViewLoader
from pipelines.beton import BetonReader


@pytest.fixture
def named(tiny_photos, tmp_path):
    out = tmp_path / "tiny.beton"
    assert (
        main(["convert", str(tiny_photos), str(out), "--image-field", "jpg", "--label-field", "target"]) == 0
    )
    return out


def test_the_writer_and_the_reader(named):
    with BetonReader(named) as reader:
        assert [(field.name, field.kind, field.read_as) for field in reader.fields] == [
            ("jpg", "image", "image"),
            ("target", "int", "label"),
        ]
    with BetonReader(named, image_field="jpg", label_field="target") as reader:
        assert sorted(set(reader.labels.tolist())) == [0, 1, 2, 3]
        again = pickle.loads(pickle.dumps(reader))
        assert again.labels.tolist() == reader.labels.tolist()
    for options, message in (
        (
            {"image_field": "image"},
            r"no image field 'image' .*\(image_field\); its fields: 'jpg' \(image\), 'target'",
        ),
        ({"label_field": "jpg"}, r"no int field 'jpg' to read as label"),
    ):
        with pytest.raises(ValueError, match=message):
            BetonReader(named, **options)


def test_the_loader(named):
    with (
        ViewLoader(named, 4, size=16, image_field="jpg", label_field="target") as ours,
        ViewLoader(named, 4, size=16) as plain,
    ):
        for (views, labels), (same, same_labels) in zip(ours, plain, strict=True):
            np.testing.assert_array_equal(views, same)
            np.testing.assert_array_equal(labels, same_labels)
    with pytest.raises(ValueError, match="no int field 'label'"):
        ViewLoader(named, 4, size=16, label_field="label")
    with BetonReader(named) as reader, pytest.raises(ValueError, match="file is a reader already"):
        ViewLoader(reader, 4, size=16, label_field="target")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-field", "x" * 17], "1 to 16 ASCII letters"),
        (["--label-field", "ü"], "1 to 16 ASCII letters"),
        (["--label-field", ""], "1 to 16 ASCII letters"),
        (["--label-field", "image"], "two fields of the name"),
    ],
)
def test_names_that_cannot_be(tiny_photos, tmp_path, capsys, options, message):
    assert main(["convert", str(tiny_photos), str(tmp_path / "out.beton"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ffcv_reads_them(named, require_package):
    """By the names that its pipelines are keyed by; and our engine of that name takes the image."""
    require_package("ffcv")
    from ffcv.reader import Reader

    assert list(Reader(str(named)).handlers) == ["jpg", "target"]
    with ViewLoader(named, 4, size=16, engine="ffcv", image_field="jpg") as loader:
        batch = next(iter(loader))
        assert set(batch.labels.tolist()) <= {0, 1, 2, 3}


def test_ffcv_writes_several_labels(tmp_path, require_package):
    """A file of FFCV's own writer with two images and two labels: what is asked for is read."""
    require_package("ffcv")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Set:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, k: int):
            left, right = (np.full((8 + side, 8, 3), 10 * k + side, np.uint8) for side in (0, 1))
            return left, k, right, 100 + k

    path = str(tmp_path / "both.beton")
    fields = {
        "left": RGBImageField(write_mode="raw"),
        "coarse": IntField(),
        "right": RGBImageField(write_mode="raw"),
        "fine": IntField(),
    }
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Set(), shuffle_indices=False)
    for image, label, side, offset in (
        (None, None, 0, 0),
        ("right", "fine", 1, 100),
        ("left", "fine", 0, 100),
        ("right", None, 1, 0),
    ):
        with BetonReader(path, image, label) as reader:
            assert reader.labels.tolist() == [offset + k for k in range(6)]
            assert reader[3][0].shape == (8 + side, 8, 3)
            assert (reader[3][0] == 30 + side).all()
        options = {"augment": False, "order": "sequential", "image_field": image, "label_field": label}
        for engine in ("native", "ffcv"):
            with ViewLoader(path, 6, size=8, engine=engine, **options) as loader:
                batch = next(iter(loader))
                assert batch.views[0, :, 0, 0, 0].tolist() == [10 * k + side for k in range(6)], engine
                assert batch.labels.tolist() == [offset + k for k in range(6)]
