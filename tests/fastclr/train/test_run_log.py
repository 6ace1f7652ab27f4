import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastclr.train.run_log import RunLog, read_metrics

ROOT = Path(__file__).parents[3]


def record(step: int) -> dict:
    return {
        "step": step,
        "epoch": 0,
        "lr": 0.5,
        "accuracy": 0.25,
        "entropy": 1.5,
        "loss": 4.0 / step,
        "images_per_s": 1234.5,
        "data_wait": 0.0125,
    }


def test_records_arrive_in_all_three_places(tmp_path, capsys):
    with RunLog(tmp_path, step=0, total_steps=100) as log:
        for step in (50, 60, 100):  # the second one is too soon after the line before to be printed
            log.write(record(step))
            log.show(record(step))
    assert read_metrics(tmp_path) == [record(50), record(60), record(100)]

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (step, pytest.approx(4 / step)) for step in (50, 60, 100)
    ]
    assert set(events.Tags()["scalars"]) == set(record(1)) - {"step", "epoch"}

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "step 50/100  loss 0.080  accuracy 25.0%  lr 0.5  1,234 images/s  data wait 1.2%  0:00:0"
    )
    assert lines[1].endswith("0:00:00 left")
    assert "\x1b" not in "".join(lines), "no terminal, no escape codes"


def test_a_resumed_run_writes_no_record_twice(tmp_path):
    """The checkpoint may be older than the last record: what came after it is done again."""
    with RunLog(tmp_path, 0, 10) as log:
        for step in (2, 4, 6):
            log.write(record(step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # the power went
    with RunLog(tmp_path, step=4, total_steps=10) as log:
        log.write(record(6) | {"loss": 1.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(2, 2.0), (4, 1.0), (6, 1.0)]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00\n", b"[1]\n", b'{"step": 6}']
)  # the last: its line end was lost
def test_damaged_records_are_dropped_in_place(tmp_path, damage):
    """In place: a lock is on the file, and a kill meanwhile must not cost the records before."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n{"step": 4}\n' + damage)
    number = path.stat().st_ino
    with RunLog(tmp_path, step=8, total_steps=10):
        pass
    assert (path.read_bytes(), path.stat().st_ino) == (b'{"step": 2}\n{"step": 4}\n', number)


FULL_DISK = """
import json, resource, sys
from functools import partial
from pathlib import Path
from fastclr.train import run_log

run_log.SummaryWriter = partial(run_log.SummaryWriter, flush_secs=0)
log, record = run_log.RunLog(Path(sys.argv[1]), 0, 1000), json.loads(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    with log:
        for _ in range(1000):
            log.write(record)
except OSError as error:
    print(error.strerror, error.filename)
"""


# the epoch is no scalar: a long one makes the records larger than the events
@pytest.mark.parametrize(("digits", "file"), [(1, "events.out.tfevents.*"), (900, "metrics.jsonl")])
def test_a_full_disk_is_told_of_once_and_with_the_file(tmp_path, digits, file):
    """A limit on file sizes stands in for the full disk."""
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path), json.dumps(record(1) | {"epoch": 10**digits})]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert process.stdout.splitlines()[-1] == f"File too large {tmp_path / file}"
    assert process.stderr == ""
