"""python -m lookupjax.report --workdir DIR [DIR ...] [--out FILE.html] [--markdown]

One HTML page on one or several runs and their baselines, from the files in the work directories alone:
figures, curves, accuracy and cost, confusion, calibration, worst mistakes, settings, time. With --markdown
also DIR/report/report.md: measured speeds and pictures of the attention, for which the dataset must be here.
"""

import argparse
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lookupjax import cli
from lookupjax.analysis.caption_report import CaptionRun, write_caption_report
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.analysis.report import Run, write_report
from lookupjax.analysis.run_page import write_run_page
from lookupjax.analysis.run_view import Judged, RunView
from lookupjax.config import flat
from lookupjax.data.loader import EvalBatches
from lookupjax.data.transforms import output_size
from lookupjax.errors import UserError
from lookupjax.evaluation import OWN
from lookupjax.evaluation.captions import decoding_options
from lookupjax.evaluation.context import call_name
from lookupjax.evaluation.metrics import reliability
from lookupjax.evaluation.predictions import Predictions, path_of, read_predictions
from lookupjax.grids import parse_grid
from lookupjax.training.experiment import Experiment
from lookupjax.training.goodput import ATTEMPTS, goodput
from lookupjax.training.metrics import read_metrics
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import disk_errors, load_model, read_config, with_files

TIMED = 64  # images whose captions are timed
DRAWN, LARGEST = 12, 2_000_000  # pictures of evaluators in the page: how many of a run, bytes of one


def read_json(path: Path, default):
    """The content of a JSON file of a run, or `default` where there is none.

    Raises:
      UserError: when it is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else default
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it or run the training again") from None


def newest_figures(history: list[dict], calls: list[str]) -> dict[str, dict[str, float]]:
    """{call: {figure: number}} of the last evaluations in metrics.jsonl."""
    newest: dict[str, float] = {}
    for row in history:
        newest |= {key.removeprefix("eval/"): x for key, x in row.items() if key.startswith("eval/")}
    found: dict[str, dict[str, float]] = {}
    for call in calls:
        start = f"{call}/" if call else ""
        mine = {key.removeprefix(start): x for key, x in newest.items() if key.startswith(start)}
        if mine:
            found[call] = mine
    return found


def judged(workdir: Path, config: ConfigDict, call: str) -> tuple[Predictions, Judged] | None:
    """What the task's own evaluation left of one call."""
    path = path_of(workdir / "evaluation" / OWN, config.data.name, config.data.eval_split, call)
    if not path.exists():
        return None
    found = read_predictions(path)
    correct = (found.label == found.predicted).astype(np.float64)
    return found, Judged(
        call,
        f"{found.dataset}/{found.split}",
        found.index,
        found.label,
        found.predicted,
        found.confidence,
        found.probability,
        found.words,
        tuple(reliability(found.confidence, correct)),
        found.pictures,
    )


def configured_shape(data: ConfigDict) -> tuple[int, ...]:
    """The shape of an image after the evaluation transforms, as far as these tell it.

    Raises:
      UserError: when they do not, or make clips.
    """
    size = output_size(data.eval_transforms)
    if not size or any("frames" in t for t in data.eval_transforms):
        raise UserError("the size of its inputs is not in its config; evaluate it again to store it")
    return (*size, data.channels)


def counted(experiment: Experiment, calls: list[str], shape: tuple[int, ...]) -> dict[str, int]:
    """{call: multiply-accumulates of an input of `shape`}.

    Raises:
      UserError: when a call does not fit the shape.
    """
    model, macs = experiment.abstract_model, {}
    for call in calls:
        grid = {"compressed": parse_grid(call)} if call else {}
        macs[call] = count_products(trace_model(model, shape[:-1], shape[-1], **grid))
    return macs


def pictures(directory: Path) -> tuple[dict[str, bytes], list[str]]:
    """({name: PNG}, sentences on what is left out) of what evaluators drew in an evaluation/ directory."""
    paths = [path for path in sorted(directory.glob("*/*.png")) if not path.name.startswith("reliability_")]
    small = [path for path in paths if path.stat().st_size <= LARGEST]
    limit = f"a picture in this page may have {LARGEST / 1e6:g} MB"
    notes = [
        f"{path} is left out: it has {path.stat().st_size / 1e6:.1f} MB, {limit}"
        for path in paths
        if path not in small
    ]
    if len(small) > DRAWN:
        notes.append(f"pictures from {small[DRAWN]} on are left out: this page shows {DRAWN} of a run")
    return {str(path.relative_to(directory)): path.read_bytes() for path in small[:DRAWN]}, notes


