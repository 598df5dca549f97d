"""Accuracy against compute, of the runs that are finished, beside what was published: report.md and a plot.

    python experiments/imagenet_tradeoff/report.py --scale=imagenet --workdir=runs/tradeoff_imagenet

Works from results.json and config.json in DIR/<run>. Runs that are not finished are in the table as
missing, and in the plot at their cost.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict
from runs import SCALES, Run, Scale

from lookupjax import cli
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.analysis.plots import Point, accuracy_point, tradeoff
from lookupjax.config import load_config
from lookupjax.data.sources import BUILDERS, dataset_info
from lookupjax.grids import format_grid, parse_grid
from lookupjax.models import create_model, model_options, nominal_options
from lookupjax.workdir import disk_errors, read_config

IMAGENET_CLASSES = 1000


def counted(config: ConfigDict) -> tuple[int, dict[str, int]]:
    """(parameters, {grid or "": multiply-accumulates of one image}) of a config's model."""
    options = config.model.to_dict()
    name = options.pop("name")
    if "num_classes" not in options:
        data = config.data
        known = data.name in BUILDERS  # made on the spot; ImageNet need not be here to be counted
        options["num_classes"] = dataset_info(data.name, data.dir).num_classes if known else IMAGENET_CLASSES
    if "channels" in model_options(name):
        options.setdefault("channels", config.data.channels)
    model = nnx.eval_shape(lambda: create_model(name, **options | nominal_options(name)))
    sizes = [t["size"] for t in config.data.eval_transforms if "size" in t]
    size = (sizes[-1],) * 2 if isinstance(sizes[-1], int) else tuple(sizes[-1])
    grids = [format_grid(grid) for grid in config.grids]
    if not grids:
        grids = [format_grid(model.compressed)] if hasattr(model, "compressed") else [""]
    macs = {}
    for grid in grids:
        call = {"compressed": parse_grid(grid)} if grid else {}
        macs[grid] = count_products(trace_model(model, size, config.data.channels, **call))
    return count_params(model), macs


def rows(run: Run, workdir: Path) -> list[dict[str, Any]]:
    """A row per grid: {"run", "series", "grid", "params", "macs", "figures": {} where it is missing}."""
    place = workdir / run.name / "results.json"
    results = json.loads(place.read_text()) if place.exists() else {}
    config = read_config(workdir / run.name) if results else load_config(run.config, list(run.overrides))
    params, macs = counted(config)
    common = {"run": run.name, "series": run.series, "params": params}
    return [
        common | {"grid": grid, "macs": cost, "figures": results.get(grid, results.get("", {}))}
        for grid, cost in macs.items()
    ]


def table(scale: Scale, found: list[dict[str, Any]]) -> list[str]:
    base = found[0]
    headings = ["run", "grid", "parameters", "MACs", f"of {base['run']}", "accuracy", "difference"]
    lines = [f"| {' | '.join([*headings, *scale.columns.values()])} |"]
    lines.append("|---|---|" + "---:|" * (len(headings) - 2 + len(scale.columns)))
    for row in found:
        figures, unit = row["figures"], (1e9, "G") if row["macs"] >= 1e9 else (1e6, "M")
        cells = [
            row["run"],
            row["grid"] or "-",
            f"{row['params']:,}",
            f"{row['macs'] / unit[0]:.2f} {unit[1]}",
        ]
        cells.append(f"{row['macs'] / base['macs']:.0%}")
        if figures:
            cells.append(f"{figures['accuracy']:.4f}")
            known = base["figures"].get("accuracy")
            cells.append("-" if known is None else f"{figures['accuracy'] - known:+.4f}")
            shown = {key: figures.get(key) for key in scale.columns}
            cells += ["-" if value is None else f"{value:.4f}" for value in shown.values()]
        else:
            cells += ["**missing**"] + ["-"] * (1 + len(scale.columns))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_report(name: str, workdir: Path) -> Path:
    """Writes report.md and accuracy_macs.png into `workdir`; returns the path of report.md."""
    scale = SCALES[name]
    found = [row for run in scale.runs for row in rows(run, workdir)]
    done = [row for row in found if row["figures"]]
    series: dict[str, list[Point]] = {run.series: [] for run in scale.runs}
    for row in done:
        point = accuracy_point(row["grid"] or row["run"], row["macs"], row["figures"])
        series[row["series"]].append(point)
    at_cost: dict[int, list[str]] = {}  # what is missing, by multiply-accumulates
    for row in found:
        if not row["figures"]:
            at_cost.setdefault(row["macs"], []).append(row["run"])
    missing = {", ".join(names): macs for macs, names in at_cost.items()}
    text = [f"# LookupViT against ViT: {name}", "", *table(scale, found), ""]
    left = "" if len(done) == len(found) else "; the rest is missing: not trained yet"
    text.append(f"{len(done)} of {len(found)} points are measured{left}.")
    text += [*(f"- published: {source}" for source in scale.sources), ""]
    text += ["![accuracy against multiply-accumulates](accuracy_macs.png)", ""]
    with disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        tradeoff(series, list(scale.published), missing, workdir / "accuracy_macs.png")
        path = workdir / "report.md"
        path.write_text("\n".join(text))
    return path


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="imagenet_tradeoff/report.py", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="imagenet")
    parser.add_argument("--workdir", type=Path, help="default: runs/tradeoff_SCALE")
    args = parser.parse_args(argv)
    print(write_report(args.scale, args.workdir or Path(f"runs/tradeoff_{args.scale}")))


if __name__ == "__main__":
    cli.run(main)
