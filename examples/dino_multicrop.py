"""DINO (arXiv 2104.14294) with multi-crop: two large views and eight small ones, all from one decode.

python examples/dino_multicrop.py photos.beton
"""

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclr import ViewLoader, ViewSpec
from fastclr.model import resnet
from fastclr.optim import warmup_cosine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="a .beton file")
parser.add_argument("--size", type=int, default=224, help="side length of a large view in pixels")
parser.add_argument("--small-size", type=int, default=96, help="side length of a small view in pixels")
parser.add_argument("--small-views", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--warmup-epochs", type=int, default=10)
parser.add_argument("--prototypes", type=int, default=65536, help="outputs of the head")
parser.add_argument("--momentum", type=float, default=0.996, help="of the teacher, at the start")
parser.add_argument("--depth", type=int, default=50, choices=(10, 18, 34, 50))
parser.add_argument("--steps", type=int, help="stop after so many steps")
parser.add_argument("--out", default="encoder.pt", help="file for the teacher's encoder")
args = parser.parse_args()

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, CENTER_MOMENTUM = 0.1, 0.04, 0.9


class Head(nn.Module):
    """Three layers, a normalised bottleneck, and prototypes of unit length."""

    def __init__(self, in_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.prototypes = nn.Parameter(torch.randn(args.prototypes, bottleneck_dim))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(F.normalize(self.mlp(h), dim=1), F.normalize(self.prototypes, dim=1))


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """Mean cross entropy over all pairs of different views; student [V, B, K], teacher [2, B, K]."""
    targets = ((teacher - center) / TEACHER_TEMPERATURE).softmax(-1)
    log_probabilities = (student / STUDENT_TEMPERATURE).log_softmax(-1)
    pairs = [(t, s) for t in range(2) for s in range(len(student)) if s != t]
    losses = [-(targets[t] * log_probabilities[s]).sum(-1).mean() for t, s in pairs]
    return torch.stack(losses).mean()


on_gpu = torch.cuda.is_available()
device = torch.device("cuda" if on_gpu else "cpu")
torch.manual_seed(0)
encoder = resnet(args.depth, image_size=args.size)
student = nn.Sequential(encoder, Head(2048 if args.depth == 50 else 512))
student.to(device, memory_format=torch.channels_last)
teacher = copy.deepcopy(student).requires_grad_(False)
center = torch.zeros(args.prototypes, device=device)
optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.04)

large = ViewSpec(size=args.size, scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur_p=1.0, num_views=1)
views = (
    large,
    ViewSpec(size=args.size, scale=(0.4, 1.0), jitter=large.jitter, blur_p=0.1, solarize_p=0.2, num_views=1),
    ViewSpec(size=args.small_size, scale=(0.05, 0.4), jitter=large.jitter, num_views=args.small_views),
)
with ViewLoader(args.file, args.batch_size, views=views, device=device) as loader:
    total = args.epochs * len(loader)
    last = min(total, args.steps or total)
    warmup = args.warmup_epochs * len(loader)
    step = 0
    while step < last:
        # a tensor per size: [2, B, 3, 224, 224] and [8, B, 3, 96, 96]
        for (global_views, local_views), _ in loader:
            for settings in optimizer.param_groups:
                settings["lr"] = warmup_cosine(step, total, warmup, 0.0005 * args.batch_size / 256)
            batch = global_views.shape[1]
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                outputs = [student(group.flatten(0, 1)) for group in (global_views, local_views)]
                with torch.no_grad():
                    teacher_out = teacher(global_views.flatten(0, 1)).float().unflatten(0, (2, batch))
            student_out = torch.cat(outputs).float().unflatten(0, (-1, batch))
            loss = dino_loss(student_out, teacher_out, center)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 3.0)
            optimizer.step()
            momentum = 1 - (1 - args.momentum) * (math.cos(math.pi * step / total) + 1) / 2
            with torch.no_grad():
                for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                    theirs.lerp_(ours, 1 - momentum)
                center.lerp_(teacher_out.mean((0, 1)), 1 - CENTER_MOMENTUM)
            step += 1
            if step % 10 == 0 or step == last:
                print(f"step {step} of {total}: loss {loss.item():.3f}", flush=True)
            if step >= last:
                break

torch.save(teacher[0].state_dict(), args.out)
print(f"wrote {args.out}")
