"""A run's work directory: config.json, attempts.json, metrics.jsonl, checkpoints/, results.json, ..."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lookupjax.config import differences, from_json, to_json
from lookupjax.data.tokenizer import load_tokenizer
from lookupjax.errors import UserError
from lookupjax.files import write_whole
from lookupjax.training.checkpoint import Checkpoints
from lookupjax.training.experiment import Experiment, evaluation_params
from lookupjax.training.goodput import ATTEMPTS
from lookupjax.training.sharding import make_mesh
from lookupjax.training.state import merge_model

TOKENIZER = "tokenizer.model"
CLAIMS = (ATTEMPTS, TOKENIZER)  # what a start leaves before its first step
DISK = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file of that name is in the way",
}


@contextmanager
def disk_errors(path: Path):
    """Turns an operating system's refusal to write below `path` into a UserError."""
    try:
        yield
    except OSError as error:
        why = DISK.get(error.errno, error.strerror or str(error))
        raise UserError(
            f"cannot write to {path}: {why}; choose another --workdir or mend this one"
        ) from error


def has_results(workdir: Path) -> bool:
    """Whether a run has logged, saved or evaluated something here."""
    metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    return (
        (metrics.exists() and metrics.stat().st_size > 0)
        or (checkpoints.is_dir() and any(checkpoints.iterdir()))
        or (workdir / "results.json").exists()
    )


def begun(workdir: Path) -> bool:
    """Whether the directory belongs to a run: one that has just started, or one that something came of."""
    claimed = any((workdir / name).exists() for name in CLAIMS)
    return (workdir / "config.json").exists() and (claimed or has_results(workdir))


@contextmanager
def open_workdir(workdir: Path, config: ConfigDict, override: bool) -> Iterator[None]:
    """Claims the directory for a run: stores the config and the list of its starts, as yet empty.

    A run that fails inside before anything came of it, such as one with a mistyped option, gives the
    directory back; one that is killed keeps it, and goes on when it is started again.

    Raises:
      UserError: when it belongs to a run with another config and `override` is not set, or cannot be written.
    """
    first = jax.process_index() == 0
    with disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        was_begun = begun(workdir)
        changes = differences(read_config(workdir), config) if was_begun else []
        if changes and not override:
            raise UserError(
                f"{workdir} belongs to a run with another config:\n  "
                + "\n  ".join(changes)
                + "\nuse another --workdir, the old settings, or --override to go on with the new ones"
            )
        if (
            first
        ):  # the config before the claim: other processes of this job compare with it once that is there
            write_whole(workdir / "config.json", to_json(config))
            if not was_begun:
                write_whole(workdir / ATTEMPTS, "[]\n")
    try:
        yield
    except BaseException:
        if first and not was_begun and not has_results(workdir):
            for name in CLAIMS:
                (workdir / name).unlink(missing_ok=True)
        raise


def has_captions(data: ConfigDict) -> bool:
    """Whether texts are turned into tokens."""
    return any(t.get("name") == "captions" for t in (*data.train_transforms, *data.eval_transforms))


def with_files(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config that a run works with: what lies in its own directory is filled in.

    That is the tokenizer (and from it the size of the vocabulary) and the weights of `config.pretraining`;
    the stored config does not have them, so that the directory can be moved.

    Raises:
      UserError: for a tokenizer that is missing or has more tokens than the model.
    """
    filled = config.copy_and_resolve_references()
    if config.get("pretraining") and not config.init.path:  # older runs have no such key
        filled.init.path = str(workdir / "pretraining")
    if has_captions(config.data):
        path = workdir / TOKENIZER
        tokenizer = load_tokenizer(str(path))
        for key in ("train_transforms", "eval_transforms"):
            filled.data[key] = tuple(
                dict(t) | (dict(tokenizer=str(path)) if t.get("name") == "captions" else {})
                for t in config.data[key]
            )
        with filled.model.unlocked(), filled.task.unlocked():
            if config.task.get("name") == "captioning":
                filled.task.pad = tokenizer.pad
                filled.model.vocab_size = config.model.get("vocab_size", tokenizer.size)
        if filled.model.get("vocab_size", tokenizer.size) < tokenizer.size:
            raise UserError(
                f"model.vocab_size={filled.model.vocab_size} is too small for {path}: {tokenizer.size} tokens"
            )
    return filled


def read_config(workdir: Path) -> ConfigDict:
    """The config a run was started with.

    Raises:
      UserError: when this is no work directory.
    """
    path = workdir / "config.json"
    try:
        return from_json(path.read_text())
    except OSError:
        raise UserError(f"{workdir} is not a work directory: it has no readable config.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def load_trained(workdir: Path, which: str = "newest") -> tuple[Experiment, dict]:
    """(experiment, its "model" checkpoint item: "newest", "best" or of a step), on all devices.

    Raises:
      UserError: when there is no such checkpoint that this model can read.
    """
    config = with_files(read_config(workdir), workdir)
    mesh = make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1)))
    experiment = Experiment(config, mesh)
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(
            f"{workdir} has no checkpoint yet; train first: python -m lookupjax.train --workdir={workdir}"
        )
    with Checkpoints(directory, config.checkpoint) as checkpoints:
        part = checkpoints.restore_model(experiment.abstract_state.model_part(), which)
    if part is None:
        raise UserError(f"{directory} holds no complete checkpoint; let the training reach its first save")
    return experiment, part


def load_model(workdir: Path):
    """(experiment, the trained model), with the moving average as its parameters where there is one."""
    experiment, part = load_trained(workdir)
    return experiment, merge_model(experiment.graphdef, evaluation_params(part), part["stats"])
