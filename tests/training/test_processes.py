"""A job of two real processes with two devices each (gloo): killed, stopped, resumed in one process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lookupjax.training.metrics import read_metrics

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


def start(environment, root, workdir: Path, processes: int) -> list[subprocess.Popen]:
    """The processes of one job over four devices; process i writes to workdir/log.i."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workdir.mkdir(exist_ok=True)
    job = []
    for i in range(processes):
        flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={i}"]
        command = [sys.executable, "-m", "lookupjax.train", f"--workdir={workdir}", *TINY]
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
