"""Pictures of dependency trees."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lookupjax.analysis.dependency import Tree, parts
from lookupjax.analysis.pictures import as_rgb
from lookupjax.analysis.plots import COLOURS, LOOK, save

WIDTH = 10.0  # inches of a tree
LARGEST, SMALLEST = 0.62, 0.05  # inches of a patch in it


def leaves_in_order(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """(horizontal place of every patch, number of patches below it, itself included).

    Leaves stand side by side, every other patch over the middle of what is below it.
    """
    count = len(tree.parent)
    children: list[list[int]] = [[] for _ in range(count)]
    for node in np.argsort(-tree.level, kind="stable").tolist():
        if tree.parent[node] >= 0:
            children[tree.parent[node]].append(node)
    place, size = np.zeros(count), np.ones(count, int)
    slots = 0.0

    def visit(node: int) -> None:
        nonlocal slots
        if not children[node]:
            place[node], slots = slots, slots + 1.0
            return
        for child in children[node]:
            visit(child)
        size[node] += size[children[node]].sum()
        place[node] = place[children[node]].mean()

    visit(int(np.flatnonzero(tree.parent < 0)[0]))
    return place, size


def _patch(axes: Axes, crop: np.ndarray, x: float, y: float, side: tuple[float, float], colour: str) -> None:
    """A patch of the image, framed in the colour of its part."""
    width, height = side
    extent = (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
    axes.imshow(crop, extent=extent, aspect="auto", zorder=3, interpolation="nearest", vmin=0, vmax=1)
    frame = dict(facecolor="none", edgecolor=colour, linewidth=2.0 if width > 0.5 else 0.8, zorder=4)
    axes.add_patch(Rectangle((extent[0], extent[2]), width, height, **frame))


def _draw_tree(
    axes: Axes, image: np.ndarray, tree: Tree, labels: np.ndarray, grid: tuple[int, ...], tall: float
) -> None:
    """The root on top, every patch at the layer in which it finds its parent; patches shown as they look."""
    rgb = as_rgb(image)
    height, width = rgb.shape[0] // grid[0], rgb.shape[1] // grid[1]
    place, size = leaves_in_order(tree)
    slots, top = place.max() + 1, int(tree.level.max())
    small = max(SMALLEST, min(LARGEST, 0.8 * WIDTH / slots))
    large = min(LARGEST, max(small, 0.75 * tall / (top + 1)))
    child = np.flatnonzero(tree.parent >= 0)
    ends = np.stack([place, tree.level.astype(float)], axis=1)
    lines = np.stack([ends[child], ends[tree.parent[child]]], axis=1)
    colours = [COLOURS[labels[node]] for node in child]
    axes.add_collection(
        LineCollection(lines, colors=colours, linewidths=1.0 if slots < 60 else 0.5, zorder=1)
    )
    unit = slots / WIDTH, (top + 1) / tall  # of the axes, per inch
    shares = np.log(size) / np.log(max(size.max() / 4, 2))  # of the way from a leaf's size to the largest
    inches = small + (large - small) * np.minimum(shares, 1.0)
    for node in np.argsort(size, kind="stable").tolist():
        row, column = divmod(node, grid[1])
        crop = rgb[row * height : (row + 1) * height, column * width : (column + 1) * width]
        side = (inches[node] * unit[0], inches[node] * unit[1])
        _patch(axes, crop, place[node], float(tree.level[node]), side, COLOURS[labels[node]])
    margin = 0.5 * large * unit[0] + 0.2
    axes.set(xlim=(-margin, slots - 1 + margin), ylim=(0.3, top + 0.7), xticks=())
    axes.set_yticks(range(1, top + 1), labels=[*map(str, range(1, top)), "root"])
    axes.set_ylabel("layer in which a patch\nfinds its parent")
    axes.grid(axis="y", alpha=0.25)
    for name in ("bottom", "left"):
        axes.spines[name].set_visible(False)
    axes.tick_params(left=False)


def _draw_parts(axes: Axes, image: np.ndarray, tree: Tree, labels: np.ndarray, grid: tuple[int, ...]) -> None:
    """The image in the colours of its parts; a star on the root's patch."""
    colours = ListedColormap(COLOURS[: labels.max() + 1])
    extent = (0, grid[1], grid[0], 0)
    axes.imshow(as_rgb(image).mean(-1), cmap="gray", extent=extent, interpolation="nearest", vmin=0, vmax=1)
    axes.imshow(
        labels.reshape(grid), cmap=colours, alpha=0.55, extent=extent, interpolation="nearest", vmin=0,
        vmax=max(int(labels.max()), 1),
    )  # fmt: skip
    row, column = divmod(int(np.flatnonzero(tree.parent < 0)[0]), grid[1])
    star = dict(marker="*", s=260, color="white", edgecolor="black", zorder=4)
    axes.scatter(column + 0.5, row + 0.5, **star)
    axes.set_title(f"{labels.max() + 1} parts (star: the root)")


def dependency_trees(
    images: np.ndarray,
    titles: Sequence[str],
    trees: Sequence[Tree],
    grid: tuple[int, ...],
    path: Path,
    *,
    count: int = 5,
) -> None:
    """For each image (h, w, c): the image, its parts, and its tree with the root on top; one PNG at `path`.

    Parts have the same colours in both, and the tree's nodes are the patches themselves.

    Args:
      images: (b, h, w, c) of any value range.
      grid: patches per column and row.
      count: subtrees at most.
    """
    depth = max(int(tree.level.max()) for tree in trees)
    tall = max(3.2, 0.62 * depth)
    with rc_context(LOOK | {"axes.grid": False, "font.size": 12}):
        figure = Figure(figsize=(WIDTH + 7.6, (tall + 0.6) * len(images)), layout="constrained")
        ratios = (3.4, 3.4, WIDTH)
        panels = figure.subplots(len(images), 3, squeeze=False, width_ratios=ratios)
        for (picture, coloured, graph), image, title, tree in zip(panels, images, titles, trees):
            labels = parts(tree, count)
            for axes in (picture, coloured):
                axes.set_axis_off()
            picture.imshow(as_rgb(image), interpolation="nearest")
            picture.set_title(title)
            _draw_parts(coloured, image, tree, labels, grid)
            _draw_tree(graph, image, tree, labels, grid, tall)
            graph.set_title("dependency tree: lines go up to the parent")
        save(figure, path)
