"""python -m lookupjax.report --workdir=DIR : tables and pictures of a run and its baselines.

Works from the files in the work directory: DIR and every DIR/baselines/NAME that is finished.
"""

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lookupjax import cli
from lookupjax.analysis.caption_report import CaptionRun, write_caption_report
from lookupjax.analysis.report import Run, write_report
from lookupjax.data.loader import EvalBatches
from lookupjax.errors import UserError
from lookupjax.evaluation.captions import decoding_options
from lookupjax.training.metrics import read_metrics
from lookupjax.workdir import disk_errors, load_model, read_config, with_files

TIMED = 64  # images whose captions are timed


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


def load_captioner(workdir: Path) -> CaptionRun:
    """A finished captioner.

    Raises:
      UserError: when it has no results yet, or no captions evaluator.
    """
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{workdir} has no results.json: let the training finish first")
    experiment, model = load_model(workdir)
    evaluators = experiment.config.evaluators.to_dict()
    name = next((name for name, spec in evaluators.items() if spec["type"] == "captions"), "")
    if not name:
        raise UserError(
            f'{workdir}: a report on captions needs an evaluator of type "captions" in its config'
        )
    figures = next(iter(json.loads(path.read_text()).values()))
    mine = {key.partition("/")[2]: x for key, x in figures.items() if key.startswith(f"{name}/")}
    options, _ = decoding_options(experiment.context([]), evaluators[name].get("data"), evaluators[name])
    encoder = experiment.config.model.get("encoder", type(model.encoder).__name__).partition("_")[0]
    pictures = sorted((workdir / "evaluation" / name).glob("samples*.png"))
    return CaptionRun(encoder, model, mine, options, pictures)


def report_workdir(workdir: Path) -> Path:
    """Writes DIR/report and returns the path of its report.md."""
    finished = sorted(p.parent for p in workdir.glob("baselines/*/results.json"))
    config = read_config(workdir)
    if config.task.name == "captioning":
        captioners = [load_captioner(directory) for directory in (workdir, *finished)]
        data = with_files(config, workdir).data
        images = EvalBatches(data, data.eval_split, min(config.eval_batch_size, TIMED)).batch(0)["image"]
        with disk_errors(workdir):
            return write_caption_report(captioners, jnp.asarray(images), workdir / "report")
    runs = [load_run(directory) for directory in (workdir, *finished)]
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
