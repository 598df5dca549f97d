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
from lookupjax.analysis.layer_costs import Layer, layer_costs
from lookupjax.errors import UserError
from lookupjax.grids import format_grid, parse_grid
from lookupjax.models import create_model, find_model, model_options, native_size
from lookupjax.training.experiment import DTYPES, Experiment
from lookupjax.training.program import batch_shapes
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import disk_errors, read_config, write_text

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


def short(number: int) -> str:
    """1234567 -> "1.235 M"."""
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g} {word}"
    return f"{number:.0f}"


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


STYLE = """body { margin: 0 auto; max-width: 1100px; padding: 16px; color: #1c2430; background: #fff;
  font: 16px/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.25rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { text-align: right; border-bottom: 2px solid #98a2b0; }
th, td { padding: 4px 10px; text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  white-space: pre; }
th:nth-child(2), td:nth-child(2) { text-align: left; color: #5b6675; }
tr:last-child td { border-top: 2px solid #98a2b0; font-weight: 600; }
td { border-bottom: 1px solid #e6eaef; }
p { color: #5b6675; max-width: 75ch; }"""


def as_html(reports: Sequence[Report], depth: int) -> str:
    headings, rows = table(reports, depth)
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    name = "<br>".join(map(html.escape, titles(reports)))
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(titles(reports)[0])}</title><style>{STYLE}</style>\n"
        f'<h1>{name}</h1><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n'
        f"{body}</tbody></table></div>"
        f"<p>{NOTE}</p></html>\n"
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
                write_text(path, write(reports, args.depth))
            print(path)


if __name__ == "__main__":
    cli.run(main)
