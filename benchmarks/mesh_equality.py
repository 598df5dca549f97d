"""One config, one seed, every mesh and process count: python benchmarks/mesh_equality.py [--steps=20]

Trains the same small LookupViT on meshes 1x1x1, 8x1x1, 2x4x1, 2x2x2 of pretended CPU devices and as two
processes of two devices, and compares every loss (1e-5 relative) and the evaluation (equal) with the first.
Exit status 1 on a difference.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from lookupjax.training.metrics import read_metrics

CONFIG = [
    "--config=configs/quickstart.py",
    "--config.grids=((2,2),(4,4))",
    "--config.baselines={}",
    "--config.report=False",
    "--config.eval_batch_size=200",
    "--config.eval_every=0",
    "--config.log_every=1",
    "--config.checkpoint.every=0",
    "--config.schedule.warmup_steps=5",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    "--config.ema=0.9",
]
SETUPS = [("1x1x1", 1), ("8x1x1", 1), ("2x4x1", 1), ("2x2x2", 1), ("2x2x1", 2)]  # mesh, processes


def train(mesh: str, processes: int, steps: int, workdir: Path) -> None:
    sizes = [int(n) for n in mesh.split("x")]
    devices = sizes[0] * sizes[1] * sizes[2] // processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "lookupjax.train", f"--workdir={workdir}", *CONFIG]
    command += [f"--config.mesh.{axis}={n}" for axis, n in zip(("data", "fsdp", "model"), sizes)]
    command += [f"--config.steps={steps}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    job = []
    for i in range(processes):
        more = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={i}"]
        flags = more if processes > 1 else []
        job.append(subprocess.Popen([*command, *flags], env=environment, stderr=subprocess.DEVNULL))
    if any([process.wait() for process in job]):
        raise SystemExit(f"the training on {mesh} failed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    root, wrong = Path(tempfile.mkdtemp(prefix="lookupjax-meshes-")), False
    for mesh, processes in SETUPS:
        workdir = root / f"{mesh}-{processes}"
        train(mesh, processes, args.steps, workdir)
        losses = [row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row]
        results = json.loads((workdir / "results.json").read_text())
        if (mesh, processes) == SETUPS[0]:
            first, expected = losses, results
        off = max(abs(a - b) / abs(b) for a, b in zip(losses, first, strict=True))
        counted = {call: (f["accuracy"], f["top5"], f["examples"]) for call, f in results.items()}
        same = counted == {call: (f["accuracy"], f["top5"], f["examples"]) for call, f in expected.items()}
        nll = max(abs(results[c]["nll"] / expected[c]["nll"] - 1.0) for c in expected)
        wrong |= off > 1e-5 or not same or nll > 1e-5
        setup = f"mesh {mesh}, {processes} process{'es' if processes > 1 else ''}"
        print(f"{setup}: {len(losses)} losses within {off:.1e} (relative), nll within {nll:.1e}; ", end="")
        print(f"accuracy, top5 and examples equal: {same}", flush=True)
    print(f"last loss {first[-1]:.6f}, evaluation {expected}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
