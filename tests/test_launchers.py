"""The launchers print what they would run, and what they print is what a shell would start."""

import json
import re
import shlex
import subprocess

import pytest

from experiments import sweep
from lookupjax.errors import UserError

OVERRIDE = "--config.grids=((2,2),)"
LAUNCHERS = {
    "tpu_vm": ["--name=pod", "--zone=us-east5-a"],
    "slurm": ["--nodes=4", "--gpus=8"],
    "gke": ["--cluster=c", "--tpu=v5litepod-256"],
    "local": ["--processes=2", "--devices=8"],
}


def launch(root, name, *arguments):
    command = ["bash", f"scripts/launch_{name}", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def words(text: str) -> list[str]:
    """All words of a command, those of the commands quoted inside it too."""
    found = []
    for word in shlex.split(text):
        found += [word] if word in text.split() or " " not in word else words(word.replace("&&", " "))
    return found


@pytest.mark.parametrize("name", LAUNCHERS)
def test_dry_run_prints_the_training_command(root, name):
    done = launch(root, name, *LAUNCHERS[name], "--dry-run", "configs/quickstart.py", "runs/x", OVERRIDE)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    inner = words(last)
    assert {"lookupjax.train", "--config=configs/quickstart.py", "--workdir=runs/x", OVERRIDE} <= set(inner)


def test_local_processes_share_the_devices(root):
    done = launch(root, "local", *LAUNCHERS["local"], "--dry-run", "configs/quickstart.py", "runs/x")
    lines = done.stdout.splitlines()
    assert re.findall(r"JAX_LOCAL_DEVICE_IDS=([\d,]+)", done.stdout) == ["0,1,2,3", "4,5,6,7"]
    assert [f"--process_id={i}" in line for i, line in enumerate(lines)] == [True, True]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--nodes=4", "c.py", "w"], "--gpus is missing"),
        (["--nodes=4", "--gpus=8", "--nods=3", "c.py", "w"], "unknown option --nods"),
        (["--nodes=4", "--gpus=8", "c.py"], "Usage: scripts/launch_slurm"),
    ],
)
def test_wrong_options_show_the_usage(root, arguments, complaint):
    done = launch(root, "slurm", *arguments)
    assert done.returncode == 2 and complaint in done.stderr


def test_sweep_skips_resumes_and_collects(root, tmp_path, monkeypatch, capsys):
    """One run fails the first time; the second start runs that one alone. `train` is replaced here."""
    monkeypatch.chdir(root)
    started = []

    def train(command):
        workdir = next(word for word in command if word.startswith("--workdir=")).partition("=")[2]
        seed = int(next(word for word in command if word.startswith("--config.seed=")).partition("=")[2])
        started.append(seed)
        path = sweep.Path(workdir)
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        if seed == 1 and started.count(1) == 1:
            return subprocess.CompletedProcess(command, 1)
        (path / "results.json").write_text(json.dumps({"2x2": {"accuracy": 0.5 + seed, "examples": 360}}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sweep.subprocess, "run", train)
    arguments = ["--config=configs/quickstart.py", f"--workdir={tmp_path}", "seed=0;1", "--config.steps=9"]
    assert sweep.main(arguments) == 1 and started == [0, 1]
    assert "failed: seed=1" in capsys.readouterr().err
    assert sweep.main(arguments) == 0 and started == [0, 1, 1]
    assert "[2/2] seed=1: goes on" in capsys.readouterr().out
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["run"], row["call"], row["accuracy"]) for row in rows] == [
        ("seed=0", "2x2", 0.5),
        ("seed=1", "2x2", 1.5),
    ]
    assert "| 1 | 2x2 | 1.5000 | 360 |" in (tmp_path / "sweep.md").read_text()


def test_sweep_names_and_errors(root, monkeypatch):
    monkeypatch.chdir(root)
    runs = sweep.expand(["optimizer.learning_rate=1e-3;3e-3", "grids=((2,2),);((3,3),)"])
    assert len(runs) == 4 and all(re.fullmatch(r"[\w.,=+-]+", name) for name in runs)
    for text in ("config.seed=0;1", "--config.seed=0;1"):
        assert sweep.expand([text]) == sweep.expand(["seed=0;1"])
    with pytest.raises(UserError, match="each value once"):
        sweep.expand(["seed=1;1"])
    with pytest.raises(UserError, match="write an axis"):
        sweep.expand(["seed"])
    with pytest.raises(UserError, match="did you mean 'seed'"):
        sweep.main(["--config=configs/quickstart.py", "--workdir=w", "sed=1"])
