"""Pictures of dependency trees."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from lookupjax.analysis.dependency import Tree, parts
from lookupjax.analysis.plots import COLOURS, LOOK, _as_rgb, _save

LEVELS = "plasma"  # dark: done in an early layer


def _draw_tree(axes: Axes, image: np.ndarray, tree: Tree, grid: tuple[int, ...], norm: BoundaryNorm) -> None:
    """Lines from every patch to its parent over the faint image; a star marks the root."""
    rows, columns = grid
    faint = 0.65 + 0.35 * _as_rgb(image)
    axes.imshow(faint, extent=(0, columns, rows, 0), interpolation="nearest")
    centres = np.stack(np.divmod(np.arange(rows * columns), columns)[::-1], axis=1) + 0.5
    children = np.flatnonzero(tree.parent >= 0)
    order = children[np.argsort(tree.level[children], kind="stable")]  # late, important links on top
    level = tree.level[order]
    lines = np.stack([centres[order], centres[tree.parent[order]]], axis=1)
    widths = 1.0 + 2.5 * (level - 1) / max(level.max() - 1, 1)
    axes.add_collection(
        LineCollection(lines, array=level, cmap=LEVELS, norm=norm, linewidths=widths, capstyle="round")
    )
    size = (160 / max(grid)) ** 2 / 10
    axes.scatter(*centres[order].T, c=level, cmap=LEVELS, norm=norm, s=size, zorder=3, linewidths=0)
    root = centres[tree.parent < 0]
    axes.scatter(*root.T, marker="*", s=14 * size, color="white", edgecolor="black", zorder=4)


def dependency_trees(
    images: np.ndarray,
    titles: Sequence[str],
    trees: Sequence[Tree],
    grid: tuple[int, ...],
    path: Path,
    *,
    count: int = 5,
) -> None:
    """For each image (h, w, c): the image, its tree, and its patches by subtree; one PNG at `path`.

    Args:
      images: (b, h, w, c) of any value range.
      grid: patches per column and row.
      count: subtrees at most.
    """
    depth = max(int(tree.level.max()) for tree in trees) - 1
    norm = BoundaryNorm(np.arange(0.5, depth + 1), colormaps[LEVELS].N)
    with rc_context(LOOK | {"axes.grid": False}):
        figure = Figure(figsize=(13.5, 4.4 * len(images) + 1.2), layout="constrained")
        panels = figure.subplots(len(images), 3, squeeze=False)
        for axes, image, title, tree in zip(panels, images, titles, trees):
            for panel in axes:
                panel.set_axis_off()
            axes[0].imshow(_as_rgb(image), interpolation="nearest")
            axes[0].set_title(title)
            _draw_tree(axes[1], image, tree, grid, norm)
            axes[1].set_title("dependency tree")
            labels = parts(tree, count).reshape(grid)
            colours = ListedColormap(COLOURS[: labels.max() + 1])
            extent = (0, grid[1], grid[0], 0)
            axes[2].imshow(_as_rgb(image).mean(-1), cmap="gray", extent=extent, interpolation="nearest")
            axes[2].imshow(labels, cmap=colours, alpha=0.55, extent=extent, interpolation="nearest")
            axes[2].set_title(f"parts: {labels.max() + 1} subtrees")
        bar = figure.colorbar(
            ScalarMappable(norm, LEVELS), ax=panels, location="bottom", shrink=0.45, aspect=30, pad=0.03
        )
        bar.set_ticks(range(1, depth + 1), labels=[str(n) for n in range(1, depth + 1)])
        bar.set_label("layer in which a patch finds its parent (star: the root)")
        _save(figure, path)
