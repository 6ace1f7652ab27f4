"""A training run: its steps follow the equations, and its folder can be continued."""

import dataclasses
import json
import tomllib

import pytest
import torch
from support.tiny_run import write_tiny_file

from fastclr.config import Config
from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.optim import LARS, warmup_cosine
from fastclr.recipes import from_table, load_recipe
from fastclr.train.build import resolve
from fastclr.train.checkpoint import load_checkpoint, load_encoder, save_checkpoint
from fastclr.train.pretrain import train
from fastclr.train.run import RunLock, saved_run
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader, TwoViewLoader


def change(config: Config, section: str, **values) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_file):
    """A run of 20 steps: its folder and how it ended."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    from support.tiny_run import write_tiny_recipe

    config = load_recipe(str(write_tiny_recipe(recipe)))
    return folder, train(config, tiny_file, folder)


def test_twenty_steps_are_those_of_the_equations(finished, tiny_file, tiny_config):
    """A run written out by hand gives the same losses and weights, bit for bit."""
    folder, outcome = finished
    assert (outcome.step, outcome.total_steps, outcome.stopped_by) == (20, 20, None)
    c = tiny_config
    saved = load_checkpoint(folder / "last.pt")
    bfloat16 = saved["identity"]["train.precision"] == "bfloat16"

    torch.manual_seed(0)
    encoder = resnet(10, 0.125, stem="cifar")
    model = SimCLR(encoder, projector(encoder.num_features, num_layers=2, out_dim=16))
    model = model.to(memory_format=torch.channels_last)
    optimizer = LARS(model.parameters(), 0.0, weight_decay=c.optim.weight_decay)
    losses, epochs, step = [], [], 0
    with TwoViewLoader(tiny_file, 20, spec=c.views, engine="resident", seed=0, num_threads=1) as loader:
        while step < 20:
            for batch in loader:
                # 1.0 · 20/256 at the peak; one epoch of warm-up is ⌊79/20⌋ = 3 steps
                optimizer.param_groups[0]["lr"] = warmup_cosine(step, total=20, warmup=3, peak=20 / 256)
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    _, z = model(
                        torch.cat([batch.views[0], batch.views[1]]).contiguous(
                            memory_format=torch.channels_last
                        )
                    )
                loss = nt_xent(z, 0.2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                epochs.append(batch.epoch)
                step += 1
                if step == 20:
                    break
    records = read_metrics(folder)
    assert [r["loss"] for r in records] == losses
    assert [r["epoch"] for r in records] == epochs
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name]), name


def test_the_run_folder_tells_the_story(finished, tiny_config):
    folder, _ = finished
    text = (folder / "config.toml").read_text()
    config = from_table(tomllib.loads(text))
    # what was left open has been decided, the rest is the recipe's
    assert config.data == dataclasses.replace(tiny_config.data, engine="resident", threads=1)
    assert config.model == dataclasses.replace(tiny_config.model, stem="cifar")
    assert config.train.precision in ("bfloat16", "float32")
    assert (config.views, config.loss, config.optim) == (
        tiny_config.views,
        tiny_config.loss,
        tiny_config.optim,
    )
    for word in ("# command: ", "# file: ", f"# torch: {torch.__version__.split('+')[0]}", "# fastclr: 0."):
        assert word in text

    records = read_metrics(folder)
    assert [r["step"] for r in records] == list(range(1, 21))
    assert records[0]["lr"] == 0.0
    assert records[3]["lr"] == 20 / 256
    assert all(
        0 <= r["accuracy"] <= 1 and 0 <= r["data_wait"] <= 1 and r["images_per_s"] > 0 for r in records
    )
    assert list(folder.glob("events.out.tfevents.*"))
    assert not list(folder.glob(".*")), "a temporary file was left"


def test_the_encoder_is_that_of_the_checkpoint(finished, tiny_config):
    folder, _ = finished
    encoder, meta = load_encoder(folder)
    saved = load_checkpoint(folder / "last.pt")["model"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, saved[f"encoder.{name}"]), name
    assert (meta["size"], meta["step"]) == (16, 20)
    assert meta["mean"] == list(tiny_config.views.mean)
    assert meta["std"] == list(tiny_config.views.std)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("loss", {"name": "nt_logistic", "semi_hard": True}),
        ("loss", {"name": "margin_triplet"}),
        ("loss", {"scale": 2.0}),
        ("optim", {"name": "sgd", "scaling": "sqrt", "base_lr": 0.001}),
        ("optim", {"name": "adamw", "base_lr": 0.01}),
        ("model", {"head": "none"}),
        ("train", {"precision": "float32"}),
    ],
)
def test_switches_reach_their_parts(tmp_path, finished, tiny_file, tiny_config, section, values):
    """Each of them changes the run."""
    config = change(change(tiny_config, "train", epochs=1), section, **values)
    if finished_precision(finished) == "float32" and values == {"precision": "float32"}:
        pytest.skip("auto is float32 on this machine")
    train(config, tiny_file, tmp_path / "run")
    ours = [r["loss"] for r in read_metrics(tmp_path / "run")]
    default = [r["loss"] for r in read_metrics(finished[0])][:4]
    assert len(ours) == 4  # ⌊79/20⌋ + 1 steps
    assert ours != default
    if values == {"scale": 2.0}:
        assert ours[0] == 2 * default[0]


def finished_precision(finished) -> str:
    return load_checkpoint(finished[0] / "last.pt")["identity"]["train.precision"]


def test_a_whitened_stem_stays_and_muon_trains(tmp_path, tiny_file, tiny_config):
    config = change(tiny_config, "optim", name="muon")
    config = change(config, "model", stem="whitened", stages=3)
    train(config, tiny_file, tmp_path / "one")
    train(change(config, "train", epochs=config.train.epochs + 1), tiny_file, tmp_path / "longer")
    one, _ = load_encoder(tmp_path / "one")
    longer, meta = load_encoder(tmp_path / "longer")
    # the first layer holds filters and their negatives, the same after any number of steps
    assert torch.equal(one.conv1.weight, longer.conv1.weight)
    half = len(one.conv1.weight) // 2
    assert torch.equal(one.conv1.weight[:half], -one.conv1.weight[half:])
    weight = one.layer1[0].conv1.weight
    assert not torch.equal(weight, longer.layer1[0].conv1.weight)
    # Muon keeps the norm at √out, give or take the last, small step
    assert weight.norm().item() == pytest.approx(len(weight) ** 0.5, rel=0.01)
    assert (meta["kwargs"]["stem"], meta["kwargs"]["stages"]) == ("whitened", 3)


def test_another_run_is_not_continued(tmp_path, finished, tiny_file, tiny_config):
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = change(change(tiny_config, "optim", base_lr=0.5), "train", epochs=6)
    with pytest.raises(ValueError, match=r"optim.base_lr was 1.0, is now 0.5; train.epochs was 5, is now 6"):
        train(changed, tiny_file, folder)
    other = write_tiny_file(tmp_path / "other.beton", num_images=78)
    with pytest.raises(ValueError, match=r"other settings: the data's fingerprint was '\w+', is now '\w+'"):
        train(tiny_config, other, folder)
    with pytest.raises(FileExistsError, match=r"holds a run, which --fresh does not continue"):
        train(tiny_config, tiny_file, folder, fresh=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_complete_is_left_alone(finished, tiny_file, tiny_config, resume):
    """Settings that decide only how a run is computed may change."""
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = change(tiny_config, "train", threads=2, log_every=3)
    outcome = train(again, tiny_file, folder, resume=resume)
    assert (outcome.first_step, outcome.step, outcome.total_steps) == (20, 20, 20)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_setting_that_an_older_version_did_not_have(tmp_path, finished, tiny_file, tiny_config):
    """A setting that the checkpoint lacks is a difference only if its value is not the default."""
    state = load_checkpoint(finished[0] / "last.pt")
    del state["identity"]["model.encoder"]
    for old, new in (("views", "num_views"), ("center_share", "center_crop_fraction")):
        state["identity"][f"views.{old}"] = state["identity"].pop(f"views.{new}")
    save_checkpoint(tmp_path / "last.pt", state)
    (tmp_path / "metrics.jsonl").write_bytes((finished[0] / "metrics.jsonl").read_bytes())
    assert train(tiny_config, tiny_file, tmp_path).step == 20
    with pytest.raises(ValueError, match=r"model.encoder was 'resnet', is now 'timm:vit_tiny_patch16_224'"):
        train(change(tiny_config, "model", encoder="timm:vit_tiny_patch16_224"), tiny_file, tmp_path)


def test_a_run_without_a_step_is_replaced(finished, tmp_path, tiny_file, tiny_config, monkeypatch):
    """A run that was killed before its first record, for example for lack of memory, may be replaced by another one."""
    folder = tmp_path / "run"

    def killed(*arguments):
        patch.setattr("fastclr.train.run.LOCK_TIMEOUT_S", 0.1)
        with RunLock() as lock, pytest.raises(FileExistsError, match="another process is training there"):
            saved_run(folder, lock)
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr("fastclr.train.step.EagerStep.__call__", killed)
        with pytest.raises(SystemExit):
            train(change(tiny_config, "train", batch_size=40), tiny_file, folder)
    assert load_checkpoint(folder / "last.pt")["step"] == 0
    assert train(tiny_config, tiny_file, folder).step == 20
    ours, theirs = (load_encoder(place)[0].state_dict() for place in (folder, finished[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match=r"train.batch_size was 20, is now 40"):
        train(change(tiny_config, "train", batch_size=40), tiny_file, folder)


def test_too_little_gpu_memory_is_the_users_business(tmp_path, tiny_file, tiny_config, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    monkeypatch.setattr("fastclr.train.step.EagerStep.__call__", full)
    with pytest.raises(
        ValueError, match=r"a step of 20 images; lower --train.batch-size, or set --train.micro"
    ):
        train(tiny_config, tiny_file, tmp_path / "run")


def test_what_a_machine_cannot_run_is_said_before_the_folder_is_made(tmp_path, tiny_file, tiny_config):
    for impl, reason in (("fused", "can't run here"), ("apex", "needs NVIDIA apex")):
        with pytest.raises(ValueError, match=reason):
            train(change(tiny_config, "optim", impl=impl), tiny_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_run_says_what_it_will_do(tmp_path, tiny_file, tiny_config, capsys):
    train(change(tiny_config, "train", precision="float32"), tiny_file, tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[0] == (
        "79 images, 5 epochs, 20 steps of 20; ResNet-10 ×0.125 at 16 px in float32 on cpu; "
        "engine resident, 1 loader thread"
    )


def test_resume_of_nothing(tmp_path, tiny_file, tiny_config):
    with pytest.raises(FileNotFoundError, match=r"holds no last.pt to resume"):
        train(tiny_config, tiny_file, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_resume_of_a_checkpoint_that_does_not_fit(tmp_path, finished, tiny_file, tiny_config):
    state = load_checkpoint(finished[0] / "last.pt")
    state["model"].pop("encoder.conv1.weight")
    state["step"] = 10
    save_checkpoint(tmp_path / "last.pt", state)
    with pytest.raises(ValueError, match=r"does not fit this model: .*encoder.conv1.weight"):
        train(tiny_config, tiny_file, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny_file, tiny_config):
    """With this rate the first step is sane (warm-up begins at 0), the second destroys the weights."""
    config = change(tiny_config, "optim", name="sgd", base_lr=1e30, warmup_epochs=1)
    config = change(config, "train", log_every=7)
    with pytest.raises(
        ValueError,
        match=r"step 3: the loss became (nan|inf); .*last.pt keeps the last good .* in a new --out",
    ) as e:
        train(config, tiny_file, tmp_path / "run")
    assert "\n" not in str(e.value)
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert saved["step"] == 0
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, tiny_file, tiny_config):
    """The loss of the last step was finite, but the weights after it are not."""
    config = change(tiny_config, "optim", name="sgd", base_lr=1e38, warmup_epochs=0.25, momentum=0.0)
    config = change(config, "train", epochs=1, checkpoint_minutes=1e-9)
    with pytest.raises(ValueError, match=r"step \d: the (weights|loss) became"):
        train(config, tiny_file, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_unwritable_run_folder(tmp_path, tiny_file, tiny_config, where):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OSError, match="file"):
        train(tiny_config, tiny_file, tmp_path / "file" / ("run" if where != "file" else ""))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".toml"] == ["file"]


def test_batch_larger_than_the_data(tmp_path, tiny_file, tiny_config):
    config = change(tiny_config, "train", batch_size=80)
    with pytest.raises(ValueError, match=r"79 images, fewer than a batch of 80; lower --train.batch-size"):
        train(config, tiny_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cores", "data", "train", "expected"),
    [
        (8, None, None, (1, 7)),
        (8, 3, None, (3, 5)),
        (8, None, 8, (1, 8)),
        (4, 6, None, (6, 1)),
        (2, None, None, (1, 2)),
        (1, None, None, (1, 1)),
    ],
)
def test_a_step_leaves_the_loader_its_cores(
    tiny_file, tiny_config, monkeypatch, cores, data, train, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    config = change(change(tiny_config, "train", threads=train), "data", threads=data)
    with BetonReader(tiny_file) as reader:
        config = resolve(config, reader, torch.device("cpu"))
    assert (config.data.threads, config.train.threads) == expected


def test_threads_are_given_back(tmp_path, tiny_file, tiny_config):
    torch.set_num_threads(2)
    train(change(tiny_config, "train", epochs=1, threads=1), tiny_file, tmp_path / "run")
    assert torch.get_num_threads() == 2


def test_metrics_are_valid_json(finished):
    for line in (finished[0] / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["loss"] > 0


def test_sinks_get_the_records_once_they_are_saved(tmp_path, tiny_file, tiny_config):
    seen = []

    def sink(record: dict) -> None:
        assert read_metrics(tmp_path / "run")[-1] == record
        seen.append(record)
        if record["step"] == 4:
            assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 4
            raise RuntimeError("the sink's own failure")
        record.clear()

    config = change(tiny_config, "train", epochs=1)
    with pytest.raises(RuntimeError, match="the sink's own"):
        train(config, tiny_file, tmp_path / "run", sinks=[sink])
    assert len(seen) == 4
