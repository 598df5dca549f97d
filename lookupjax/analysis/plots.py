"""Pictures of runs and of attention. Every function writes one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, colour-blind safe
TEXT = {"fontsize": 12}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


def _tidy(axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, **TEXT)
    axes.set_ylabel(ylabel, **TEXT)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def learning_curves(histories: dict[str, list[dict]], path: Path) -> None:
    """Training loss and test accuracy over steps; `histories` holds the rows of metrics.jsonl by run."""
    figure = Figure(figsize=(11, 4))
    losses, accuracies = figure.subplots(1, 2)
    styles = ("-", "--", ":", "-.")
    for colour, (name, rows) in zip(COLOURS, histories.items()):
        points = [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r]
        losses.plot(*zip(*points), color=colour, label=name)
        keys = sorted({k for r in rows for k in r if k.startswith("eval/") and k.endswith("/accuracy")})
        for style, key in zip(styles, reversed(keys)):
            points = [(r["step"], r[key]) for r in rows if key in r]
            grid = key.removeprefix("eval").removesuffix("/accuracy").strip("/")
            accuracies.plot(
                *zip(*points), color=colour, ls=style, marker="o", ms=4, label=f"{name} {grid}".strip()
            )
    losses.set_ylim(bottom=0)
    _tidy(losses, "step", "training loss")
    _tidy(accuracies, "step", "test accuracy")
    losses.legend(frameon=False)
    accuracies.legend(frameon=False, loc="lower right")
    _save(figure, path)


def accuracy_against_macs(points: dict[str, list[tuple[str, float, float]]], path: Path) -> None:
    """One line per model through its (label, MACs, accuracy) points."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for colour, (name, series) in zip(COLOURS, points.items()):
        labels, macs, accuracies = zip(*series)
        axes.plot([m / 1e6 for m in macs], accuracies, "o-", color=colour, ms=8, label=name)
        for label, x, y in zip(labels, macs, accuracies):
            axes.annotate(label, (x / 1e6, y), xytext=(0, 9), textcoords="offset points", ha="center", **TEXT)
    axes.set_xlim(left=0)
    axes.margins(y=0.25)
    _tidy(axes, "million multiply-accumulates per image", "test accuracy")
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Any value range to [0, 1], grey to RGB."""
    low, high = image.min(), image.max()
    image = (image - low) / max(high - low, 1e-9)
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def _overlay(axes, image: np.ndarray, weights: np.ndarray) -> None:
    """The image in grey with the attention map over it, both to the same extent."""
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    axes.imshow(_as_rgb(image).mean(-1), cmap="gray", extent=extent, interpolation="nearest")
    heat = weights / max(weights.max(), 1e-9)
    colours = colormaps["inferno"](heat)
    colours[..., 3] = 0.25 + 0.65 * heat
    axes.imshow(colours, extent=extent, interpolation="nearest")
    axes.set_axis_off()


def compressed_footprints(
    images: np.ndarray, titles: Sequence[str], maps: np.ndarray, grid: tuple[int, int], path: Path
) -> None:
    """For each image (b, h, w, c), the image and the maps (b, m, gh, gw) laid out as the compressed grid."""
    rows, columns = grid
    cell = max(0.62, 1.9 / rows)
    figure = Figure(figsize=(len(images) * (columns * cell + 0.4), rows * cell + 2.6))
    for panel, image, title, image_maps in zip(
        figure.subfigures(1, len(images), squeeze=False)[0], images, titles, maps
    ):
        top, bottom = panel.subfigures(2, 1, height_ratios=(1.9, rows * cell))
        axes = top.subplots()
        axes.imshow(_as_rgb(image), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, **TEXT)
        cells = bottom.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
        for axes, weights in zip(cells.flat, image_maps):
            _overlay(axes, image, weights)
    _save(figure, path)
