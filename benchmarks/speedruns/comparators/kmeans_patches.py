"""Patch features by k-means (Coates, Ng and Lee 2011, "An analysis of single-layer networks"), judged by our kNN.

    python -m benchmarks.speedruns.comparators.kmeans_patches cifar.beton cifar-test.beton > kmeans.json

No label, no gradient, no augmentation: patches of 6 × 6 pixels, contrast-normalised and ZCA-whitened; k-means; the
triangle encoding max(0, mean distance − distance) at every position, averaged over a grid of cells; features are
standardised.  One thread; the CPU time is that of the whole process, the encoding of the test set and kNN included.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclr.evaluate import knn_accuracy
from pipelines import BetonReader
from pipelines.system.versions import git_commit, package_versions, processor_name

PATCH, KMEANS_PATCHES, ITERATIONS = 6, 400_000, 12
CONTRAST, ZCA = (
    10.0,
    0.1,
)  # added to a patch's variance (of 0 … 255) and to the eigenvalues, as in the paper's code
BATCH = 4  # images encoded at a time: few, so that the distances of their patches stay in the cache


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """Return the pixels, uint8 [N, 3, H, W], and the labels of a file whose images have one size."""
    with BetonReader(path) as reader:
        pixels = torch.stack([torch.from_numpy(reader[i][0]) for i in range(len(reader))])
        return pixels.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(reader.labels.copy())


def normalized_patches(images: Tensor) -> Tensor:
    """Return all patches [N, positions, 108] of uint8 images, each with mean 0 and the contrast normalised."""
    patches = F.unfold(images.float(), PATCH).transpose(1, 2)
    variance, mean = torch.var_mean(patches, 2, keepdim=True)
    return (patches - mean) / (variance + CONTRAST).sqrt()


def random_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` normalised patches [count, 108], spread over the images, in random order."""
    per_image, picked = math.ceil(count / len(images)), []
    for batch in images.split(BATCH):
        patches = normalized_patches(batch)
        positions = torch.randint(patches.shape[1], (len(batch), per_image, 1), generator=generator)
        picked.append(patches.gather(1, positions.expand(-1, -1, patches.shape[2])).flatten(0, 1))
    return torch.cat(picked)[torch.randperm(per_image * len(images), generator=generator)[:count]]


def zca(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [108] and the whitening matrix [108, 108] of patches."""
    values, vectors = torch.linalg.eigh(patches.T.cov())
    return patches.mean(0), vectors @ ((values + ZCA).rsqrt()[:, None] * vectors.T)


def k_means(patches: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return k centroids [k, 108]; an empty cluster begins anew at a random patch."""
    centroids = patches[torch.randperm(len(patches), generator=generator)[:k]].clone()
    for _ in range(ITERATIONS):
        sums, counts, half = torch.zeros_like(centroids), torch.zeros(k), 0.5 * centroids.square().sum(1)
        for batch in patches.split(20_000):
            nearest = (batch @ centroids.T - half).argmax(1)
            sums.index_add_(0, nearest, batch)
            counts += torch.bincount(nearest, minlength=k)
        anew = patches[torch.randint(len(patches), (k,), generator=generator)]
        centroids = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], anew)
    return centroids


def encode(images: Tensor, mean: Tensor, whiten: Tensor, centroids: Tensor, cells: int) -> Tensor:
    """Return features [N, k·cells²]: the triangle encoding, averaged over cells × cells parts of the image."""
    norms, features = centroids.square().sum(1), []
    for batch in images.split(BATCH):
        x = (normalized_patches(batch) - mean) @ whiten
        distance = (x.square().sum(2, keepdim=True) + norms - 2 * (x @ centroids.T)).clamp_(min=0).sqrt_()
        code = distance.neg_().add_(-distance.mean(2, keepdim=True)).clamp_(min=0)
        maps = code.transpose(1, 2).unflatten(2, (math.isqrt(code.shape[1]),) * 2)
        features.append(F.adaptive_avg_pool2d(maps, cells).flatten(1))
    return torch.cat(features)


def main() -> None:
    """Measure the features and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Patch features by k-means, judged by kNN; prints JSON.")
    parser.add_argument("files", type=Path, nargs=2, help="training set and test set")
    parser.add_argument("--centroids", type=int, default=1600)
    parser.add_argument("--cells", type=int, default=2, help="cells per side of the grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, generator = time.perf_counter(), torch.Generator().manual_seed(0)
    (train, train_labels), (test, test_labels) = map(read_images, options.files)
    patches = random_patches(train, KMEANS_PATCHES, generator)
    mean, whiten = zca(patches)
    centroids = k_means((patches - mean) @ whiten, options.centroids, generator)
    bank, queries = (encode(images, mean, whiten, centroids, options.cells) for images in (train, test))
    deviation, center = torch.std_mean(bank, 0)
    bank, queries = (features.sub_(center).div_(deviation + 1e-6) for features in (bank, queries))
    pair = (bank, train_labels, queries, test_labels)
    report = {
        "about": f"k-means patches (Coates et al. 2011), {options.centroids} centroids, {options.cells}² cells",
        "features": bank.shape[1],
        "knn": knn_accuracy(*pair, k=200, temperature=0.1),
        "knn10": knn_accuracy(*pair, k=10, temperature=math.inf),
        "cpu_s": time.process_time(),
        "wall_s": time.perf_counter() - start,
        "processor": processor_name(),
        "commit": getattr(git_commit(Path(__file__)), "hash", None),
        "versions": package_versions("torch", "numpy"),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
