"""python -m lookupjax.models [PATTERN] [--size=HxW] [--compressed 3x3 5x5 | --grids] [--head=gap]

Lists models with their parameters and the multiply-accumulates (MACs) of one input.
"""

import argparse
import difflib
import inspect
import traceback
from collections.abc import Iterator, Sequence

import jax
from flax import nnx

from lookupjax import cli
from lookupjax.analysis.counts import count_params, count_products, trace_model, xla_flops
from lookupjax.errors import UserError
from lookupjax.grids import format_grid, parse_grid
from lookupjax.models import create_model, list_models, model_options, native_size, nominal_options

GRIDS = ((3, 3), (5, 5), (7, 7), (10, 10))  # the compressed grids of the LookupViT paper
HEADINGS = ("model", "input", "grid", "parameters", "GMACs formula", "GMACs program", "GMACs XLA")
WIDTHS = (14, 8, 13, 15, 15, 11)  # of all columns but the first
FOOTNOTE = """\
GMACs: 1e9 multiply-accumulates for one input. formula: the model's own count of its matrix products,
where it has one. program: matrix products and convolutions of the traced program."""
XLA_NOTE = """\
XLA: half of the floating-point operations of XLA's cost analysis; it includes element-wise arithmetic
and counts the body of a loop once."""

Grid = tuple[int, ...]


def fit(asked: Grid | None, own: Grid) -> Grid:
    """`asked`, completed by the leading lengths of `own` (a video model's frames) where it has fewer."""
    if asked is None:
        return own
    return own[: max(len(own) - len(asked), 0)] + asked


def takes_grid(model: nnx.Module) -> bool:
    """Whether a call of the model can choose the grid of the compressed tokens."""
    return "compressed" in inspect.signature(type(model).__call__).parameters


def billions(macs: float) -> str:
    return f"{macs / 1e9:,.4f}"


def rows(name: str, args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The table rows of one model: one for each compressed grid asked for."""
    options = model_options(name)
    overrides = nominal_options(name) | ({"head": args.head} if args.head and "head" in options else {})
    model = nnx.eval_shape(lambda: create_model(name, **overrides))
    channels = options.get("channels", options.get("in_channels", 3))
    size = fit(args.size, native_size(name))
    calls: list[dict[str, Grid]] = [{}]
    if takes_grid(model):
        own = tuple(options["compressed"])
        calls = [dict(compressed=fit(grid, own)) for grid in args.compressed or (own,)]
    for call in calls:
        traced = trace_model(model, size, channels, **call)
        yield (
            name,
            format_grid((*size, channels)),
            format_grid(call["compressed"]) if call else "-",
            f"{count_params(model):,}",
            billions(model.macs(size, **call)) if hasattr(model, "macs") else "-",
            billions(count_products(traced)),
            *([billions(xla_flops(traced) / 2)] if args.xla else []),
        )


def line(cells: Sequence[str], first: int) -> str:
    """One row, its first column `first` characters wide."""
    return cells[0].ljust(first) + "".join(cell.rjust(width) for cell, width in zip(cells[1:], WIDTHS))


def find(pattern: str) -> list[str]:
    names = list_models(pattern)
    if not names:
        close = difflib.get_close_matches(pattern.replace("*", ""), list_models(), n=5, cutoff=0.4)
        hint = f"; the nearest are {', '.join(close)}" if close else ""
        raise UserError(f"no model matches {pattern!r}{hint}; `python -m lookupjax.models` lists all")
    return names


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lookupjax.models", description=__doc__.split("\n\n")[1])
    parser.add_argument("pattern", nargs="?", default="*", help='shell pattern, such as "lookupvit_*"')
    parser.add_argument(
        "--size", metavar="HxW", help="input size; a video model keeps its frames unless TxHxW"
    )
    parser.add_argument(
        "--compressed",
        nargs="+",
        action="extend",
        default=[],
        metavar="GRID",
        help="grids of the compressed tokens for the models that have them, such as 3x3 5x5",
    )
    parser.add_argument(
        "--grids", action="store_true", help=f"the same as --compressed {' '.join(map(format_grid, GRIDS))}"
    )
    parser.add_argument("--head", help="head of the models that have a choice, such as gap")
    parser.add_argument(
        "--xla",
        action=argparse.BooleanOptionalAction,
        help="print XLA's count; default: unless all models are listed, which would take minutes",
    )
    args = parser.parse_args(argv)
    args.size = parse_grid(args.size) if args.size else None
    args.compressed = [parse_grid(text) for text in args.compressed] + (list(GRIDS) if args.grids else [])
    args.xla = args.pattern != "*" if args.xla is None else args.xla
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed: leave accelerators to others
    names = find(args.pattern)
    width = max(map(len, names))
    print(line(HEADINGS if args.xla else HEADINGS[:-1], width))
    failures = []
    for name in names:
        try:
            for row in rows(name, args):
                print(line(row, width), flush=True)
        except Exception as error:  # one model must not hide the others
            print(f"{name.ljust(width)}  failed, see below", flush=True)
            text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
            failures.append(f"{name} failed: {text}")
    print("", FOOTNOTE, *([XLA_NOTE] if args.xla else []), *failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
