"""The comparison of trained runs: a Markdown table and pictures, in one directory."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from lookupjax.analysis import plots
from lookupjax.analysis.attention import footprints
from lookupjax.analysis.throughput import images_per_second
from lookupjax.grids import parse_grid

BATCH = 128  # images per measured call
SHOWN = 6  # images in the attention picture


@dataclass
class Run:
    """A trained model and what is known of it.

    evaluations: {"3x3": {"accuracy": ...}} per compressed grid, or under "" for a model without.
    history: rows of metrics.jsonl.
    """

    name: str
    model: nnx.Module
    evaluations: dict[str, dict[str, float]]
    history: list[dict]

    def contender(self, grid: str) -> str:
        return f"{self.name} {grid}".strip()

    def call(self, grid: str) -> dict:
        return {"compressed": parse_grid(grid)} if grid else {}


def write_report(runs: list[Run], images: np.ndarray, labels: np.ndarray, to: Path) -> Path:
    """Writes report.md and its pictures; `images` (n, h, w, c) and `labels` are test examples.

    Speeds are forward passes of this machine, all contenders interleaved in one run.
    """
    to.mkdir(parents=True, exist_ok=True)
    size = images.shape[1:-1]
    macs = {
        run.contender(g): run.model.macs(size, *run.call(g).values()) for run in runs for g in run.evaluations
    }
    speeds = _speeds(runs, images)
    reference = runs[-1].contender(next(iter(runs[-1].evaluations)))

    lines = [
        "| model | grid | test accuracy | million MACs | images/s | speed, relative |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        for grid, figures in run.evaluations.items():
            key = run.contender(grid)
            lines.append(
                f"| {run.name} | {grid or '-'} | {figures['accuracy']:.4f} | {macs[key] / 1e6:.2f} "
                f"| {speeds[key]:,.0f} | {speeds[key] / speeds[reference]:.2f}x |"
            )
    points = {
        run.name: [(g or run.name, macs[run.contender(g)], f["accuracy"]) for g, f in run.evaluations.items()]
        for run in runs
    }
    plots.learning_curves({run.name: run.history for run in runs}, to / "learning_curves.png")
    plots.accuracy_against_macs(points, to / "accuracy_macs.png")
    pictures = _attention_pictures(runs[0], images[:SHOWN], labels[:SHOWN], to)
    device = jax.devices()[0]
    text = [
        "# One model, several budgets",
        "",
        *lines,
        "",
        f"Speed: forward pass, batches of {min(BATCH, len(images))}, {device.device_kind}, medians of "
        f"interleaved rounds; relative to {reference}. On a shared machine only the ratios mean something.",
        "",
        "![test accuracy against cost](accuracy_macs.png)",
        "",
        "![learning curves](learning_curves.png)",
        "",
        *pictures,
    ]
    path = to / "report.md"
    path.write_text("\n".join(text) + "\n")
    return path


def _speeds(runs: list[Run], images: np.ndarray) -> dict[str, float]:
    batch = jax.numpy.asarray(images[:BATCH])
    contenders = {}
    for run in runs:
        graphdef, state = nnx.split(run.model)
        for grid in run.evaluations:
            call = run.call(grid)

            def forward(state, x, graphdef=graphdef, call=call):
                return nnx.merge(graphdef, state)(x, **call)["logits"]

            program = jax.jit(forward).lower(state, batch).compile()
            contenders[run.contender(grid)] = lambda program=program, state=state: program(state, batch)
    return images_per_second(contenders, len(batch))


def _attention_pictures(run: Run, images: np.ndarray, labels: np.ndarray, to: Path) -> list[str]:
    """One picture per compressed grid; returns their Markdown."""
    lines = []
    for grid in filter(None, run.evaluations):
        call = run.call(grid)
        predicted = run.model(jax.numpy.asarray(images), **call)["logits"].argmax(-1)
        maps = footprints(run.model, jax.numpy.asarray(images), **call)
        titles = [f"{label}, taken for {p}" for label, p in zip(labels, predicted)]
        name = f"attention_{grid}.png"
        plots.compressed_footprints(images, titles, np.asarray(maps), call["compressed"], to / name)
        lines += [
            f"Where each of the {grid} compressed tokens looks (last block, mean over heads):",
            "",
            f"![{grid}]({name})",
            "",
        ]
    return lines
