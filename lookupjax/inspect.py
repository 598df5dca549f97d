"""python -m lookupjax.inspect MODEL_OR_WORKDIR [OTHER] [--depth=2] [--size=HxW] [--compressed=3x3]

What every layer of a model, or of a run's, costs for one input: parameters, multiply-accumulates (MACs) and
bytes of activations; two models side by side, also as --markdown=FILE or --html=FILE. Nothing is computed and
no weights are read.
"""

import argparse
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from lookupjax import cli
from lookupjax.analysis.counts import short
from lookupjax.analysis.layer_costs import Layer, layer_costs
from lookupjax.analysis.page import page
from lookupjax.analysis.page import table as html_table
from lookupjax.errors import UserError
from lookupjax.files import write_whole
from lookupjax.grids import format_grid, parse_grid
from lookupjax.models import create_model, find_model, model_options, native_size
from lookupjax.training.experiment import DTYPES, Experiment
from lookupjax.training.program import batch_shapes
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import disk_errors, read_config

LOOP = dict(scan=False, remat="none")  # one layer after the other, so that each can be told apart
NOTE = (
    "For one input. MACs: multiply-accumulates of matrix products and convolutions. Activations: the results "
    "of those, in the dtype they are computed in. A layer's figures include all that it holds."
)


@dataclass(frozen=True)
class Report:
    """A model's layers by path, and what was asked."""

    name: str
    size: tuple[int, ...]
    layers: dict[str, Layer]

    @property
    def total(self) -> Layer:
        return self.layers[""]


def report(target: str, size: tuple[int, ...] | None, compressed: tuple[int, ...] | None) -> Report:
    """The layers of a model's name or of a work directory's model.

    Raises:
      UserError: when it is neither, or cannot be called like that.
    """
    workdir = Path(target)
    if (workdir / "config.json").exists():
        config = read_config(workdir)
        experiment = Experiment(config, make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1))))
        options = config.model.to_dict()
        name = options.pop("name")
        options["dtype"] = DTYPES[config.dtype]
        size = size or batch_shapes(experiment)["image"].shape[1:-1]
        label = f"{workdir} ({name})"
    elif workdir.is_dir():
        raise UserError(f"{target} is no work directory: it has no config.json")
    else:
        find_model(target)
        name = label = target
        options, size = {}, size or native_size(target)
    known = model_options(name)
    options |= {key: value for key, value in LOOP.items() if key in known}
    channels = options.get("channels", known.get("channels", 3))
    if compressed and "compressed" not in known:
        raise UserError(f"{name} has no compressed tokens; leave out --compressed")
    call: dict[str, Any] = {"compressed": compressed} if compressed else {}

    def make() -> nnx.Module:
        return create_model(name, **options)

    layers = {layer.path: layer for layer in layer_costs(make, size, channels, **call)}
    label += f" at {format_grid((*size, channels))}" + (
        f", {format_grid(compressed)} compressed" if compressed else ""
    )
    return Report(label, tuple(size), layers)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def ratio(one: int, other: int) -> str:
    return f"{other / one:.2f}x" if one else "-"


def shown(reports: Sequence[Report], depth: int) -> list[str]:
    """Paths of at most `depth` parts of any report, each behind what holds it, numbers as numbers."""

    def order(path: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split("/")]

    return sorted({p for r in reports for p in r.layers if p and p.count("/") < depth}, key=order)


def table(reports: Sequence[Report], depth: int) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) with the totals last."""
    figures: tuple[tuple[str, Callable[[Layer], int]], ...] = (
        ("parameters", lambda layer: layer.params),
        ("MACs", lambda layer: layer.macs),
        ("activation bytes", lambda layer: layer.activations),
    )
    none = Layer("", "", 0, 0, 0)
    headings = ["layer", "kind"]
    for heading, _ in figures:
        headings += [heading, "share"] if len(reports) == 1 else [f"{heading} A", "B", "B / A"]
    rows = []
    for path in [*shown(reports, depth), ""]:
        found = [r.layers.get(path, none) for r in reports]
        kinds = dict.fromkeys(layer.kind for layer in found if layer.kind)
        row = ["  " * path.count("/") + path.rpartition("/")[2] if path else "total", " | ".join(kinds)]
        for _, of in figures:
            values = [of(layer) for layer in found]
            if len(reports) == 1:
                row += [short(values[0]), share(values[0], of(reports[0].total))]
            else:
                row += [*map(short, values), ratio(*values)]
        rows.append(row)
    return headings, rows


def titles(reports: Sequence[Report]) -> list[str]:
    if len(reports) == 1:
        return [reports[0].name]
    return [f"{letter}: {r.name}" for letter, r in zip("AB", reports)]


def as_markdown(reports: Sequence[Report], depth: int) -> str:
    headings, rows = table(reports, depth)
    lines = [f"# {'; '.join(titles(reports))}", "", "| " + " | ".join(headings) + " |"]
    lines.append("|---|---|" + "---:|" * (len(headings) - 2))
    for first, *rest in rows:
        indent = "&nbsp;" * (len(first) - len(first.lstrip()))
        cells = [cell.replace("|", "/") for cell in rest]
        lines.append("| " + " | ".join([f"{indent}{first.strip()}", *cells]) + " |")
    return "\n".join([*lines, "", NOTE, ""])


STYLE = """  td:nth-child(2), th:nth-child(2) { text-align: left; color: var(--faint); }
  tr:last-child td { border-top: 2px solid var(--faint); font-weight: 600; }
"""


def as_html(reports: Sequence[Report], depth: int) -> str:
    name = "<br>".join(map(html.escape, titles(reports)))
    return page(
        titles(reports)[0], f"<h1>{name}</h1>\n{html_table(*table(reports, depth))}<p>{NOTE}</p>\n", STYLE
    )


def print_table(reports: Sequence[Report], depth: int) -> None:
    headings, rows = table(reports, depth)
    grid = Table(title="\n".join(titles(reports)), title_justify="left", box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows[:-1]:
        grid.add_row(*row)
    grid.add_section()
    grid.add_row(*rows[-1], style="bold")
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    console.print(grid)
    console.print(f"\n{NOTE}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lookupjax.inspect", description=__doc__.split("\n\n")[1])
    parser.add_argument("target", metavar="MODEL_OR_WORKDIR")
    parser.add_argument("other", nargs="?", metavar="OTHER", help="a second one to compare with")
    parser.add_argument("--depth", type=int, default=2, help="levels of the model to list")
    parser.add_argument("--size", metavar="HxW", help="input size; default: the model's or the run's own")
    parser.add_argument("--compressed", metavar="GRID", help="grid of the compressed tokens, such as 3x3")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed: leave accelerators to others
    size = parse_grid(args.size) if args.size else None
    compressed = parse_grid(args.compressed) if args.compressed else None
    reports = [report(target, size, compressed) for target in (args.target, args.other) if target]
    print_table(reports, args.depth)
    for path, write in ((args.markdown, as_markdown), (args.html, as_html)):
        if path:
            with disk_errors(path):
                write_whole(path, write(reports, args.depth))
            print(path)


if __name__ == "__main__":
    cli.run(main)
