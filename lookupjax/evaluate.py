"""python -m lookupjax.evaluate --workdir=DIR [--evaluator=NAME] [--compressed=3x3] [--split=test]

Evaluates the newest checkpoint of a work directory: the task's own figures and config.evaluators, a
LookupViT at every grid it was trained with or at the ones asked for. Evaluators that the run was not
trained with are added as --config.evaluators.NAME.type=TYPE --config.evaluators.NAME.OPTION=VALUE.
"""

import argparse
import json
import logging
import os
from pathlib import Path

import jax

from lookupjax import cli
from lookupjax.config import set_override
from lookupjax.errors import UserError
from lookupjax.evaluation import Evaluator, Results, create_evaluators, describe, run_evaluators
from lookupjax.evaluation.context import Call
from lookupjax.grids import parse_grid
from lookupjax.training import distributed
from lookupjax.training.experiment import Experiment, check_compressed, evaluation_params
from lookupjax.workdir import load_trained

log = logging.getLogger(__name__)
CHANGEABLE = ("evaluators", "data", "eval_batch_size")  # what does not change what was trained


def asked_calls(experiment: Experiment, grids: list[str]) -> list[Call]:
    """The call variants for `--compressed` values; without any, those of the training.

    Raises:
      UserError: when the model has no compressed tokens, or a grid is malformed or too large.
    """
    if not grids:
        return experiment.calls()
    size = experiment.context([]).input_size()
    for text in grids:
        check_compressed(experiment, parse_grid(text), size)
    return [(("compressed", parse_grid(text)),) for text in grids]


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="lookupjax.evaluate", description=__doc__.split("\n\n")[1])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument(
        "--evaluator",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one; repeatable; the task's own is called figures",
    )
    parser.add_argument("--compressed", action="append", default=[], metavar="GRID", help="3x3; repeatable")
    parser.add_argument("--split", default="", help="default: config.data.eval_split")
    parser.add_argument(
        "--checkpoint", default="newest", help='"newest", "best" (of checkpoint.best) or a step'
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    distributed.add_flags(parser)
    args, changes = parser.parse_known_args(argv)
    for text in changes:
        if not text.startswith(tuple(f"--config.{key}" for key in CHANGEABLE)):
            raise UserError(
                f"unknown argument {text!r}; --config.KEY=VALUE can change {', '.join(CHANGEABLE)} here"
            )
    for text in args.compressed:
        parse_grid(text)  # a malformed grid should not wait for the checkpoint
    return args, changes


def main(argv: list[str]) -> int:
    args, changes = parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    distributed.start(args)
    with distributed.leave_together():
        heading, results = evaluate(args, changes)
    if jax.process_index() > 0:
        return 0
    if args.json:
        print(json.dumps(results, indent=2))
        return 0
    print("\n  ".join([heading, *describe(results)]))
    return 0


def evaluate(args: argparse.Namespace, changes: list[str]) -> tuple[str, Results]:
    """(what was evaluated, the figures), the same on every process."""
    experiment, part = load_trained(args.workdir, args.checkpoint)
    config, step = experiment.config, int(part["step"])
    for change in changes:
        set_override(config, change)
    config.data.eval_split = args.split or config.data.eval_split
    writable = os.access(args.workdir, os.W_OK)
    if not writable:
        log.warning("%s cannot be written to: predictions and pictures are not kept", args.workdir)
    place = args.workdir / "evaluation"  # of the newest checkpoint: the report reads it
    place = place if args.checkpoint == "newest" else place / f"step_{step}"

    def create() -> dict[str, Evaluator]:
        context = experiment.context(asked_calls(experiment, args.compressed), place if writable else None)
        return create_evaluators(config.evaluators.to_dict(), context, args.evaluator)

    evaluators = distributed.first_process_first(create)  # which may prepare datasets
    results = run_evaluators(evaluators, evaluation_params(part), part["stats"])
    return f"{config.model.name}, step {step}, {config.data.name}/{config.data.eval_split}", results


if __name__ == "__main__":
    cli.run(main)
