"""`fastclr bench WHAT`: measurements; see `benchmarks/`."""

import importlib

MODULES = {
    "loader": "benchmarks.loaders.bench",
    "convert": "benchmarks.convert.bench",
    "verdict": "benchmarks.bottleneck.bench",
    "loss": "benchmarks.kernels.loss",
    "optimizer": "benchmarks.kernels.optimizer",
    "augment": "benchmarks.kernels.augment",
    "step": "benchmarks.kernels.step",
}
BENCHMARKS = {
    "loader": "loaders side by side, against the decode limit",
    "convert": "writing a .beton file, beside FFCV's own writer",
    "verdict": "whether the loader or the model limits a training run, and what to change",
    "loss": "NT-Xent forward and backward, beside lightly and plain torch",
    "optimizer": "a LARS step, beside lightly and timm",
    "augment": "augmentation of crops on the device, beside kornia and torchvision",
    "step": "a training step in its pieces and as a whole",
}
TAKES = {
    "loader": "FILE.beton",
    "convert": "FOLDER",
    "verdict": "RECIPE --train FILE.beton",
}
"""What must be given."""


def main(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: fastclr bench WHAT [arguments]\n")
        print(
            "\n".join(f"  {name:<10} {TAKES.get(name, ''):<29} {what}" for name, what in BENCHMARKS.items())
        )
        print("\n`fastclr bench WHAT --help` lists its options.")
        return 0 if argv else 2
    name, *rest = argv
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return importlib.import_module(MODULES[name]).main(rest)
