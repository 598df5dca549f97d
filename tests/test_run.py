"""Whole runs, in real processes where it matters: train, kill, resume, evaluate, predict, what goes wrong."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax import cli
from lookupjax.config import apply_changes
from lookupjax.errors import UserError
from lookupjax.training.metrics import read_metrics
from lookupjax.workdir import begun, open_workdir, read_config

TINY = [
    "--config=configs/quickstart.py",
    "--config.model.dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.grids=(2,2),(3,3)",
    "--config.baselines={}",
    "--config.report=False",
    "--config.batch_size=16",
    "--config.steps=40",
    "--config.schedule.warmup_steps=5",
    "--config.eval_every=0",
    "--config.log_every=1",
    "--config.checkpoint.every=5",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    return os.environ | {"JAX_PLATFORMS": "cpu", "LOOKUPJAX_DATA": str(data)}


def command(module, *arguments):
    return [sys.executable, "-m", f"lookupjax.{module}", *map(str, arguments)]


@pytest.fixture(scope="module")
def call(environment, root):
    def call(module, *arguments, **changes):
        return subprocess.run(
            command(module, *arguments),
            cwd=root,
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


@pytest.fixture
def call_here(environment, root, monkeypatch, capsys):
    """`call`, without a process of its own: for the ends that need none."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("LOOKUPJAX_DATA", environment["LOOKUPJAX_DATA"])
    monkeypatch.setattr("lookupjax.training.distributed.start", lambda args: None)  # jax has started here
    monkeypatch.setattr("lookupjax.train.use_compilation_cache", lambda: None)

    def call(module, *arguments):
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(importlib.import_module(f"lookupjax.{module}").main)
        return subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())

    return call


def train(call, workdir, *more):
    return call("train", *TINY, f"--workdir={workdir}", *more)


