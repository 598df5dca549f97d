"""Pictures of runs and of attention. Every function writes one PNG, but those that draw on given axes."""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from lookupjax.analysis.pictures import as_rgb
from lookupjax.analysis.throughput import Speed

# Okabe & Ito: told apart with any colour vision. A run has the same colour in every picture.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#010203"  # of text where the page chooses its colour
MARKERS = "oDs^vPX"
STYLES = ("-", "--", ":", "-.")
LOOK = {
    "font.size": 14,
    "axes.titlesize": 16,
    "axes.labelsize": 15,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs and classes, and captions, may hold dollar signs
}
GAP = 0.08  # between attention maps, in map widths

Bins = tuple[np.ndarray, np.ndarray, np.ndarray]  # count, mean confidence, accuracy, equally wide over [0, 1]


class Point(NamedTuple):
    """A model at one compute budget: what to write beside it, its cost, accuracy and standard error."""

    label: str
    macs: float
    accuracy: float
    error: float = 0.0


def accuracy_point(label: str, macs: int | float, figures: Mapping[str, float]) -> Point:
    """The point of an evaluation: its "accuracy", with the standard error where its "examples" are known."""
    p, n = figures["accuracy"], figures.get("examples")
    return Point(label, macs, p, math.sqrt(p * (1 - p) / n) if n else 0.0)


def _style(index: int) -> dict:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def in_legend(name: str) -> str:
    """`name` as a label that Matplotlib lists: after a space of no width if it starts with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, facecolor="white")


def inline(figure: Figure) -> str:
    """An SVG element for a page, in the page's text colour and its `--c0`, `--c1`, ... for COLOURS."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lookupjax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="chart" role="img" \1>', text, count=1)
    for index, colour in enumerate(COLOURS):
        text = text.replace(colour.lower(), f"var(--c{index})")
    return text.replace(INK, "currentColor")


