"""The torchvision engine's worker process."""

from pipelines import BetonReader, BetonWriter, ViewSpec
from pipelines.engines.torchvision import CropsDataset, Item
from pipelines.planner import BatchPlanner


def test_no_more_samples_are_tried_than_are_replaced(tiny_beton, tmp_path):
    with BetonReader(tiny_beton) as intact, BetonWriter(tmp_path / "bad.beton", 160) as writer:
        jpeg = intact.image_bytes(0).tobytes()
        for _ in range(160):
            writer.add_jpeg(jpeg[: len(jpeg) // 2])
    with BetonReader(tmp_path / "bad.beton") as reader:
        sampler = BatchPlanner(
            reader.heights, reader.widths, (ViewSpec.simclr(32),), batch_size=1, order="sequential"
        )
        plan = next(sampler.plans(0))
        sample = CropsDataset(reader, sampler)[Item(0, 0, plan.params)]
    assert sample.crops is None
    assert list(sample.corrupt) == list(range(101))  # the last one is too many
