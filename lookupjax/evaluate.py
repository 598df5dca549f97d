"""python -m lookupjax.evaluate --workdir=DIR [--compressed=3x3] [--split=test]

Evaluates the newest checkpoint of a work directory; a LookupViT at every grid it was trained with, or at
the ones asked for.
"""

import argparse
import json
import logging
from pathlib import Path

from lookupjax import cli
from lookupjax.evaluation.classification import Call
from lookupjax.grids import parse_grid
from lookupjax.training.experiment import Experiment, check_compressed, evaluation_params
from lookupjax.workdir import load_trained


def asked_calls(experiment: Experiment, grids: list[str], size: tuple[int, ...]) -> list[Call]:
    """The call variants for `--compressed` values; without any, those of the training.

    Raises:
      UserError: when the model has no compressed tokens, or a grid is malformed or too large.
    """
    if not grids:
        return experiment.calls()
    for text in grids:
        check_compressed(experiment, parse_grid(text), size)
    return [(("compressed", parse_grid(text)),) for text in grids]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.evaluate", description=__doc__.split("\n\n")[1])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--compressed", action="append", default=[], metavar="GRID", help="3x3; repeatable")
    parser.add_argument("--split", default="", help="default: config.data.eval_split")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for text in args.compressed:
        parse_grid(text)  # a malformed grid should not wait for the checkpoint
    experiment, part = load_trained(args.workdir)
    split = args.split or experiment.config.data.eval_split
    evaluator = experiment.evaluator(split, experiment.calls())
    size = next(iter(evaluator.batches))["image"].shape[1:-1]
    evaluator.calls = tuple(asked_calls(experiment, args.compressed, size))
    results = evaluator.run(evaluation_params(part), part["stats"])
    if args.json:
        print(json.dumps(results, indent=2))
        return 0
    print(f"{experiment.config.model.name}, step {int(part['step'])}, {experiment.config.data.name}/{split}")
    for grid, figures in results.items():
        shown = "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{v} {k}" for k, v in figures.items())
        print(f"  {grid or 'model':8s} {shown}")
    return 0


if __name__ == "__main__":
    cli.run(main)
