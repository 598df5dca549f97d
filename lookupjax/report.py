"""python -m lookupjax.report --workdir=DIR : tables and pictures of a run and its baselines.

Works from the files in the work directory: DIR and every DIR/baselines/NAME that is finished.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lookupjax import cli
from lookupjax.analysis.report import Run, write_report
from lookupjax.data.loader import EvalBatches
from lookupjax.errors import UserError
from lookupjax.training.metrics import read_metrics
from lookupjax.workdir import disk_errors, load_model, read_config


def load_run(workdir: Path) -> Run:
    """A finished run.

    Raises:
      UserError: when it has no results yet.
    """
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{workdir} has no results.json: let the training finish first")
    _, model = load_model(workdir)
    family = read_config(workdir).model.name.partition("_")[0]
    return Run(family, model, json.loads(path.read_text()), read_metrics(workdir))


def report_workdir(workdir: Path) -> Path:
    """Writes DIR/report and returns the path of its report.md."""
    finished = sorted(p.parent for p in workdir.glob("baselines/*/results.json"))
    runs = [load_run(directory) for directory in (workdir, *finished)]
    config = read_config(workdir)
    batches = list(EvalBatches(config.data, config.data.eval_split, config.eval_batch_size))
    images, labels, mask = (np.concatenate([b[k] for b in batches]) for k in ("image", "label", "mask"))
    with disk_errors(workdir):
        return write_report(runs, images[mask > 0], labels[mask > 0], workdir / "report")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lookupjax.report", description=__doc__.split("\n\n")[1])
    parser.add_argument("--workdir", required=True, type=Path)
    print(report_workdir(parser.parse_args(argv).workdir))


if __name__ == "__main__":
    cli.run(main)
