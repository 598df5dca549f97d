"""Jobs of two real processes with two devices each (gloo): training that is killed, stopped, resumed in one
process, and evaluation.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax import evaluate
from lookupjax.config import apply_changes, default_config
from lookupjax.evaluation.predictions import COLUMNS, read_predictions
from lookupjax.training.checkpoint import Checkpoints
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.metrics import read_metrics
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import open_workdir

TINY = [
    "--config=configs/quickstart.py",
    "--config.model.dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.grids=((2,2),)",
    "--config.baselines={}",
    "--config.report=False",
    "--config.batch_size=16",
    "--config.eval_batch_size=100",  # 360 examples: the last batch holds 60
    "--config.steps=30",
    "--config.schedule.warmup_steps=5",
    "--config.eval_every=0",
    "--config.log_every=1",
    "--config.checkpoint.every=5",
    "--config.mesh.fsdp=2",
]
HEARTBEAT = 10  # seconds


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "LOOKUPJAX_DATA": str(tmp_path_factory.mktemp("data")),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }


def start(
    environment, root, workdir: Path, processes: int, module: str = "train", arguments: Sequence[str] = TINY
) -> list[subprocess.Popen]:
    """The processes of one job over four devices; process i writes to workdir/log.i."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workdir.mkdir(exist_ok=True)
    job = []
    for i in range(processes):
        flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={i}"]
        command = [sys.executable, "-m", f"lookupjax.{module}", f"--workdir={workdir}", *arguments]
        if processes > 1:
            command += [*flags, f"--heartbeat_timeout={HEARTBEAT}"]
        with (workdir / f"log.{i}").open("w") as log:
            changes = {"JAX_NUM_CPU_DEVICES": str(4 // processes)}
            job.append(subprocess.Popen(command, cwd=root, env=environment | changes, stdout=log, stderr=log))
    return job


def finish(job: list[subprocess.Popen], workdir: Path, limit: float = 240) -> list[int]:
    """Exit statuses; fails, with the logs, when the job does not end by itself within `limit` seconds."""
    try:
        return [process.wait(timeout=limit) for process in job]
    except subprocess.TimeoutExpired:
        for process in job:
            process.kill()
        pytest.fail("the job did not end:\n" + "\n".join(log(workdir, i)[-3000:] for i in range(len(job))))


def log(workdir: Path, process: int) -> str:
    return (workdir / f"log.{process}").read_text()


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row}


def wait_for_step(job: list[subprocess.Popen], workdir: Path, step: int) -> None:
    while all(process.poll() is None for process in job) and max(losses(workdir), default=0) < step:
        time.sleep(0.02)


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def run(environment, root, workdir: Path, processes: int) -> None:
    assert finish(start(environment, root, workdir, processes), workdir) == [0] * processes, log(workdir, 0)


@pytest.fixture(scope="module")
def reference(environment, root, tmp_path_factory):
    """The same run in one process, never interrupted."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    run(environment, root, workdir, 1)
    return workdir


def test_two_processes_killed_stopped_and_resumed_as_one(environment, root, reference, tmp_path):
    """SIGKILL of one process, a new start, SIGTERM, then one process: the same run as never stopped."""
    job = start(environment, root, tmp_path, 2)
    wait_for_step(job, tmp_path, 6)
    job[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    statuses = finish(job, tmp_path, limit=3 * HEARTBEAT + 30)
    print(f"SIGKILL of process 1: the other ended {time.monotonic() - began:.1f} s later")
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, 143)

    job = start(environment, root, tmp_path, 2)
    wait_for_step(job, tmp_path, 16)
    job[1].send_signal(signal.SIGTERM)
    assert finish(job, tmp_path) == [143, 143], log(tmp_path, 0)
    step = int(re.search(r"SIGTERM: saved step (\d+)", log(tmp_path, 0))[1])
    assert 16 <= step < 30 and checkpoints(tmp_path)[-1] == step
    assert "saved step" not in log(tmp_path, 1)  # process 0 speaks for the job

    run(environment, root, tmp_path, 1)
    assert f"resuming at step {step}" in log(tmp_path, 0)
    ours, theirs = losses(tmp_path), losses(reference)
    assert sorted(ours) == sorted(theirs) == list(range(1, 31))
    np.testing.assert_allclose([ours[s] for s in theirs], list(theirs.values()), rtol=1e-5)
    ours, theirs = (json.loads((w / "results.json").read_text())["2x2"] for w in (tmp_path, reference))
    assert ours["examples"] == 360 and ours["accuracy"] == theirs["accuracy"]
    assert ours == pytest.approx(theirs, rel=1e-5)


COUNT = 21  # videos: no multiple of a batch, in the last of which process 1 has none
VIDEO = {
    "model": dict(name="lookupvit_video_mu", dim=16, depth=1, compressed=(2, 2, 2)),
    "data.name": "moving_digits",
    "data.channels": 1,
    "data.eval_split": f"test[:{COUNT}]",
    "data.eval_transforms": (
        dict(name="split_frames", frames=8),
        dict(name="even_clips", frames=4, stride=2),
        dict(name="spatial_crops", size=(16, 16), crop_pct=0.5, crops=1),
        dict(name="normalize"),
    ),
    "eval_batch_size": 16,
    "evaluators": {"views": {"type": "multiview", "clips": 2, "crops": 3}},
}


@pytest.fixture(scope="module")
def untrained(environment, tmp_path_factory):
    """The work directory of a video model with a checkpoint of random parameters."""
    workdir = tmp_path_factory.mktemp("video") / "run"
    config = resolve(apply_changes(default_config(), VIDEO | {"data.dir": environment["LOOKUPJAX_DATA"]}))
    experiment = Experiment(config, make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1))))
    random = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jax.device_put(random.normal(0, 0.3, x.shape).astype(x.dtype), x.sharding),
        experiment.abstract_state,
    )
    with (
        open_workdir(workdir, config, override=False),
        Checkpoints(workdir / "checkpoints", config.checkpoint) as c,
    ):
        c.save(1, state, {"next_index": 1})
    return workdir


def written(workdir: Path) -> list[str]:
    return sorted(str(path.relative_to(workdir)) for path in (workdir / "evaluation").rglob("*.*"))


def test_two_processes_evaluate_as_one(environment, root, untrained, tmp_path, capsys):
    """Figures, predictions and the logits of several views of videos; process 0 alone prints and writes."""
    workdir = tmp_path / "run"
    shutil.copytree(untrained, workdir)
    job = start(environment, root, workdir, 2, "evaluate", ["--json"])
    assert evaluate.main([f"--workdir={untrained}", "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)[""]
    assert finish(job, workdir) == [0, 0], log(workdir, 0) + log(workdir, 1)
    assert "accuracy" not in log(workdir, 1)
    text = log(workdir, 0)  # after a few lines of Gloo
    ours = json.loads(text[text.index("{") :])[""]
    assert ours["examples"] == ours["views/examples"] == COUNT and ours["views/views"] == 6
    assert ours == pytest.approx(theirs, rel=1e-5)

    files = [
        f"evaluation/figures/predictions_moving_digits_test[:{COUNT}]_model.npz",
        "evaluation/views/views_model.npz",
    ]
    assert written(workdir) == written(untrained) == files
    mine, one = (read_predictions(place / files[0]) for place in (workdir, untrained))
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(mine, name), getattr(one, name), rtol=1e-4)
    assert mine.pictures == one.pictures
    mine, one = (np.load(place / files[1]) for place in (workdir, untrained))
    assert set(mine) == set(one) and mine["logits"].shape == (COUNT, 6, 4)
    assert np.ptp(one["logits"], axis=(0, 1)).max() > 0.01
    for name in one:
        np.testing.assert_allclose(mine[name], one[name], atol=1e-4)
