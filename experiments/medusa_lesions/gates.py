"""Where MEDUSA's global attention peaks on the lesions, counted and drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lookupjax.analysis.plots import COLOURS, LOOK, save


def overlap(boxes: Int[np.ndarray, "b 4"], side: int, grid: tuple[int, int]) -> np.ndarray:
    """(b, *grid): whether a cell of a square image of `side` pixels touches the box."""
    edges = [np.linspace(0, side, n + 1) for n in grid]
    top, left, bottom, right = boxes.T[:, :, None]
    rows = (edges[0][None, :-1] < bottom) & (edges[0][None, 1:] > top)
    columns = (edges[1][None, :-1] < right) & (edges[1][None, 1:] > left)
    return rows[:, :, None] & columns[:, None, :]


def on_lesion(
    gates: Float[np.ndarray, "b h w"], boxes: Int[np.ndarray, "b 4"], side: int
) -> tuple[float, float]:
    """(share of images whose largest gate touches the lesion's box, that of a cell drawn at random)."""
    touches = overlap(boxes, side, gates.shape[1:]).reshape(len(gates), -1)
    best = gates.reshape(len(gates), -1).argmax(1)
    return float(touches[np.arange(len(gates)), best].mean()), float(touches.mean())


def outline(axes: Axes, box: np.ndarray) -> None:
    top, left, bottom, right = (float(n) for n in box)
    for colour, thick in (("white", 3.4), (COLOURS[1], 1.8)):
        frame = dict(facecolor="none", edgecolor=colour, linewidth=thick)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))


def gate_picture(
    scans: Float[np.ndarray, "b h w"],
    boxes: Int[np.ndarray, "b 4"],
    gates: Sequence[Float[np.ndarray, "b _ _"]],
    titles: Sequence[str],
    path: Path,
) -> None:
    """A row for each scan: the scan, then the gate of each stage, from its smallest to its largest value.

    The lesion's box is outlined in all of them, a cross marks the largest gate.
    """
    side = scans.shape[1]
    with rc_context(LOOK | {"axes.grid": False, "axes.titlesize": 13}):
        columns = 1 + len(gates)
        figure = Figure(figsize=(2.7 * columns, 2.75 * len(scans) + 0.4), layout="constrained")
        for i, line in enumerate(figure.subplots(len(scans), columns, squeeze=False)):
            line[0].imshow(scans[i], cmap="gray", interpolation="nearest", extent=(0, side, side, 0))
            line[0].set_title(titles[i])
            for j, axes in enumerate(line[1:]):
                gate = gates[j][i]
                axes.imshow(gate, cmap="magma", interpolation="nearest", extent=(0, side, side, 0))
                y, x = np.unravel_index(gate.argmax(), gate.shape)
                at = ((x + 0.5) * side / gate.shape[1], (y + 0.5) * side / gate.shape[0])
                axes.plot(*at, "x", color=COLOURS[5], markersize=10, markeredgewidth=2.5)
                axes.set_title(f"stage {j + 1}, {gate.min():.2f} to {gate.max():.2f}")
            for axes in line:
                outline(axes, boxes[i])
                axes.set(xticks=(), yticks=())
        save(figure, path)
