"""A set converted on a Ray cluster: a task per shard, on any node; what a node that died was at is done elsewhere.

Sources and OUT lie in folders that all nodes have under the same paths.  A task opens the source by itself; further
tasks of the same worker process use what it opened.
"""

import logging
import os
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.convert.shards import ShardedConversion
from pipelines.convert.sources import Source

INSTALL = "pip install 'fastclr[ray]'"
MAX_RETRIES = 10
"""Times that a shard is begun again whose node or process died."""


def convert_on_ray(
    conversion: ShardedConversion,
    open_again: Callable[[], Source],
    address: str,
    *,
    keep_complete: bool,
    cpus: int = 1,
    memory_mb: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """Write the shards of a set as tasks of a Ray cluster, and the set's index.

    Args:
        conversion: what is to be written.
        open_again: opens `conversion.source` in another process; can be pickled.
        address: of the cluster, "HOST:PORT" or "ray://…"; "auto": that of `RAY_ADDRESS` or of this machine, or else
            one of this machine alone that lasts as long as the call.
        keep_complete: leave shards that are there, and verify.
        cpus: processors that a task takes, and threads that it encodes with.
        memory_mb: memory that a task reserves, MB; 0: none.
        progress: called with the number of images that are done.

    Returns:
        The numbers of the shards that were written now.

    Raises:
        ValueError: Ray is missing, no node has so many processors, or a shard failed; complete shards stay.
        OSError: the cluster can't be reached, or shards that tasks wrote are not here.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"--ray needs the package ray ({error}): {INSTALL}") from error
    if not keep_complete:
        conversion.out.with_suffix(".json").unlink(missing_ok=True)
    todo = [k for k in range(conversion.count) if not (keep_complete and conversion.written(k) is not None)]
    done = sum(len(conversion.images(k)) for k in range(conversion.count)) - sum(
        len(conversion.images(k)) for k in todo
    )
    progress(done)
    ours = not ray.is_initialized()
    try:
        if ours:
            where = None if address == "auto" else address
            ray.init(where, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(f"--ray {address}: no Ray cluster answers there ({reason})") from error
    try:
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if cpus > largest:
            raise ValueError(
                f"a task takes {cpus} processors, and the largest node of the cluster has {largest:g}; lower --workers"
            )
        job = ray.put(_pickled(conversion, open_again))
        task = ray.remote(write_shard).options(
            num_cpus=cpus, memory=memory_mb * 10**6 or None, max_retries=MAX_RETRIES
        )
        pending = {task.remote(job, shard, cpus, keep_complete): shard for shard in todo}
        while pending:
            (ready, *_), _ = ray.wait(list(pending))
            shard = pending.pop(ready)
            try:
                failure = ray.get(ready)
            except ray.exceptions.RayError as error:
                failure = " ".join(str(error).split())
            if failure:
                for other in pending:
                    ray.cancel(other)
                raise ValueError(f"shard {shard}: {failure}")
            done += len(conversion.images(shard))
            progress(done)
    finally:
        if ours:
            ray.shutdown()
    if conversion.write_index() is None:
        names = ", ".join(conversion.path(shard).name for shard in conversion.missing()[:5])
        raise OSError(
            f"{conversion.out.parent}: tasks wrote shards that are not here ({names}); the folder must be one that all "
            "nodes share"
        )
    return todo


def write_shard(job: bytes, shard: int, workers: int, keep_complete: bool) -> str:
    """Write a shard in the process of a task; return what went wrong, "" where nothing did.

    Args:
        job: what `_pickled` returned.
        shard: its number.
        workers: threads.
        keep_complete: leave the shard if it is there: the task may be another try, after its node died.
    """
    try:
        conversion = _unpickled(job)
        if not (keep_complete and conversion.written(shard) is not None):
            conversion.write(shard, workers)
        return ""
    except Exception as error:
        reason = " ".join(str(error).split())
        return f"{reason or type(error).__name__} (on node {os.uname().nodename})"


def _pickled(conversion: ShardedConversion, open_again: Callable[[], Source]) -> bytes:
    """Return what a task is made of; the source is opened there again, from the same folder."""
    options: dict[str, Any] = {
        "out": conversion.out.absolute(),
        "count": conversion.count,
        "encoding": conversion.encoding,
        "order": conversion.order,
        "seed": conversion.seed,
        "on_error": conversion.on_error,
    }
    return pickle.dumps((Path.cwd(), open_again, options, len(conversion.source.labels)))


@lru_cache(maxsize=1)
def _unpickled(job: bytes) -> ShardedConversion:
    folder, open_again, options, num_images = pickle.loads(job)
    os.chdir(folder)
    source = open_again()
    if len(source.labels) != num_images:
        raise ValueError(
            f"{source.name} has {len(source.labels)} images here, and {num_images} where this was started"
        )
    return ShardedConversion(source, **options)
