"""An accelerate loop over a ViewLoader that notes what it was given, for torchrun.

python accelerate_run.py FILE.beton OUT_FOLDER
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import send_to_device

from pipelines import ViewLoader, ViewSpec
from pipelines.contracts import Batch


def main(file: Path, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    views = ViewSpec(size=16), ViewSpec(size=8, num_views=3)
    seen = []
    with ViewLoader(
        file,
        4,
        views=views,
        seed=2,
        num_threads=1,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    ) as loader:
        for batch in loader:
            moved = send_to_device(batch, accelerator.device, non_blocking=True)
            assert isinstance(moved, Batch)
            assert {view.device.type for view in moved.views} == {accelerator.device.type}
            # accelerate moves to any device, "meta" being one that every machine has
            elsewhere = send_to_device(batch, "meta")
            assert {view.device.type for view in elsewhere.views} == {"meta"}
            assert elsewhere.labels.device.type == "meta"
            seen.append((moved.epoch, moved.step, moved.indices.tolist()))
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(seen))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