@pytest.fixture(scope="module")
def trained(call, tmp_path_factory):
    """A finished run, never interrupted."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = train(call, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    import jax

    from lookupjax.paths import named_leaves
    from lookupjax.workdir import load_trained

    _, part = load_trained(workdir)
    return {name: np.asarray(jax.device_get(x)) for name, x in named_leaves(part["params"]).items()}


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in read_metrics(workdir) if "train/loss" in row]


def starts(workdir: Path) -> list[dict]:
    path = workdir / "attempts.json"
    return json.loads(path.read_text()) if path.exists() else []


def assert_same_run(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    ours, theirs = parameters(a), parameters(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_kill_at_arbitrary_moments_and_resume_is_bit_identical(call, environment, root, trained, tmp_path):
    """SIGKILL while compiling, and after some step appeared in the metrics, whatever is being saved."""
    for target in (0, 12, 26):
        process = subprocess.Popen(
            command("train", *TINY, f"--workdir={tmp_path}"),
            cwd=root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (
            starts(tmp_path) and (losses(tmp_path) or [(0,)])[-1][0] >= target
        ):
            time.sleep(0.005)
        if target == 0:
            other = apply_changes(read_config(tmp_path), {"seed": 7})
            with (
                pytest.raises(UserError, match="seed: 0 -> 7"),
                open_workdir(tmp_path, other, override=False),
            ):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target == 0:
            assert not losses(tmp_path) and not list((tmp_path / "checkpoints").iterdir())
    done = train(call, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr and "in 4 starts" in done.stderr
    assert_same_run(trained, tmp_path)


def test_sigterm_saves_the_current_step(call, environment, root, trained, tmp_path):
    process = subprocess.Popen(
        command("train", *TINY, f"--workdir={tmp_path}", "--config.checkpoint.every=0"),
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while process.poll() is None and not losses(tmp_path):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "SIGTERM: saved step" in out
    step = int(out.split("saved step ")[1].split(";")[0])
    assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir()] == [step]
    done = train(call, tmp_path, "--config.checkpoint.every=0")
    assert f"resuming at step {step}" in done.stderr
    assert losses(trained) == losses(tmp_path)


def test_evaluate_repeats_the_training_figures(call, call_here, trained):
    done = call("evaluate", f"--workdir={trained}", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    stored = json.loads((trained / "results.json").read_text())
    assert results == stored and set(results) == {"2x2", "3x3"}
    assert results["3x3"]["examples"] == 360
    other = call_here("evaluate", f"--workdir={trained}", "--compressed=4x4", "--json")
    assert set(json.loads(other.stdout)) == {"4x4"}


@pytest.mark.parametrize(
    "grid, complaint",
    [
        ("5by5", "'5by5' is not a grid"),
        ("99x99", "larger than the 8x8 lookup grid"),
        ("3", "needs 2 positive lengths"),
    ],
)
def test_bad_grids(call_here, trained, grid, complaint):
    done = call_here("evaluate", f"--workdir={trained}", f"--compressed={grid}")
    assert done.returncode == 2 and complaint in done.stderr and "Traceback" not in done.stderr


def test_predict_goes_on_after_bad_files(call, trained, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    cv2.imwrite(str(good), np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8))
    bad.write_text("no image")
    picture = tmp_path / "map.png"
    done = call(
        "predict",
        f"--workdir={trained}",
        bad,
        tmp_path / "missing.png",
        good,
        "--compressed=3x3",
        f"--attention_map={picture}",
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {bad}: not an image" in done.stderr and "missing.png: No such file" in done.stderr
    assert f"{good}: " in done.stdout and "%" in done.stdout
    assert cv2.imread(str(picture)).shape[0] > 100


def test_metrics_are_readable_by_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    events = [(e.step, e.value) for e in board.Scalars("train/loss")]
    np.testing.assert_allclose(events, losses(trained), rtol=1e-6)
    assert {"time/data_ms", "time/step_ms", "time/checkpoint_ms"} <= set(board.Tags()["scalars"])


def test_a_work_directory_of_another_config_is_refused(call, call_here, trained, tmp_path):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    before = (workdir / "config.json").read_text()
    done = train(call_here, workdir, "--config.optimizer.learning_rate=0.5")
    assert done.returncode == 2 and "optimizer.learning_rate: 0.003 -> 0.5" in done.stderr
    assert "--override" in done.stderr and (workdir / "config.json").read_text() == before
    done = train(call, workdir, "--config.optimizer.learning_rate=0.5", "--override")
    assert done.returncode == 0, done.stderr


def test_a_damaged_checkpoint_is_skipped(call, trained, tmp_path):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    newest, previous = sorted((int(p.name) for p in (workdir / "checkpoints").iterdir()), reverse=True)
    for path in (workdir / "checkpoints" / str(newest) / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = train(call, workdir)
    assert done.returncode == 0, done.stderr
    assert (
        f"checkpoint {newest} cannot be used" in done.stderr and f"resuming at step {previous}" in done.stderr
    )
    assert (workdir / "damaged_checkpoints" / str(newest)).is_dir()
    assert_same_run(trained, workdir)


def test_a_loss_that_is_not_finite_stops_the_run(call, tmp_path):
    done = train(call, tmp_path, "--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the loss is" in done.stderr and "at step" in done.stderr
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--config.model.dimm=3"], "has no option 'dimm' (did you mean 'dim'?)"),
        (["--config.optimiser.b1=3"], "there is no config.optimiser (did you mean 'optimizer'?)"),
        (["--config.grids=((99,99),)"], "larger than the 8x8 lookup grid"),
        (["--config.data.name=digit"], "did you mean 'digits'"),
        (["--config.steps=many"], "config.steps needs a value of type int"),
        (["--config.batch_size=17", "--config.accumulate=2"], "use a multiple of"),
        (["--confg.steps=3"], "unknown argument '--confg.steps=3'"),
        (["--config=configs/quikstart.py"], "did you mean 'configs/quickstart.py'"),
    ],
)
def test_bad_configs_are_one_sentence(call_here, tmp_path, arguments, complaint):
    done = train(call_here, tmp_path / "w", *arguments)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr and "Traceback" not in done.stderr
    assert not begun(tmp_path / "w")


def test_an_unwritable_work_directory(call, call_here, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(call, tmp_path / "file" / "w")
    assert done.returncode == 2 and "cannot write to" in done.stderr and "Traceback" not in done.stderr
    done = call_here("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "is not a work directory" in done.stderr


def test_a_run_claims_its_directory_until_it_fails_before_a_step(tmp_path):
    """Pretends to start and to end runs; `mistyped` fails before its first step."""
    mistyped, right, other = (ConfigDict({"dim": dim}) for dim in (63, 64, 65))

    def start(config: ConfigDict, *, error: str = "") -> None:
        with open_workdir(tmp_path, config, override=False):
            for refused in {mistyped.dim, right.dim, other.dim} - {config.dim}:
                complaint = pytest.raises(UserError, match=f"dim: {config.dim} -> {refused}")
                with complaint, open_workdir(tmp_path, ConfigDict({"dim": refused}), override=False):
                    pass
            (tmp_path / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "metrics.jsonl").touch()
            (tmp_path / "tokenizer.model").touch()
            if error:
                raise UserError(error)

    for _ in range(2):
        with pytest.raises(UserError, match="no dim 63"):
            start(mistyped, error="no dim 63")
    assert not (tmp_path / "tokenizer.model").exists()  # of the mistyped config, perhaps
    start(right)
    assert read_config(tmp_path) == right
    with pytest.raises(UserError, match="dim: 64 -> 63"):
        start(mistyped)
    with pytest.raises(UserError, match="disk"):
        start(right, error="disk")
    with pytest.raises(UserError, match="dim: 64 -> 63"):
        start(mistyped)

    for name in ("attempts.json", "tokenizer.model"):
        (tmp_path / name).unlink()
    (tmp_path / "metrics.jsonl").write_text("{}\n")  # of a version that claimed nothing
    with pytest.raises(UserError, match="dim: 64 -> 65"):
        start(other)
