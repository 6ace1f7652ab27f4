"""Two views per decode in a training script of FFCV's: its Loader, its order, its threads.

    pip install 'fastclr[ffcv]'
    python examples/ffcv_two_views.py photos.beton

docs/ffcv.md says what changes, and what does not.
"""

import argparse
import os

import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import Convert, Squeeze, ToTensor, ToTorchImage
from torchvision.models import resnet18

from fastclr import nt_xent
from pipelines.engines.ffcv.engine import Pick, TwoViewDecoder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="a .beton file")
parser.add_argument("--size", type=int, default=224, help="side length of a view in pixels")
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--steps", type=int, help="stop after so many steps")
parser.add_argument("--out", default="encoder.pt", help="file for the model's weights")
args = parser.parse_args()


def to_float() -> list:
    return [ToTensor(), ToTorchImage(), Convert(torch.float32)]


decoder = TwoViewDecoder(args.file, size=args.size, seed=0)
loader = Loader(
    args.file,
    batch_size=args.batch_size,
    num_workers=len(os.sched_getaffinity(0)),
    order=OrderOption.RANDOM,
    seed=0,
    pipelines={
        # the first pipeline decodes and takes view 0; the second takes view 1 from the same decode
        "image": PipelineSpec("image", decoder=decoder, transforms=[Pick(0), *to_float()]),
        "label": [IntDecoder(), ToTensor(), Squeeze()],
        "image2": PipelineSpec(decoder, transforms=[Pick(1), *to_float()]),
    },
)
torch.manual_seed(0)
model = resnet18(num_classes=128)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

last = min(args.epochs * len(loader), args.steps or args.epochs * len(loader))
step = epoch = 0
while step < last:
    decoder.set_epoch(epoch)
    for first, _, second in decoder.batches(loader):
        loss = nt_xent(model(torch.cat([first, second]) / 255), temperature=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 10 == 0 or step == last:
            print(f"step {step} of {last}: loss {loss.item():.3f}", flush=True)
        if step == last:
            break
    epoch += 1

torch.save(model.state_dict(), args.out)
print(f"wrote {args.out}")
