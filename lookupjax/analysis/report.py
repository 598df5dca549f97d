"""The comparison of trained runs: a Markdown table and pictures, in one directory."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.analysis import plots
from lookupjax.analysis.attention import footprints
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.analysis.throughput import Speed, device_name, distinct, images_per_second
from lookupjax.files import write_whole
from lookupjax.grids import parse_grid

SHOWN = 4  # images in an attention picture
MEASURED_MACS, MOST_IMAGES = 2e10, 128  # of one measured call: bounds of its batch


@dataclass
class Run:
    """A trained model and what is known of it.

    evaluations: {"3x3": {"accuracy": ...}} per compressed grid, or under "" for a model without; with
      the number of "examples" the pictures show standard errors.
    history: rows of metrics.jsonl, such as {"step": 10, "train/loss": 1.2, "eval/3x3/accuracy": 0.8}.
    """

    name: str
    model: nnx.Module
    evaluations: dict[str, dict[str, Any]]
    history: list[dict]

    def contender(self, grid: str) -> str:
        return f"{self.name} {grid}".strip()

    def call(self, grid: str) -> dict[str, tuple[int, ...]]:
        return {"compressed": parse_grid(grid)} if grid else {}


def write_report(runs: list[Run], images: np.ndarray, labels: np.ndarray, to: Path) -> Path:
    """Writes report.md and its pictures into `to`; returns the path of report.md.

    Everything is compared with the first run without compressed grids, else with the last of all.
    Speeds are forward passes on this machine, all contenders interleaved.

    Args:
      images, labels: (n, h, w, c), or clips (n, t, h, w, c), and (n,) test examples as the models take them.
    """
    to.mkdir(parents=True, exist_ok=True)
    runs = distinct(runs)
    size, channels = images.shape[1:-1], images.shape[-1]
    macs = {
        run.contender(grid): count_products(trace_model(run.model, size, channels, **run.call(grid)))
        for run in runs
        for grid in run.evaluations
    }
    examples = images[:SHOWN], labels[:SHOWN]
    batch = jnp.asarray(images[: int(np.clip(MEASURED_MACS // max(macs.values()), 1, MOST_IMAGES))])
    speeds = _speeds(runs, batch)
    plain = [run for run in runs if "" in run.evaluations]
    reference = plain[0].contender("") if plain else list(macs)[-1]

    plots.learning_curves({run.name: run.history for run in runs}, to / "learning_curves.png")
    plots.accuracy_against_macs({run.name: _points(run, macs) for run in runs}, to / "accuracy_macs.png")
    text = [
        "# One model, several budgets",
        "",
        *_table(runs, macs, speeds, reference),
        "",
        "MACs: multiply-accumulates of the matrix products and convolutions for one image, counted in the "
        f"program. Speed: forward passes in batches of {len(batch)} on {device_name()}; median of "
        "interleaved rounds, ± half the distance between their quartiles. On a shared machine only the "
        "ratios mean something.",
        "",
        "![test accuracy against cost](accuracy_macs.png)",
        "",
        "![learning curves](learning_curves.png)",
        "",
    ]
    for number, run in enumerate(runs, start=1):
        text += _attention_pictures(run, "attention" if number == 1 else f"attention{number}", examples, to)
    path = to / "report.md"
    write_whole(path, "\n".join(text))
    return path


def _table(runs: list[Run], macs: dict[str, int], speeds: dict[str, Speed], reference: str) -> list[str]:
    lines = [
        f"| model | grid | parameters | test accuracy | million MACs | of {reference} | images/s | speed |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        for grid, figures in run.evaluations.items():
            key = run.contender(grid)
            speed = speeds[key]
            lines.append(
                f"| {run.name} | {grid or '-'} | {count_params(run.model):,} | {figures['accuracy']:.4f} "
                f"| {macs[key] / 1e6:,.2f} | {macs[key] / macs[reference]:.0%} "
                f"| {speed.median:,.0f} ± {(speed.high - speed.low) / (2 * speed.median):.0%} "
                f"| {speed.median / speeds[reference].median:.2f}x |"
            )
    return lines


def _points(run: Run, macs: dict[str, int]) -> list[plots.Point]:
    return [
        plots.accuracy_point(grid or run.name, macs[run.contender(grid)], figures)
        for grid, figures in run.evaluations.items()
    ]


def _speeds(runs: list[Run], batch: jax.Array) -> dict[str, Speed]:
    contenders = {}
    for run in runs:
        graphdef, state = nnx.split(run.model)
        for grid in run.evaluations:
            call = run.call(grid)

            def forward(state, images, graphdef=graphdef, call=call):
                return nnx.merge(graphdef, state, copy=True)(images, **call)["logits"]

            program = jax.jit(forward).lower(state, batch).compile()
            contenders[run.contender(grid)] = lambda program=program, state=state: program(state, batch)
    return images_per_second(contenders, len(batch))


def _attention_pictures(run: Run, stem: str, examples: tuple[np.ndarray, np.ndarray], to: Path) -> list[str]:
    """One picture per compressed grid, and one of the first block; returns their Markdown."""
    images, labels = examples
    if images.ndim == 5:
        return _attention_strips(run, stem, examples, to)
    grids = list(filter(None, run.evaluations))
    shown = [(grid, -1, "last block", f"{stem}_{grid}.png") for grid in grids]
    shown += [(grid, 0, "first block", f"{stem}_{grid}_first_block.png") for grid in grids[-1:]]
    inputs, lines = jnp.asarray(images), []
    for grid, block, where, name in shown:
        call = run.call(grid)
        predicted = np.asarray(run.model(inputs, **call)["logits"].argmax(-1))
        maps = np.asarray(footprints(run.model, inputs, **call, block=block))
        titles = [f"{label}, taken for {guess}" for label, guess in zip(labels, predicted)]
        plots.compressed_footprints(images, titles, maps, call["compressed"], to / name)
        lines += [
            f"Where each of the {grid} compressed tokens of {run.name} looks ({where}, mean over heads):",
            "",
            f"![{grid}, {where}]({name})",
            "",
        ]
    return lines


def _attention_strips(run: Run, stem: str, examples: tuple[np.ndarray, np.ndarray], to: Path) -> list[str]:
    """For a LookupViT on clips: when and where the compressed tokens look, one clip per picture."""
    lines: list[str] = []
    grids = list(run.evaluations) if hasattr(run.model, "check_grid") else []
    shown = [(grid, -1, "last block", "") for grid in grids]
    shown += [(grid, 0, "first block", "_first_block") for grid in grids[-1:]]
    for grid, block, where, suffix in shown:
        call, name = run.call(grid), "_".join(filter(None, (stem, grid))) + f"{suffix}.png"
        clip, label = jnp.asarray(examples[0][:1]), examples[1][0]
        guess = int(run.model(clip, **call)["logits"].argmax())
        maps = np.asarray(footprints(run.model, clip, **call, block=block)[0])
        layout = run.model.check_grid(call.get("compressed", run.model.compressed))
        layout = (len(maps) // math.prod(layout[1:]), *layout[1:])  # a model per frame: all frames' tokens
        title = f"frames of a clip of class {label}, taken for {guess}"
        plots.attention_strips(np.asarray(clip[0]), title, maps, layout, to / name)
        lines += [
            f"Where and when each compressed token of {run.name} {grid} looks ({where}, mean over heads):",
            "",
            f"![{grid or 'attention over time'}, {where}]({name})",
            "",
        ]
    return lines
