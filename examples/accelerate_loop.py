"""SimCLR with Hugging Face accelerate, which places the model and starts the ranks.

pip install accelerate
python examples/accelerate_loop.py photos.beton
accelerate launch --num-processes 8 examples/accelerate_loop.py photos.beton
"""

import argparse

import torch
import torch.distributed as dist
from accelerate import Accelerator

from fastclr import LARS, SimCLR, ViewLoader, nt_xent
from fastclr.model import convert_batchnorm, projector, resnet
from fastclr.optim import scaled_lr, warmup_cosine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="a .beton file")
parser.add_argument("--size", type=int, default=224, help="side length of a view in pixels")
parser.add_argument("--batch-size", type=int, default=256, help="images per rank")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--warmup-epochs", type=int, default=10)
parser.add_argument("--depth", type=int, default=50, choices=(10, 18, 34, 50))
parser.add_argument("--steps", type=int, help="stop after so many steps")
parser.add_argument("--out", default="encoder.pt", help="file for the encoder's weights")
args = parser.parse_args()

accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
torch.manual_seed(0)
encoder = resnet(args.depth, image_size=args.size)
model = SimCLR(encoder, projector(2048 if args.depth == 50 else 512))
model.to(accelerator.device, memory_format=torch.channels_last)
group = None
if accelerator.num_processes > 1:
    model = convert_batchnorm(model)
    group = dist.group.WORLD
optimizer = LARS(model.parameters(), lr=0.0, weight_decay=1e-6)
model, optimizer = accelerator.prepare(model, optimizer)

# not prepared: it gives this rank its own rows already, on the rank's device
loader = ViewLoader(
    args.file,
    args.batch_size,
    size=args.size,
    rank=accelerator.process_index,
    world_size=accelerator.num_processes,
    device=accelerator.device,
)
global_batch = args.batch_size * accelerator.num_processes
total = loader.num_steps(args.epochs)
last = min(total, args.steps or total)
warmup = loader.num_steps(args.warmup_epochs)
peak = scaled_lr(0.3, global_batch)

step = 0
while step < last:
    for views, _ in loader:
        for settings in optimizer.param_groups:
            settings["lr"] = warmup_cosine(step, total, warmup, peak)
        with accelerator.autocast():
            _, z = model(views.flatten(0, 1))
        loss = nt_xent(z, temperature=0.1, group=group)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        step += 1
        if step % 10 == 0 or step == last:
            accelerator.print(f"step {step} of {total}: loss {loss.item():.3f}")
        if step == last:
            break

loader.close()
if accelerator.is_main_process:
    torch.save(encoder.state_dict(), args.out)
    print(f"wrote {args.out}")
accelerator.end_training()
