"""MoCo v2 (arXiv 2003.04297): a queue of keys from a momentum encoder, in one process.

    python examples/moco_v2.py photos.beton

MoCo shuffles a batch over GPUs before the key encoder's batch norms; in one process that changes nothing, so it is
left out here.
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import nn

from fastclr import ViewLoader, ViewSpec
from fastclr.model import resnet
from fastclr.optim import warmup_cosine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="a .beton file")
parser.add_argument("--size", type=int, default=224, help="side length of a view in pixels")
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--epochs", type=int, default=200)
parser.add_argument("--queue", type=int, default=65536, help="keys that serve as negatives")
parser.add_argument("--momentum", type=float, default=0.999, help="of the key encoder")
parser.add_argument("--temperature", type=float, default=0.2)
parser.add_argument("--depth", type=int, default=50, choices=(10, 18, 34, 50))
parser.add_argument("--steps", type=int, help="stop after so many steps")
parser.add_argument("--out", default="encoder.pt", help="file for the encoder's weights")
args = parser.parse_args()
if args.queue % args.batch_size:
    parser.error(f"--queue {args.queue} must be a multiple of --batch-size {args.batch_size}")

on_gpu = torch.cuda.is_available()
device = torch.device("cuda" if on_gpu else "cpu")
torch.manual_seed(0)
num_features = 2048 if args.depth == 50 else 512
head = nn.Sequential(nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, 128))
query_network = nn.Sequential(resnet(args.depth, image_size=args.size), head)
query_network.to(device, memory_format=torch.channels_last)
key_network = copy.deepcopy(query_network).requires_grad_(False)
keys = F.normalize(torch.randn(args.queue, 128, device=device), dim=1)
optimizer = torch.optim.SGD(query_network.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

views = ViewSpec(size=args.size, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur_p=0.5)
with ViewLoader(args.file, args.batch_size, views=views, device=device) as loader:
    total = args.epochs * len(loader)
    last = min(total, args.steps or total)
    step = 0
    while step < last:
        for (first, second), _ in loader:
            for settings in optimizer.param_groups:
                settings["lr"] = warmup_cosine(step, total, 0, 0.03 * args.batch_size / 256)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                q = query_network(first)
                with torch.no_grad():
                    for ours, theirs in zip(
                        query_network.parameters(), key_network.parameters(), strict=True
                    ):
                        theirs.lerp_(ours, 1 - args.momentum)
                    k = key_network(second)
            q, k = F.normalize(q.float(), dim=1), F.normalize(k.float(), dim=1)
            positives = (q * k).sum(1, keepdim=True)
            logits = torch.cat([positives, q @ keys.T], dim=1) / args.temperature
            # the positive is the first column
            loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # the newest keys replace the oldest
            start = step * args.batch_size % args.queue
            keys[start : start + args.batch_size] = k
            step += 1
            if step % 10 == 0 or step == last:
                print(f"step {step} of {total}: loss {loss.item():.3f}", flush=True)
            if step >= last:
                break

torch.save(query_network[0].state_dict(), args.out)
print(f"wrote {args.out}")
