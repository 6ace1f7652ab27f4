"""Conversion on a real Ray cluster of two nodes, one of which is killed in mid-run."""

import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from support.sources import linked_jpegs

from fastclr.cli.convert import _with_ray_address
from pipelines.convert import Encoding, convert, open_source
from pipelines.convert.ray_tasks import convert_on_ray, write_shard
from pipelines.convert.shards import ShardedConversion

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """1,200 images of some milliseconds each."""
    return linked_jpegs(tmp_path_factory.mktemp("images"), 1200, 500)


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_a_node_is_killed(images, tmp_path, monkeypatch, require_package):
    require_package("ray")
    from ray.cluster_utils import Cluster

    # what the nodes start with is what their tasks import
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        victim = cluster.add_node(num_cpus=1)
        opener = partial(open_source, [f"{images}"])
        encoding = Encoding(jpeg="recompress", max_side=400)
        conversion = ShardedConversion(opener(), tmp_path / "a.beton", 12, encoding)
        killed_at: list[int] = []

        def kill() -> None:
            # both nodes are at work: shards that nobody has finished have hidden files
            while len(list(tmp_path.glob(".*.partial"))) < 2 or len(conversion.missing()) > 10:
                time.sleep(0.01)
            killed_at.append(len(conversion.missing()))
            cluster.remove_node(victim, allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        seen: list[int] = []
        written = convert_on_ray(
            conversion, opener, cluster.address, keep_complete=True, cpus=1, progress=seen.append
        )
        killer.join(30)
        assert written == list(range(12))
        assert 0 < killed_at[0] < 12
        assert (seen[-1], seen) == (1200, sorted(seen))
        # a second run finds everything done
        assert convert_on_ray(conversion, opener, cluster.address, keep_complete=True) == []
        with pytest.raises(ValueError, match=r"takes 9 processors, .* has 1; lower --workers"):
            convert_on_ray(conversion, opener, cluster.address, keep_complete=True, cpus=9)
    finally:
        cluster.shutdown()
    alone = ShardedConversion(opener(), tmp_path / "alone" / "a.beton", 12, encoding)
    alone.out.parent.mkdir()
    for shard in (0, 7, 11):
        alone.write(shard, workers=2)
        assert alone.path(shard).read_bytes() == conversion.path(shard).read_bytes()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [], "nothing half-written stays"


def test_a_task_says_what_went_wrong(images, tmp_path):
    """Without Ray: what a task does."""
    from pipelines.convert.ray_tasks import _pickled

    source = open_source([f"{images}"])
    conversion = ShardedConversion(source, tmp_path / "missing" / "a.beton", 2, Encoding(verify="header"))
    job = _pickled(conversion, partial(open_source, [f"{images}"]))
    folder = os.getcwd()
    try:
        assert "No such file or directory" in write_shard(job, 0, 1, False)
        (tmp_path / "missing").mkdir()
        assert write_shard(job, 0, 1, False) == ""
        before = conversion.path(0).stat().st_mtime_ns
        assert write_shard(job, 0, 1, True) == ""
        assert conversion.path(0).stat().st_mtime_ns == before
    finally:
        os.chdir(folder)
    whole = convert(source, tmp_path / "whole.beton", Encoding(verify="header"))
    assert whole.written == 1200


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--ray"], ["--ray", "auto"]),
        (["--ray", "--resume"], ["--ray", "auto", "--resume"]),
        (["--ray", "cifar10:DIR", "a.beton"], ["--ray", "auto", "cifar10:DIR", "a.beton"]),
        (["--ray", "10.0.0.1:6379", "x"], ["--ray", "10.0.0.1:6379", "x"]),
        (["--ray", "ray://head:10001"], ["--ray", "ray://head:10001"]),
        (["--ray", "auto"], ["--ray", "auto"]),
    ],
)
def test_the_address_may_be_left_out(given, read):
    assert _with_ray_address(given) == read
