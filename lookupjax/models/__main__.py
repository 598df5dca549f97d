"""python -m lookupjax.models [PATTERN] : parameters and cost of every model that matches."""

import argparse
from collections.abc import Iterator

from flax import nnx

from lookupjax import cli
from lookupjax.analysis.counts import count_params, count_products, model_call, xla_flops
from lookupjax.errors import UserError, nearest
from lookupjax.grids import format_grid, parse_grid
from lookupjax.models import create_model, list_models, model_options

HEADER = ("model", "input", "grid", "parameters", "GMACs formula", "GMACs traced", "GMACs XLA")


def input_size(options: dict, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The size the model's position table is made for, or the one asked for (videos keep their frames)."""
    native = tuple(p * g for p, g in zip(options["patch"], options["pos_grid"]))
    return native if asked is None else native[: len(native) - len(asked)] + asked


def rows(name: str, args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """One row per compressed grid (one in all for a model without)."""
    options = model_options(name)
    size = input_size(options, args.size)
    overrides = {"head": args.head} if args.head and "head" in options else {}
    model = nnx.eval_shape(lambda: create_model(name, **overrides))
    grids = [()]
    if "compressed" in options:
        grids = [g for g in args.compressed if len(g) == len(size)] or [tuple(options["compressed"])]
    for grid in grids:
        call = {"compressed": grid} if grid else {}
        fn, arguments = model_call(model, size, options["channels"], **call)
        macs = [model.macs(size, *call.values()), count_products(fn, arguments), xla_flops(fn, arguments) / 2]
        numbers = (f"{n / 1e9:,.3f}" for n in macs)
        yield name, format_grid(size), format_grid(grid) or "-", f"{count_params(model):,}", *numbers


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lookupjax.models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help='shell-style, such as "lookupvit_*"')
    parser.add_argument("--size", type=parse_grid, help="input HxW in pixels; default: each model's own")
    parser.add_argument(
        "--compressed", type=parse_grid, nargs="+", default=[], metavar="GRID", help="such as 3x3 5x5"
    )
    parser.add_argument("--head", help="head of the models that have a choice, such as gap")
    args = parser.parse_args(argv)
    names = list_models(args.pattern)
    if not names:
        raise UserError(f"no model matches {args.pattern!r}{nearest(args.pattern, list_models())}")
    widths = [max(map(len, [HEADER[0], *names])), 9, 6, 12, 13, 12, 10]
    print("  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(HEADER, widths))))
    for name in names:
        for row in rows(name, args):
            line = (text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths)))
            print("  ".join(line), flush=True)
    print(
        "formula: matrix products by the paper's cost formula; traced: those of the program; XLA: FLOPs / 2,"
    )
    print("element-wise work included. Everything for one input, multiply-accumulates in units of 1e9.")


if __name__ == "__main__":
    cli.run(main)