def view(workdir: Path, name: str) -> RunView:
    """What the work directory tells of a run, finished or not.

    Raises:
      UserError: when it is no work directory, or a file is damaged.
    """
    config = read_config(workdir)
    history = read_metrics(workdir)
    experiment = Experiment(
        with_files(config, workdir), make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1)))
    )
    results = read_json(workdir / "results.json", None)
    step = max((row["step"] for row in history), default=0)
    calls = [call_name(call) for call in experiment.calls()]
    notes, macs = [], {}
    found = [pair for call in calls if (pair := judged(workdir, config, call))]
    chooses = hasattr(experiment.task, "choices")
    if chooses:
        try:
            shape = tuple(found[0][0].input) if found else configured_shape(config.data)
            macs = counted(experiment, calls, shape)
        except UserError as error:
            notes.append(f"its multiply-accumulates are not counted: {error}")
    drawn, left_out = pictures(workdir / "evaluation")
    notes += left_out
    records = read_json(workdir / ATTEMPTS, [])
    logged = [row for row in history if "goodput/total" in row]
    seconds = goodput(records) if records else {}
    if logged:  # written last: it has what came after the last checkpoint
        seconds = {key.removeprefix("goodput/"): x for key, x in logged[-1].items() if "goodput/" in key}
    return RunView(
        name=name,
        place=str(workdir),
        model=config.model.name,
        task=config.task.name,
        step=step,
        steps=config.steps,
        finished=results is not None and step >= config.steps,
        chooses=chooses,
        results=newest_figures(history, calls) if results is None else results,
        history=history,
        config=flat(config),
        params=count_params(experiment.abstract_model),
        macs=macs,
        seconds={part: x for part, x in seconds.items() if part not in ("share", "total")},
        starts=len(records),
        judged=[shown for _, shown in found],
        drawn=drawn,
        notes=notes,
    )


def with_baselines(workdirs: list[Path]) -> dict[Path, str]:
    """{work directory: name} of the runs and their baselines, in order; no two have the same name.

    Raises:
      UserError: when a directory is none of a run, or given twice.
    """
    configs = {workdir: read_config(workdir) for workdir in workdirs}
    if len({path.resolve() for path in workdirs}) < len(workdirs):
        raise UserError("a work directory is given twice; give each run once")
    common = Path(os.path.commonpath([path.resolve().parent for path in workdirs]))
    alone = len(workdirs) == 1
    names: dict[Path, str] = {}
    for workdir, config in configs.items():
        own = config.model.name if alone else str(workdir.resolve().relative_to(common))
        names[workdir] = own
        for path in sorted(workdir.glob("baselines/*/config.json")):
            label = path.parent.name if alone else f"{own}, {path.parent.name}"
            while label in names.values():
                label = f"baseline {label}"
            names[path.parent] = label
    return names


def write_page(workdirs: list[Path], out: Path | None = None) -> Path:
    """Writes the page (default: DIR/report/report.html, of several runs the first one's comparison.html).

    Raises:
      UserError: what `view` and `with_baselines` raise, or when the page cannot be written.
    """
    views = [view(path, name) for path, name in with_baselines(workdirs).items()]
    name = "report.html" if len(workdirs) == 1 else "comparison.html"
    out = out or workdirs[0] / "report" / name
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_run_page(views, out)
    return out


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
    parser.add_argument("--workdir", required=True, type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: DIR/report/report.html")
    parser.add_argument("--markdown", action="store_true", help="also DIR/report/report.md, of one run")
    args = parser.parse_args(argv)
    if args.markdown and len(args.workdir) > 1:
        raise UserError("--markdown is for one run and its baselines; give one --workdir")
    if args.out and args.out.is_dir():
        raise UserError(
            f"--out={args.out} is a directory; name a file in it, such as {args.out / 'report.html'}"
        )
    print(write_page(args.workdir, args.out))
    if args.markdown:
        print(report_workdir(args.workdir[0]))


if __name__ == "__main__":
    cli.run(main)
