import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastclr.train.sinks import EventsFile, LiveLine, MetricsFile, read_metrics

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
    # the second record is too soon after the line before to be printed
    now = iter([0.0, 20.0, 20.0, 25.0, 25.0, 30.0, 30.0])
    with (
        MetricsFile(tmp_path, 0) as metrics,
        EventsFile(tmp_path, 0) as events,
        LiveLine(0, 100, lambda: next(now)) as line,
    ):
        for step in (50, 60, 100):
            for sink in (metrics, events, line):
                sink(record(step))
    assert read_metrics(tmp_path) == [record(50), record(60), record(100)]

    accumulated = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in accumulated.Scalars("loss")] == [
        (step, pytest.approx(4 / step)) for step in (50, 60, 100)
    ]
    assert set(accumulated.Tags()["scalars"]) == set(record(1)) - {"step", "epoch"}

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "step 50/100  loss 0.080  accuracy 25.0%  lr 0.5  1,234 images/s  data wait 1.2%  0:00:20 left"
    )
    assert lines[1].endswith("0:00:00 left")
    assert "\x1b" not in "".join(lines), "no terminal, no escape codes"


def test_a_resumed_run_writes_no_record_twice(tmp_path):
    """The checkpoint may be older than the last record: what came after it is done again."""
    with MetricsFile(tmp_path, 0) as metrics, EventsFile(tmp_path, 0) as events:
        for step in (2, 4, 6):
            metrics(record(step))
            events(record(step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # the power went
    with MetricsFile(tmp_path, 4) as metrics, EventsFile(tmp_path, 4) as events:
        metrics(record(6) | {"loss": 1.0})
        events(record(6) | {"loss": 1.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(2, 2.0), (4, 1.0), (6, 1.0)]
    accumulated = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in accumulated.Scalars("loss")] == [(2, 2.0), (4, 1.0), (6, 1.0)]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00\n", b"[1]\n", b'{"step": 6}']
)  # the last: its line end was lost
def test_corrupt_records_are_dropped_in_place(tmp_path, damage):
    """In place: a lock is on the file, and a kill meanwhile must not cost the records before."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n{"step": 4}\n' + damage)
    number = path.stat().st_ino
    with MetricsFile(tmp_path, step=8):
        pass
    assert (path.read_bytes(), path.stat().st_ino) == (b'{"step": 2}\n{"step": 4}\n', number)


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from fastclr.train import sinks

sink, record = getattr(sinks, sys.argv[2])(Path(sys.argv[1]), 0), json.loads(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    with sink:
        for _ in range(1000):
            sink(record)
except OSError as error:
    print(error.strerror, error.filename)
"""


@pytest.mark.parametrize(
    ("sink", "file"), [("EventsFile", "events.out.tfevents."), ("MetricsFile", "metrics.jsonl")]
)
def test_a_full_disk_is_told_of_once_and_with_the_file(tmp_path, sink, file):
    """A limit on file sizes stands in for the full disk."""
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path), sink, json.dumps(record(1))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert process.stdout.splitlines()[-1].startswith(f"File too large {tmp_path / file}")
    assert process.stderr == ""


def test_held_out_accuracy_is_shown(capsys):
    with LiveLine(0, 100, lambda: 5.0) as line:
        for step, more in ((10, {}), (20, {"val_knn": 0.345}), (100, {})):
            line(record(step) | more)
    lines = capsys.readouterr().out.splitlines()
    assert ["val kNN 34.5%" in text for text in lines] == [False, True, True]