def _evaluations(history: list[dict], figure: str = "accuracy") -> dict[str, list[tuple[int, float]]]:
    """{grid or "": [(step, value)]} of the rows of metrics.jsonl, without those of named evaluators."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for key, value in row.items():
            match = re.fullmatch(rf"eval/(?:(\d+(?:x\d+)*)/)?{figure}", key)
            if match:
                curves.setdefault(match[1] or "", []).append((row["step"], value))
    return curves


def draw_losses(axes: Axes, histories: dict[str, list[dict]]) -> None:
    """Training loss over steps; `histories` holds the rows of metrics.jsonl by run."""
    for index, (name, rows) in enumerate(histories.items()):
        points = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*np.transpose(points or [(np.nan, np.nan)]), color=colour, label=in_legend(name))
    axes.set(xlabel="training step", ylabel="training loss", title="Training loss")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def draw_evaluations(axes: Axes, histories: dict[str, list[dict]], figure: str = "accuracy") -> None:
    """A figure of the task on the test data over steps, one line per run and compressed grid.

    The axis of an accuracy starts at the lowest value of the later three quarters, where runs differ little.
    """
    late = []
    for index, (name, rows) in enumerate(histories.items()):
        curves = _evaluations(rows, figure)
        for style, grid in zip(STYLES * len(curves), reversed(curves)):
            steps, values = np.transpose(curves[grid])
            late.extend(values[steps >= steps[-1] / 4])
            label = in_legend(f"{name} {grid}".strip())
            axes.plot(steps, values, ls=style, ms=6, label=label, **_style(index))
    axes.set(xlabel="training step", ylabel=f"test {figure}", title=f"Test {figure}")
    axes.set_xlim(left=0)
    if figure == "accuracy":
        if late:
            span = max(1.0 - min(late), 0.01)
            axes.set_ylim(min(late) - 0.05 * span, 1.0 + 0.05 * span)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def learning_curves(histories: dict[str, list[dict]], path: Path) -> None:
    """Training loss and test accuracy over steps, see `draw_losses` and `draw_evaluations`."""
    with rc_context(LOOK):
        figure = Figure(figsize=(13, 5.6), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        draw_losses(losses, histories)
        draw_evaluations(accuracies, histories)
        for axes in (losses, accuracies):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        save(figure, path)


def draw_accuracy_against_macs(axes: Axes, series: dict[str, list[Point]]) -> None:
    """One line per model through its points; bars show standard errors where they are known."""
    largest = max(point.macs for points in series.values() for point in points)
    unit, word = (1e9, "billion") if largest >= 1e9 else (1e6, "million")
    for index, (name, points) in enumerate(series.items()):
        x = [point.macs / unit for point in points]
        y = [point.accuracy for point in points]
        errors = [point.error for point in points]
        axes.errorbar(x, y, errors, ms=10, capsize=5, elinewidth=1.2, label=in_legend(name), **_style(index))
        for point, cost in zip(points, x):
            axes.annotate(
                point.label,
                (cost, point.accuracy),
                xytext=(9, -9),
                textcoords="offset points",
                va="top",
                color=COLOURS[index % len(COLOURS)],
                weight="bold",
            )
    known = any(point.error for points in series.values() for point in points)
    axes.set_ylabel("test accuracy" + " (bars: one standard error)" * known)
    axes.set_xlabel(f"{word} multiply-accumulates per image")
    axes.set_xlim(0, 1.12 * largest / unit)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))


def accuracy_against_macs(series: dict[str, list[Point]], path: Path) -> None:
    """See `draw_accuracy_against_macs`."""
    with rc_context(LOOK):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        draw_accuracy_against_macs(axes, series)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
        save(figure, path)


def labelled_scatter(points: Sequence[Point], path: Path) -> None:
    """Accuracy against multiply-accumulates (logarithmic) of many models, every dot with its name beside it.

    A name goes to the nearest of the places around its dot where it covers neither a dot nor another name.
    """
    largest = max(point.macs for point in points)
    unit, word = (1e9, "billion") if largest >= 1e9 else (1e6, "million")
    with rc_context(LOOK):
        figure = Figure(figsize=(10, 8))
        axes = figure.subplots(gridspec_kw=dict(left=0.11, right=0.97, bottom=0.1, top=0.97))
        x, y = [point.macs / unit for point in points], [point.accuracy for point in points]
        axes.plot(x, y, "o", ms=8, color=COLOURS[0])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[-1] in "25" else "")
        axes.margins(x=0.12, y=0.06)
        axes.set(xlabel=f"{word} multiply-accumulates per image", ylabel="test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.canvas.draw()  # settles the limits, which places in pixels follow from
        centres = axes.transData.transform(np.transpose([x, y]))
        taken = [Bbox.from_bounds(cx - 6, cy - 6, 12, 12) for cx, cy in centres]
        for point, spot in zip(points, zip(x, y)):
            text = axes.annotate(
                point.label, spot, (0, 0), textcoords="offset points", fontsize=12, va="center"
            )
            for radius, angle in itertools.product(range(9, 90, 6), range(0, 360, 30)):
                dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
                text.set_ha("left" if dx > 1 else "right" if dx < -1 else "center")
                text.set_position((dx, dy))
                box = text.get_window_extent().padded(1)
                inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
                if inside and not any(box.overlaps(other) for other in taken):
                    break
            taken.append(text.get_window_extent())
            if radius > 15:
                axes.annotate(
                    "",
                    spot,
                    (dx, dy),
                    textcoords="offset points",
                    arrowprops={"arrowstyle": "-", "color": "0.6"},
                )
        save(figure, path)


def tradeoff(
    series: dict[str, list[Point]], published: list[Point], missing: dict[str, int], path: Path
) -> None:
    """Accuracy against multiply-accumulates (logarithmic) of trained runs, beside published results.

    Args:
      series: a line per name, which may still be empty. Points of one label and cost are labelled once.
      published: hollow squares.
      missing: {name: MACs} of what is not trained yet, ticks at the lower edge.
    """
    trained = [p for points in series.values() for p in points]
    costs = [p.macs for p in (*trained, *published)] + list(missing.values())
    unit, word = (1e9, "billion") if max(costs) >= 1e9 else (1e6, "million")
    near = dict(textcoords="offset points", fontsize=12)
    with rc_context(LOOK):
        figure = Figure(figsize=(10, 6.6), layout="constrained")
        axes = figure.subplots()
        for index, (name, points) in enumerate(series.items()):
            points = sorted(points, key=lambda p: p.macs)
            label = name if points else f"{name} (missing)"
            x, y, errors = ([getattr(p, key) for p in points] for key in ("macs", "accuracy", "error"))
            x = [macs / unit for macs in x]
            axes.errorbar(
                x, y, errors, ms=9, capsize=4, elinewidth=1.2, label=in_legend(label), **_style(index)
            )
        for place in {(p.label, p.macs) for p in trained}:
            top = max((p for p in trained if (p.label, p.macs) == place), key=lambda p: p.accuracy + p.error)
            spot = (top.macs / unit, top.accuracy + top.error)
            axes.annotate(top.label, spot, xytext=(0, 6), ha="center", va="bottom", weight="bold", **near)
        for number, p in enumerate(published):
            legend, spot = "published" if number == 0 else None, (p.macs / unit, p.accuracy)
            axes.plot(*spot, "s", ms=9, mfc="none", color="0.35", label=legend)
            axes.annotate(p.label, spot, xytext=(9, -4), va="top", color="0.35", **near)
        edge = axes.get_xaxis_transform()
        for number, (name, macs) in enumerate(sorted(missing.items(), key=lambda item: item[1])):
            legend = "missing: not trained yet" if number == 0 else None
            axes.plot([macs / unit] * 2, (0, 0.03), color="0.6", lw=3, transform=edge, label=legend)
            spot = (macs / unit, 0.04 + 0.04 * (number % 8))
            axes.annotate(name, spot, xycoords=edge, ha="right", va="bottom", color="0.5", fontsize=10)
        axes.set_xscale("log")
        low, high = min(costs) / unit / 1.3, max(costs) / unit * 1.5
        steps = (1, 2, 5) if high > 12 * low else (1, 1.5, 2, 3, 4, 6)
        ticks = [n * 10.0**k for k in range(-3, 4) for n in steps]
        axes.set_xticks([t for t in ticks if low <= t <= high])
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(low, high)
        known = any(p.error for p in trained)
        axes.set_ylabel("test accuracy" + " (bars: one standard error)" * known)
        axes.set_xlabel(f"{word} multiply-accumulates per image")
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        save(figure, path)


def calibration_error(bins: Bins) -> float:
    """Mean over the examples of |accuracy - confidence| of their bin."""
    count, confidence, accuracy = bins
    return float((count * np.abs(accuracy - confidence)).sum() / max(count.sum(), 1))


def draw_reliability(upper: Axes, lower: Axes, bins: Bins) -> None:
    """Accuracy against confidence over the share of examples in each bin."""
    count, confidence, accuracy = bins
    filled, width = count > 0, 1.0 / len(count)
    centre = (np.arange(len(count)) + 0.5) * width
    upper.plot((0, 1), (0, 1), "--", color="0.5", lw=1.5, label="perfectly calibrated")
    upper.bar(centre[filled], accuracy[filled], 0.92 * width, color=COLOURS[0], label="accuracy")
    upper.plot(
        confidence[filled], accuracy[filled], "o", color=COLOURS[1], label="mean confidence of the bin"
    )
    upper.set(ylim=(0, 1.02), xlim=(0, 1))
    lower.bar(centre, count / max(count.sum(), 1), 0.92 * width, color="0.6")
    lower.set(xlabel="confidence", xticks=(0.25, 0.5, 0.75, 1.0))
    for axes in (upper, lower):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def reliability_diagrams(tables: Mapping[str, Bins], path: Path) -> None:
    """One panel per title, see `draw_reliability`."""
    with rc_context(LOOK):
        figure = Figure(figsize=(5.2 * len(tables), 6.6), layout="constrained")
        rows = figure.subplots(2, len(tables), squeeze=False, sharex=True, height_ratios=(3, 1), sharey="row")
        for (title, bins), (upper, lower) in zip(tables.items(), rows.T):
            draw_reliability(upper, lower, bins)
            upper.set_title(f"{title}: calibration error {calibration_error(bins):.1%}")
        rows[0, 0].set_ylabel("accuracy")
        rows[1, 0].set_ylabel("share")
        rows[0, 0].legend(loc="upper left", fontsize=11)
        save(figure, path)


def speed_bars(groups: dict[str, dict[str, Speed]], path: Path) -> None:
    """Images per second: a panel for each setting, a bar for each contender, its quartiles as the error."""
    most = max(len(speeds) for speeds in groups.values())
    with rc_context(LOOK):
        figure = Figure(figsize=(9, len(groups) * (0.55 * most + 1.2)), layout="constrained")
        for axes, (setting, speeds) in zip(np.ravel(figure.subplots(len(groups))), groups.items()):
            names = list(speeds)
            medians = [speed.median for speed in speeds.values()]
            low = [speed.median - speed.low for speed in speeds.values()]
            high = [speed.high - speed.median for speed in speeds.values()]
            colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
            axes.barh(names, medians, xerr=(low, high), color=colours, height=0.65, capsize=4)
            for row, (median, over) in enumerate(zip(medians, high)):
                ratio = f"{median:,.1f}" + (f" ({median / medians[0]:.2f}x)" if row else "")
                axes.annotate(
                    ratio, (median + over, row), xytext=(6, 0), textcoords="offset points", va="center"
                )
            axes.set_xlim(0, 1.3 * max(medians))
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_title(setting, loc="left")
        axes.set_xlabel("images per second")
        save(figure, path)


def heat() -> ListedColormap:
    """From transparent over amber to dark red."""
    t = np.linspace(0.0, 1.0, 256)
    stops = np.array([[1.0, 0.85, 0.3], [0.94, 0.45, 0.1], [0.5, 0.0, 0.1]])
    rgb = np.stack([np.interp(t, (0.0, 0.5, 1.0), channel) for channel in stops.T], axis=-1)
    return ListedColormap(np.concatenate([rgb, np.minimum(1.0, 1.3 * t)[:, None]], axis=-1))


def _mosaic(axes: Axes, image: np.ndarray, maps: np.ndarray, grid: tuple[int, ...], norm: PowerNorm) -> None:
    """The maps (m, gh, gw) laid out as the compressed grid, each over the faint image."""
    rows, columns = grid
    height = image.shape[0] / image.shape[1]  # of a map, in map widths
    faint = 0.7 + 0.3 * as_rgb(image).mean(-1)
    for index, weights in enumerate(maps):
        row, column = divmod(index, columns)
        left, top = column * (1 + GAP), row * (height + GAP)
        extent = (left, left + 1, top + height, top)
        axes.imshow(faint, cmap="gray", vmin=0, vmax=1, extent=extent)
        axes.imshow(weights, cmap=heat(), norm=norm, extent=extent, interpolation="nearest")
    axes.set_xlim(0, columns * (1 + GAP) - GAP)
    axes.set_ylim(rows * (height + GAP) - GAP, 0)
    axes.set_axis_off()


def compressed_footprints(
    images: np.ndarray, titles: Sequence[str], maps: np.ndarray, grid: tuple[int, ...], path: Path
) -> None:
    """For each image (h, w, c), the image and its maps (m, gh, gw) laid out as the compressed grid.

    Args:
      images: (b, h, w, c) of any value range.
      maps: (b, m, gh, gw) attention weights, m = grid[0] * grid[1]; all share one colour scale.
    """
    columns = min(2, len(images))
    rows = math.ceil(len(images) / columns)
    norm = PowerNorm(0.6, vmin=0.0, vmax=float(maps.max()))
    with rc_context(LOOK | {"axes.grid": False}):
        layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.05)
        figure = Figure(figsize=(7.2 * columns, 4.3 * rows + 1.0), layout=layout)
        ratios = (1.0, 1.7) * columns
        panels = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=ratios)
        for axes in panels.flat:
            axes.set_axis_off()
        for index, (image, title, image_maps) in enumerate(zip(images, titles, maps)):
            left, right = panels.reshape(-1, 2)[index]
            left.imshow(as_rgb(image), interpolation="nearest")
            left.set_title(title)
            left.set_anchor("NE")
            right.set_anchor("NW")
            _mosaic(right, image, image_maps, grid, norm)
        scale = ScalarMappable(norm, heat())
        bar = figure.colorbar(
            scale, ax=panels, location="bottom", shrink=0.4, aspect=30, pad=0.04, panchor=False
        )
        ticks = norm.inverse(np.linspace(0.0, 1.0, 5))
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
        bar.set_label("attention weight of an image token")
        save(figure, path)


def attention_strips(
    clip: np.ndarray, title: str, maps: np.ndarray, grid: tuple[int, ...], path: Path, columns: int = 2
) -> None:
    """The frames of a clip, and for each compressed token the same frames under what it attends to there.

    Args:
      clip: (frames, h, w, c) of any value range.
      maps: (m, t, gh, gw) attention weights, m = prod(grid); a map stands over the frames of its tubelet.
        Places that get no more than an equal share of the attention stay clear.
      grid: (time, height, width) of the compressed tokens.
    """
    frames = len(clip)
    height, width = clip.shape[1:3]
    faint = 0.7 + 0.3 * as_rgb(clip).mean(-1)
    equal = 1.0 / math.prod(maps.shape[1:])
    norm = PowerNorm(0.6, vmin=equal, vmax=max(float(maps.max()), 1.01 * equal), clip=True)
    rows = math.ceil(len(maps) / columns)

    def strip(pictures: np.ndarray, gap: float) -> np.ndarray:
        """(frames, h, w, ...) side by side, with a gap after each."""
        pads = [(0, 0), (0, 0), (0, max(1, width // 12)), *[(0, 0)] * (pictures.ndim - 3)]
        return np.concatenate(list(np.pad(pictures, pads, constant_values=gap)), axis=1)

    def enlarged(weights: np.ndarray) -> np.ndarray:
        """(t, gh, gw) at the frames and their size."""
        axes = zip((frames, height, width), weights.shape)
        t, y, x = (np.minimum(np.arange(n) * k // n, k - 1) for n, k in axes)
        return weights[t[:, None, None], y[None, :, None], x[None, None]]

    with rc_context(LOOK | {"axes.grid": False}):
        side = 8.6 / frames * height / width  # inches of a frame
        figure = Figure(figsize=(8.8 * columns, (rows + 1) * (side + 0.42) + 1.1), layout="constrained")
        panels = figure.subplots(rows + 1, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        panels[0, 0].imshow(strip(as_rgb(clip), 1.0), interpolation="nearest")
        panels[0, 0].set_title(title, loc="left", fontsize=14)
        for index, (axes, weights) in enumerate(zip(panels[1:].flat, maps)):
            place = np.unravel_index(index, grid)
            names = [f"{name} {i + 1}/{n}" for name, i, n in zip(("time", "row", "column"), place, grid)]
            axes.imshow(strip(faint, 1.0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.imshow(strip(enlarged(weights), np.nan), cmap=heat(), norm=norm, interpolation="nearest")
            axes.set_title("token " + ", ".join(names), loc="left", fontsize=12)
        bar = figure.colorbar(
            ScalarMappable(norm, heat()), ax=panels, location="bottom", shrink=0.4, aspect=40, pad=0.02
        )
        ticks = norm.inverse(np.linspace(0.0, 1.0, 5))
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
        bar.set_label(f"attention weight of a tubelet's token, from an equal share ({equal:.2g}) on")
        save(figure, path)


def enlargements(
    rows: Sequence[dict[str, np.ndarray]],
    scores: Sequence[dict[str, float]],
    path: Path,
    side: int = 128,
) -> None:
    """Images beside their enlargements, one row each; the middle `side` pixels of larger ones.

    Args:
      rows: {"low": image, ..., "original": image} in [0, 1]; "low" is drawn at the size of the others.
      scores: {column: dB} to write above some of the columns.
    """
    columns = list(rows[0])
    with rc_context(LOOK | {"axes.grid": False}):
        figure = Figure(figsize=(3.2 * len(columns), 3.5 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, score, line in zip(rows, scores, axes):
            size = row[columns[-1]].shape[0]
            for name, place in zip(columns, line):
                image = np.clip(row[name], 0, 1)
                image = np.repeat(image, 3, -1) if image.shape[-1] == 1 else image
                shown = max(1, round(min(1.0, side / size) * min(image.shape[:2])))
                top, left = ((n - shown) // 2 for n in image.shape[:2])
                place.imshow(image[top : top + shown, left : left + shown], interpolation="nearest")
                place.set_title(f"{name}, {score[name]:.2f} dB" if name in score else name)
                place.set_axis_off()
        save(figure, path)
