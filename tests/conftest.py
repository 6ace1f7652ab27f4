"""Images for all tests: drawn here, or from archives of photos if those are present."""

import atexit
import importlib
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# numba's cache does not notice an edit of a callee in another file; set before anything imports numba
_numba_cache = tempfile.mkdtemp(prefix="numba-cache-")
os.environ["NUMBA_CACHE_DIR"] = _numba_cache
atexit.register(shutil.rmtree, _numba_cache, ignore_errors=True)
# a shell starts background jobs with Ctrl-C ignored, which the processes of tests would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)
# tests work on small tensors, some in four processes at once: more threads than cores would only wait
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import simplejpeg  # noqa: E402

from pipelines.convert import Encoding, FolderSource, convert, open_source  # noqa: E402

TEST_DATA = os.environ.get("FASTCLR_TEST_DATA")
"""Folder with the archives of photos; unset, the tests that need them are skipped."""


SLOW_FILES = {"test_ffcv", "test_dali", "test_nt_xent_compile", "test_lars_compile", "test_gpu_compile"}
SLOW_ENGINES = {"ffcv", "dali"}
"""The real ones: FFCV compiles a pipeline per loader, DALI starts threads and loads its libraries."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what a whole file, or an engine among a test's parameters, makes slow."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        parameters = callspec.params.values() if callspec else ()
        engines = {value for value in parameters if isinstance(value, str)} & SLOW_ENGINES
        if engines or item.path.stem in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


def _unpack(archive: str, folder: Path) -> Path:
    if not TEST_DATA:
        pytest.skip(f"needs {archive}: set FASTCLR_TEST_DATA to the folder that holds it")
    path = Path(TEST_DATA) / archive
    if not path.exists():
        pytest.skip(f"needs {archive}: FASTCLR_TEST_DATA is {TEST_DATA}, which does not hold it")
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def cifar_jpegs(tmp_path_factory) -> Path:
    """CIFAR-10 as JPEG files: a folder with `train/CLASS/*.jpg` (50,000) and `test/CLASS/*.jpg` (10,000)."""
    return _unpack("cifar10-jpeg.tar.xz", tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="session")
def imagenet_photos(tmp_path_factory) -> Path:
    """250 ImageNet photos, `CLASS/*.JPEG`: gray ones, ones with EXIF tags, up to some megapixels."""
    return _unpack("imagenet-sample.tar", tmp_path_factory.mktemp("imagenet")) / "imagenet-sample"


@pytest.fixture(scope="session")
def photo_beton(imagenet_photos, tmp_path_factory) -> Path:
    """The photos in FFCV's convention: longer side ≤ 500, quality 90, 4:2:0."""
    out = tmp_path_factory.mktemp("beton") / "photos.beton"
    convert(open_source([str(imagenet_photos)]), out, Encoding(jpeg="recompress", max_side=500), workers=2)
    return out


@pytest.fixture(scope="session")
def keep_beton(imagenet_photos, tmp_path_factory) -> Path:
    """The photos byte for byte, where their longer side is ≤ 500."""
    out = tmp_path_factory.mktemp("beton") / "keep.beton"
    convert(open_source([str(imagenet_photos)]), out, Encoding(jpeg="keep", max_side=500), workers=2)
    return out


@pytest.fixture(scope="session")
def cifar_beton_small(cifar_jpegs, tmp_path_factory) -> Path:
    """2000 CIFAR-10 training images, 200 of each class, byte for byte."""
    folder = tmp_path_factory.mktemp("cifar-small")
    for source in sorted((cifar_jpegs / "train").iterdir()):
        (folder / source.name).mkdir()
        for image in sorted(source.iterdir())[:200]:
            (folder / source.name / image.name).symlink_to(image)
    out = tmp_path_factory.mktemp("beton") / "cifar-small.beton"
    convert(FolderSource(folder), out, workers=2)
    return out


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory) -> Path:
    """40 drawn JPEGs of 4 classes and 24 to 160 pixels, one in ten of them gray: a class folder."""
    root, rng = tmp_path_factory.mktemp("tiny-photos"), np.random.default_rng(0)
    for index in range(40):
        folder = root / f"class-{index % 4}"
        folder.mkdir(exist_ok=True)
        pixels = draw_image(rng, *rng.integers(24, 161, 2))
        if index % 10 == 9:
            jpeg = simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), 90, "GRAY", "Gray")
        else:
            jpeg = simplejpeg.encode_jpeg(pixels, 90, colorsubsampling=("420", "444", "422")[index % 3])
        (folder / f"{index:02}.jpg").write_bytes(jpeg)
    return root


def draw_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: smooth waves of color with some noise, which is what JPEG was made for."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(rng.uniform(3, 20) * x + rng.uniform(3, 20) * y + rng.uniform(0, 6)) for _ in range(3)]
    pixels = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def require_package() -> Callable[[str], ModuleType]:
    """Imports an optional package.  Missing: the test is skipped, or fails where FASTCLR_REQUIRE_ENGINES=1."""

    def require(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if os.environ.get("FASTCLR_REQUIRE_ENGINES") == "1":
                raise
            pytest.skip(f"needs {name}: {error}")

    return require


@pytest.fixture(scope="session")
def require_turbojpeg() -> None:
    """The system's libturbojpeg.  Missing: the test is skipped, or fails where FASTCLR_REQUIRE_ENGINES=1."""
    from pipelines.engines.native.turbojpeg import bind_turbojpeg

    try:
        bind_turbojpeg()
    except OSError as error:
        if os.environ.get("FASTCLR_REQUIRE_ENGINES") == "1":
            raise
        pytest.skip(str(error))
