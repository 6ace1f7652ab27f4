"""`fastclr bench NAME`: measurements; see `benchmarks/`."""

import importlib
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, for the list that `fastclr bench --help` prints."""

    module: str
    about: str
    needs: str = ""
    """Arguments that must be given."""


BENCHMARKS = {
    "loader": Benchmark(
        "benchmarks.loaders.bench", "loaders side by side, against the decode limit", "FILE.beton"
    ),
    "convert": Benchmark(
        "benchmarks.convert.bench", "writing a .beton file, beside FFCV's own writer", "FOLDER"
    ),
    "bottleneck": Benchmark(
        "benchmarks.bottleneck.bench",
        "whether the loader or the model limits a training run, and what to change",
        "RECIPE FILE.beton",
    ),
    "loss": Benchmark(
        "benchmarks.kernels.loss", "NT-Xent forward and backward, beside lightly and plain torch"
    ),
    "optimizer": Benchmark("benchmarks.kernels.optimizer", "a LARS step, beside lightly and timm"),
    "augment": Benchmark(
        "benchmarks.kernels.augment", "augmentation of crops on the device, beside kornia and torchvision"
    ),
    "step": Benchmark("benchmarks.kernels.step", "a training step in its pieces and as a whole"),
}
OLD_NAMES = {"verdict": "bottleneck"}


def main(argv: list[str]) -> int | None:
    """Run the benchmark that the first argument names."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: fastclr bench NAME [arguments]\n")
        for name, benchmark in BENCHMARKS.items():
            print(f"  {name:<11} {benchmark.needs:<18} {benchmark.about}")
        print("\n`fastclr bench NAME --help` lists its options.")
        return 0 if argv else 2
    name, *rest = argv
    if name in OLD_NAMES:
        new = OLD_NAMES[name]
        warnings.warn(f"`bench {name}` is now `bench {new}`", FutureWarning, stacklevel=2)
        name = new
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return importlib.import_module(BENCHMARKS[name].module).main(rest)
