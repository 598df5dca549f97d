"""Training that is killed again and again: python benchmarks/soak.py [--steps=2000] [--kills=20]

Trains the quickstart's model, sends SIGKILL at random moments, starts again each time, and compares the
losses and parameters with those of a run that was never stopped. Prints the resident memory of each life,
soon after its first step and at its end. Exit status 1 if anything was lost.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import psutil

from lookupjax.paths import named_leaves
from lookupjax.training.metrics import read_metrics
from lookupjax.workdir import load_trained

LOG_EVERY, SAVE_EVERY, WARM = 10, 50, 30
MIB = 2**20


def start(workdir: Path, steps: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "lookupjax.train",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
    ]
    changes = {
        "steps": steps,
        "baselines": "{}",
        "report": False,
        "eval_every": 0,
        "log_every": LOG_EVERY,
        "checkpoint.every": SAVE_EVERY,
    }
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row}


def live(workdir: Path, steps: int, until: int | None) -> tuple[int, list[int]]:
    """Runs until some step after `until` (None: the end); (the last step seen, resident bytes sampled)."""
    process, resident = start(workdir, steps), []
    watched, first = psutil.Process(process.pid), None
    while process.poll() is None:
        time.sleep(0.2)
        step = max(losses(workdir), default=0) if (workdir / "metrics.jsonl").exists() else 0
        first = step if first is None and (workdir / "attempts.json").exists() else first
        try:
            now = watched.memory_info().rss  # 0 once it has ended
            if now and step > (first or 0) + WARM:
                resident.append(now)
        except psutil.NoSuchProcess:
            break
        if until is not None and step >= until:
            time.sleep(random.random())
            process.send_signal(signal.SIGKILL)
            break
    status = process.wait()
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"the training failed with status {status}")
    return max(losses(workdir)), resident


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    _, part = load_trained(workdir)
    return {name: np.asarray(jax.device_get(x)) for name, x in named_leaves(part["params"]).items()}


def report_memory(life: str, resident: list[int]) -> None:
    if resident:
        ends = f"{resident[0] / MIB:.0f} -> {resident[-1] / MIB:.0f} MiB, most {max(resident) / MIB:.0f}"
        print(f"{life}: resident memory {ends}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.mkdtemp(prefix="lookupjax-soak-")))
    args = parser.parse_args()
    random.seed(args.seed)
    killed, whole = args.workdir / "killed", args.workdir / "whole"
    began = time.perf_counter()
    moments = sorted(random.sample(range(1, args.steps * 3 // 4), args.kills))
    for number, until in enumerate(moments, start=1):
        step, resident = live(killed, args.steps, until)
        report_memory(f"SIGKILL {number} after step {step}", resident)
    _, resident = live(killed, args.steps, None)
    report_memory(f"last life, to step {args.steps}", resident)
    print(f"{args.kills} kills and {args.steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
    _, resident = live(whole, args.steps, None)
    report_memory("never stopped", resident)
    ours, theirs = losses(killed), losses(whole)
    expected = list(range(LOG_EVERY, args.steps + 1, LOG_EVERY))
    once = [row["step"] for row in read_metrics(killed) if "train/loss" in row] == expected
    same = ours == theirs
    a, b = parameters(killed), parameters(whole)
    equal = a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    print(
        f"every log of every {LOG_EVERY} steps there once: {once}; losses equal bit for bit: {same}; ", end=""
    )
    print(f"final parameters equal bit for bit: {equal}")
    return int(not (once and same and equal))


if __name__ == "__main__":
    sys.exit(main())
