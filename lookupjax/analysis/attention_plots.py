"""Pictures of attention maps: layers and heads, rollouts, LookupViT's round trip."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lookupjax.analysis.attention_maps import AttentionMap, Tokens
from lookupjax.analysis.attention_page import binned, bins, cells_of
from lookupjax.analysis.pictures import as_rgb
from lookupjax.analysis.plots import COLOURS, LOOK, heat, save

MOST_HEADS, MOST_LAYERS = 8, 8  # in one picture
TOKENS = 5  # whose round trip is drawn
FINEST = 28  # cells on a side


def asking(m: AttentionMap) -> tuple[int, str]:
    """(the query to show, what to call it): the class token or, without one, the middle of the grid."""
    if m.queries.grid is None:
        return (
            0,
            m.queries.name if m.queries.count == 1 else f"the first of {m.queries.count} {m.queries.name}",
        )
    if m.queries.prefix:
        return 0, f"the {m.queries.names[0] if m.queries.names else 'class token'}"
    middle = [n // 2 for n in m.queries.grid]
    return int(np.ravel_multi_index(middle, m.queries.grid)), "the marked token"


def on_grid(row: np.ndarray, keys: Tokens) -> np.ndarray:
    """Weights (keys,) laid out as a picture: on their grid, or in a strip when they have none."""
    cells, side = bins(keys, FINEST)
    values = binned(row[None, None], np.zeros(1, int), cells, (1, cells_of(side)))[0, 0]
    if side["grid"] is None:
        across = int(np.ceil(np.sqrt(keys.count)))
        return np.append(values, np.full(-len(values) % across, np.nan)).reshape(-1, across)
    return values[keys.prefix :].reshape(side["grid"])


def draw(axes: Axes, image: np.ndarray, row: np.ndarray, keys: Tokens) -> None:
    """One map over the faint image, on its own colour scale."""
    values = on_grid(row, keys)
    rows, columns = values.shape
    ratio = image.shape[0] / image.shape[1] if keys.grid else rows / columns
    extent = (0.0, 1.0, ratio, 0.0)
    if keys.grid:
        axes.imshow(0.7 + 0.3 * as_rgb(image).mean(-1), cmap="gray", vmin=0, vmax=1, extent=extent)
    norm = PowerNorm(0.6, vmin=0.0, vmax=max(float(np.nanmax(values)), 1e-12))
    axes.imshow(values, cmap=heat(), norm=norm, extent=extent, interpolation="nearest")
    axes.set(xlim=(0, 1), ylim=(ratio, 0), xticks=(), yticks=())
    for spine in axes.spines.values():
        spine.set(visible=True, color="0.75")


def show(axes: Axes, image: np.ndarray, tokens: Tokens | None = None, token: int = 0) -> None:
    """The image, with a box around a token of a two-dimensional grid."""
    axes.imshow(as_rgb(image), interpolation="nearest")
    axes.set(xticks=(), yticks=())
    if tokens is None or tokens.grid is None or len(tokens.grid) != 2 or token < tokens.prefix:
        return
    y, x = divmod(token - tokens.prefix, tokens.grid[1])
    height, width = (n / m for n, m in zip(image.shape, tokens.grid))
    for colour, thick in (("white", 3.5), (COLOURS[0], 1.8)):
        corner = (x * width - 0.5, y * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, facecolor="none", edgecolor=colour, linewidth=thick))


def layers_and_heads(maps: Sequence[AttentionMap], image: np.ndarray, example: int, stem: Path) -> list[Path]:
    """STEM_layers.png, or STEM_layers_1.png and so on: a row for each map, mean and heads in its columns.

    Every panel has its own colour scale, from 0 to the largest weight written over it.
    """
    pages = [maps[i : i + MOST_LAYERS] for i in range(0, len(maps), MOST_LAYERS)]
    written = []
    for number, page in enumerate(pages, start=1):
        heads = max(m.weights.shape[1] for m in page)
        shown = min(heads, MOST_HEADS)
        columns = 2 + (shown if heads > 1 else 0)
        height = 1.7 * min(image.shape[0] / image.shape[1], 2.0) + 0.55
        with rc_context(LOOK | {"axes.grid": False, "font.size": 11, "axes.titlesize": 11}):
            figure = Figure(figsize=(1.75 * columns + 3.0, height * len(page) + 0.2), layout="constrained")
            for line, m in zip(figure.subplots(len(page), columns, squeeze=False), page):
                query, name = asking(m)
                rows = m.weights[example, :, query]
                show(line[0], image, m.queries, query)
                label = f"{m.path or 'model'}\n{m.kind}\nread by {name}"
                line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
                for axes in line[1:]:
                    axes.set_axis_off()
                entries = [("mean of heads" if len(rows) > 1 else "", rows.mean(0))]
                entries += [(f"head {i + 1}", rows[i]) for i in range(min(len(rows), shown)) if len(rows) > 1]
                for axes, (title, row) in zip(line[1:], entries):
                    axes.set_axis_on()
                    draw(axes, image, row, m.keys)
                    axes.set_title(f"{title}\nup to {row.max():.2g}".strip())
                if len(rows) > shown:
                    line[-1].set_xlabel(f"and {len(rows) - shown} more heads")
            path = stem.with_name(f"{stem.name}_layers{f'_{number}' if len(pages) > 1 else ''}.png")
            save(figure, path)
            written.append(path)
    return written


def words_picture(m: AttentionMap, words: Sequence[str], image: np.ndarray, example: int, path: Path) -> None:
    """The image, then for each word what of the image was read to write it, mean over heads.

    Args:
      m: of a decoder's words over image tokens. words: the start token, then what was written.
    """
    written = list(enumerate(words[1:]))
    columns = min(6, 1 + len(written))
    rows = -(-(1 + len(written)) // columns)
    with rc_context(LOOK | {"axes.grid": False, "axes.titlesize": 14}):
        figure = Figure(figsize=(2.4 * columns, 2.9 * rows + 0.5), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        show(panels[0], image)
        for axes, (row, word) in zip(panels[1:], written):
            weights = m.weights[example, :, row].mean(0)
            axes.set_axis_on()
            draw(axes, image, weights, m.keys)
            axes.set_title(word)
            axes.set_xlabel(f"up to {weights.max():.2g}", fontsize=11)
        figure.suptitle(f"{m.path}: what was read for each word", fontsize=13)
        save(figure, path)


def rollout_picture(maps: Sequence[AttentionMap], image: np.ndarray, example: int, path: Path) -> None:
    """The image and each rollout: what reaches the class token or, without one, all tokens on average."""
    with rc_context(LOOK | {"axes.grid": False, "axes.titlesize": 12}):
        figure = Figure(figsize=(3.4 * (1 + len(maps)), 3.9), layout="constrained")
        panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
        show(panels[0], image)
        for axes, m in zip(panels[1:], maps):
            token = 0 if m.queries.prefix else slice(None)
            draw(axes, image, np.atleast_2d(m.weights[example, 0, token]).mean(0), m.keys)
            who = "the class token" if m.queries.prefix else f"all {m.queries.name}"
            axes.set_title(f"{m.kind}\n{m.path}\nwhat reaches {who}")
        save(figure, path)


def round_trip_picture(
    written: AttentionMap, trip: AttentionMap, image: np.ndarray, example: int, path: Path
) -> None:
    """For some lookup tokens: the compressed tokens that write to it, and the lookup tokens those gathered.

    Args:
      written: the infusion's map (lookup, compressed). trip: the round trip of the same block.
    """
    rows, columns = trip.queries.grid[-2:]
    places = [(0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8)][:TOKENS]
    tokens = [int(y * rows) * columns + int(x * columns) for y, x in places]
    with rc_context(LOOK | {"axes.grid": False, "axes.titlesize": 13}):
        figure = Figure(figsize=(9.6, 3.0 * len(tokens) + 0.7), layout="constrained")
        for line, token in zip(figure.subplots(len(tokens), 3, squeeze=False), tokens):
            show(line[0], image, trip.queries, token)
            for axes, m in zip(line[1:], (written, trip)):
                row = m.weights[example, :, token].mean(0)
                draw(axes, image, row, m.keys)
                axes.set_xlabel(f"sum {row.sum():.2f}, up to {row.max():.2g}", fontsize=11)
            if token == tokens[0]:
                line[0].set_title("a lookup token")
                line[1].set_title("compressed tokens\nthat write to it")
                line[2].set_title("lookup tokens from which\nthese have gathered")
        save(figure, path)
