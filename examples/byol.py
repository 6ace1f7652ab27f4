"""BYOL (arXiv 2006.07733): an online network predicts a momentum network's output for the other view.

    python examples/byol.py photos.beton

Its two views are drawn from different distributions: the first is always blurred, the second seldom, but sometimes
solarized.
"""

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclr import LARS, ViewLoader, ViewSpec
from fastclr.model import resnet
from fastclr.optim import warmup_cosine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="a .beton file")
parser.add_argument("--size", type=int, default=224, help="side length of a view in pixels")
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--epochs", type=int, default=300)
parser.add_argument("--warmup-epochs", type=int, default=10)
parser.add_argument("--momentum", type=float, default=0.99, help="of the target network, at the start")
parser.add_argument("--depth", type=int, default=50, choices=(10, 18, 34, 50))
parser.add_argument("--steps", type=int, help="stop after so many steps")
parser.add_argument("--out", default="encoder.pt", help="file for the encoder's weights")
args = parser.parse_args()


def mlp(in_dim: int, hidden_dim: int = 4096, out_dim: int = 256) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim),
    )


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the normalised rows, equation 2."""
    return (2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=1)).mean()


on_gpu = torch.cuda.is_available()
device = torch.device("cuda" if on_gpu else "cpu")
torch.manual_seed(0)
encoder = resnet(args.depth, image_size=args.size)
online = nn.Sequential(encoder, mlp(2048 if args.depth == 50 else 512))
online.to(device, memory_format=torch.channels_last)
predictor = mlp(256).to(device)
target = copy.deepcopy(online).requires_grad_(False)
optimizer = LARS([*online.parameters(), *predictor.parameters()], lr=0.0, weight_decay=1.5e-6)

jitter = (0.4, 0.4, 0.2, 0.1)
views = (
    ViewSpec(size=args.size, jitter=jitter, blur_p=1.0, num_views=1),
    ViewSpec(size=args.size, jitter=jitter, blur_p=0.1, solarize_p=0.2, num_views=1),
)
with ViewLoader(args.file, args.batch_size, views=views, device=device) as loader:
    total = args.epochs * len(loader)
    last = min(total, args.steps or total)
    warmup = args.warmup_epochs * len(loader)
    step = 0
    while step < last:
        # both specs have one size, so they are one group: [2, B, 3, H, W]
        for both, _ in loader:
            for settings in optimizer.param_groups:
                settings["lr"] = warmup_cosine(step, total, warmup, 0.2 * args.batch_size / 256)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                predicted = [predictor(online(view)) for view in both]
                with torch.no_grad():
                    targets = [target(view) for view in both]
            loss = regression_loss(predicted[0], targets[1]) + regression_loss(predicted[1], targets[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tau = 1 - (1 - args.momentum) * (math.cos(math.pi * step / total) + 1) / 2
            with torch.no_grad():
                for ours, theirs in zip(online.parameters(), target.parameters(), strict=True):
                    theirs.lerp_(ours, 1 - tau)
            step += 1
            if step % 10 == 0 or step == last:
                print(f"step {step} of {total}: loss {loss.item():.3f}", flush=True)
            if step >= last:
                break

torch.save(encoder.state_dict(), args.out)
print(f"wrote {args.out}")
