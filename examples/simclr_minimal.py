"""SimCLR (arXiv 2002.05709) from fastclr's parts, in one process or in one per GPU.

fastclr convert photos/ photos.beton
python examples/simclr_minimal.py photos.beton
torchrun --nproc-per-node=8 examples/simclr_minimal.py photos.beton
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fastclr import LARS, SimCLR, ViewLoader, nt_xent
from fastclr.model import convert_batchnorm, projector, resnet
from fastclr.optim import scaled_lr, warmup_cosine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="a .beton file")
parser.add_argument("--size", type=int, default=224, help="side length of a view in pixels")
parser.add_argument("--batch-size", type=int, default=256, help="images per rank")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--warmup-epochs", type=int, default=10)
parser.add_argument("--temperature", type=float, default=0.1)
parser.add_argument("--depth", type=int, default=50, choices=(10, 18, 34, 50))
parser.add_argument("--steps", type=int, help="stop after so many steps")
parser.add_argument("--out", default="encoder.pt", help="file for the encoder's weights")
args = parser.parse_args()

rank, world_size, local_rank = (
    int(os.environ.get(name, default))
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
)
on_gpu = torch.cuda.is_available()
device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
if on_gpu:
    torch.cuda.set_device(device)
if world_size > 1:
    dist.init_process_group("nccl" if on_gpu else "gloo")
group = dist.group.WORLD if world_size > 1 else None

torch.manual_seed(0)
encoder = resnet(args.depth, image_size=args.size)
model = SimCLR(encoder, projector(2048 if args.depth == 50 else 512)).to(
    device, memory_format=torch.channels_last
)
if world_size > 1:
    # statistics of one rank would tell the encoder which images share it
    model = convert_batchnorm(model)
network = DistributedDataParallel(model) if world_size > 1 else model

loader = ViewLoader(
    args.file, args.batch_size, size=args.size, device=device, rank=rank, world_size=world_size
)
global_batch = args.batch_size * world_size
total = loader.num_steps(args.epochs)
last = min(total, args.steps or total)
warmup = loader.num_steps(args.warmup_epochs)
peak = scaled_lr(0.3, global_batch)
optimizer = LARS(model.parameters(), lr=0.0, weight_decay=1e-6)

step = 0
while step < last:
    for views, _ in loader:
        for settings in optimizer.param_groups:
            settings["lr"] = warmup_cosine(step, total, warmup, peak)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            _, z = network(views.flatten(0, 1))
        loss = nt_xent(z, args.temperature, group=group)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if rank == 0 and (step % 10 == 0 or step == last):
            print(f"step {step} of {total}: loss {loss.item():.3f}", flush=True)
        if step >= last:
            break

loader.close()
if rank == 0:
    torch.save(encoder.state_dict(), args.out)
    print(f"wrote {args.out}")
if world_size > 1:
    dist.destroy_process_group()
