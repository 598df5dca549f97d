"""Every classifier in its smallest size on the digits: accuracy, parameters, cost, step time.

    python experiments/digits_zoo/run.py [PATTERN] [--workdir=runs/digits_zoo] [--config.steps=400]

Trains the "mu" variant of every file of lookupjax/models in turn by `configs/digits.py`, each in a process
and work directory of its own; what is finished is kept, what was interrupted goes on. Then writes
table.md and accuracy_macs.png into the work directory.
"""

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax import cli
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.analysis.plots import Point, labelled_scatter
from lookupjax.analysis.throughput import device_name
from lookupjax.errors import UserError
from lookupjax.models import MODULES, create_model, model_options, native_size
from lookupjax.training.metrics import read_metrics

HEAD = (
    "| model | input | test accuracy | parameters | million MACs | ms/step |\n|---|---|---:|---:|---:|---:|"
)


def is_classifier(name: str) -> bool:
    """Whether a call gives class logits of an image (embedding, restoration and video models do not)."""
    if model_options(name).get("channels", 3) != 3:  # a latent diffusion model
        return False
    if len(native_size(name)) != 2:
        return False
    model = nnx.eval_shape(lambda: create_model(name))
    images = jax.ShapeDtypeStruct((1, *native_size(name), 3), jnp.float32)
    logits = nnx.eval_shape(lambda m, x: m(x), model, images).get("logits")
    return logits is not None and logits.ndim == 2  # a captioner's are per word


def train(name: str, workdir: Path, overrides: list[str]) -> bool:
    """Trains one model unless it is finished; False when it failed (its message is printed)."""
    if (workdir / "results.json").exists():
        return True
    command = [sys.executable, "-m", "lookupjax.train", f"--config=configs/digits.py:{name}"]
    return subprocess.run([*command, f"--workdir={workdir}", *overrides]).returncode == 0


def row(name: str, workdir: Path) -> tuple[str, Point]:
    """The table's row of a finished run, and its point of the picture."""
    results = json.loads((workdir / "results.json").read_text())
    accuracy = next(iter(results.values()))["accuracy"]
    model, size = nnx.eval_shape(lambda: create_model(name, num_classes=10)), native_size(name)
    macs = count_products(trace_model(model, size))
    times = [r["time/step_ms"] for r in read_metrics(workdir) if "time/step_ms" in r]
    step = statistics.median(times)
    text = (
        f"| `{name}` | {size[0]}x{size[1]} | {accuracy:.4f} | {count_params(model):,} | {macs / 1e6:,.2f} "
        f"| {step:,.1f} |"
    )
    return text, Point(name.removesuffix("_mu"), macs, accuracy)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pattern", nargs="?", default="*", help="of the file names in lookupjax/models")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_zoo"))
    args, overrides = parser.parse_known_args(argv)
    names = [f"{name}_mu" for name in fnmatch.filter(MODULES, args.pattern)]
    names = [name for name in names if is_classifier(name)]
    if not names:
        raise UserError(f"no classifier matches {args.pattern!r}; there are {MODULES}")
    failed = []
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        if not train(name, args.workdir / name, overrides):
            failed.append(name)
    rows = {name: row(name, args.workdir / name) for name in names if name not in failed}
    ranked = sorted(rows.values(), key=lambda pair: -pair[1].accuracy)
    note = f"{device_name()}; MACs of one image, milliseconds of a training step (median over the run)."
    table = "\n".join([HEAD, *(text for text, _ in ranked), "", note])
    (args.workdir / "table.md").write_text(table + "\n")
    labelled_scatter([point for _, point in ranked], args.workdir / "accuracy_macs.png")
    print(table)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
