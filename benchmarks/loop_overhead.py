"""What the training loop costs beside the step itself.

    python benchmarks/loop_overhead.py [--vit_b] [--rounds=3] [--steps=60] [--config.key=value ...]

Alternates, in one process, blocks of bare calls of the compiled step on one batch with steady-state
blocks of the real loop (data pipeline, metrics, logging), and prints both medians and their ratio. The
model is quickstart's, whose step takes milliseconds, or with --vit_b a ViT-B/16 on digits of 224 pixels.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lookupjax.config import load_config
from lookupjax.data.loader import train_iterator
from lookupjax.train import use_compilation_cache
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.loop import train
from lookupjax.training.program import compile_steps
from lookupjax.training.progress import Reporter
from lookupjax.training.sharding import global_batch, make_mesh


def bare_step(experiment: Experiment, programs: dict, batch: dict, steps: int) -> float:
    """Seconds per step of the compiled step alone."""
    state = experiment.create_state()
    (program,) = programs.values()
    for _ in range(5):
        state, _ = program(state, batch)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = program(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps


def loop_step(experiment: Experiment) -> float:
    """Seconds per step of the loop, from the second log to the last before evaluation."""
    with tempfile.TemporaryDirectory() as workdir:
        train(experiment, Path(workdir), "loop")
        rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row][1:]
    return (rows[-1]["time"] - rows[0]["time"]) / (rows[-1]["step"] - rows[0]["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of each block, at least 6")
    parser.add_argument("--vit_b", action="store_true", help="ViT-B/16 at 224 pixels, batch 8")
    args, overrides = parser.parse_known_args()
    use_compilation_cache()
    log_every = min(10, args.steps // 3)
    fixed = [
        f"--config.steps={args.steps + 2 * log_every}",
        f"--config.log_every={log_every}",
        "--config.schedule.warmup_steps=0",
        "--config.eval_every=0",
        "--config.checkpoint.every=0",
        "--config.grids=((4,4),)",
    ]
    config = load_config("configs/quickstart.py", [*fixed, *overrides])
    if args.vit_b:
        config.model = ConfigDict(dict(name="vit_b16"))
        config.grids, config.baselines = (), ConfigDict()
        config.data.train_transforms = (dict(name="resize", size=(224, 224)), dict(name="normalize"))
        config.batch_size = 8
    config = resolve(config)
    experiment = Experiment(config, make_mesh(config.mesh))
    batch = global_batch(next(train_iterator(config.data, config.batch_size, config.seed)), experiment.mesh)
    programs = compile_steps(experiment, batch, Reporter("bare", 0, args.steps))
    bare, loop = [], []
    for _ in range(args.rounds):
        bare.append(bare_step(experiment, programs, batch, args.steps))
        loop.append(loop_step(experiment))
    a, b = statistics.median(bare), statistics.median(loop)
    spread = [y / x for x, y in zip(bare, loop)]
    device = jax.devices()[0].device_kind
    print(f"device {device}, {config.model.name}, batch {config.batch_size}, {args.rounds} rounds")
    print(f"bare step {1e3 * a:.2f} ms, in the loop {1e3 * b:.2f} ms, ratio of medians {b / a:.3f}")
    print("ratio per round " + " ".join(f"{r:.3f}" for r in spread))


if __name__ == "__main__":
    main()
