"""A frozen encoder's tokens of the training images, computed once and kept in a file.

The file has a row for each record of the training split, in its order, of the images as evaluation sees
them (`data.eval_transforms`): no augmentation. Rows of corrupt images are not finite. Tokens of bfloat16
encoders are kept as float16, which holds normalised values with more digits.
"""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.lib.format import open_memmap

from lookupjax.errors import UserError
from lookupjax.evaluation.context import OfModel
from lookupjax.paths import named_leaves
from lookupjax.tasks.base import Batch, Task
from lookupjax.training import distributed
from lookupjax.training.experiment import Experiment
from lookupjax.training.progress import Reporter
from lookupjax.training.sharding import global_batch
from lookupjax.training.state import TrainState

ENCODER = "encoder/"


@dataclass(frozen=True)
class Encoded(OfModel):
    """The encoder's tokens of a batch."""

    def of_model(self, task: Task, model: nnx.Module, batch: Batch, **call: Any) -> dict[str, jax.Array]:
        tokens = model.encode(batch["image"], **call)
        return {"tokens": tokens.astype(jnp.float16 if tokens.dtype == jnp.bfloat16 else tokens.dtype)}


def check_frozen(experiment: Experiment, params: Any) -> None:
    """Raises UserError unless the model has an encoder of which nothing is trained."""
    config = experiment.config
    names = [name for name in named_leaves(params) if name.startswith(ENCODER)]
    trained = [n for n in names if not any(re.search(pattern, n) for pattern in config.frozen)]
    if not names or trained or getattr(experiment.abstract_model, "train_encoder", True):
        raise UserError(
            "config.cache_tokens needs a model whose encoder is frozen: a captioner with "
            f'config.frozen=("^{ENCODER}",) and model.train_encoder=False'
            + (f"; {trained[0]} is trained" if trained else "")
        )


def fingerprint(experiment: Experiment, params: Any) -> str:
    """Changes with the encoder's weights and with what is encoded."""
    weights = {name: x for name, x in named_leaves(params).items() if name.startswith(ENCODER)}
    sums = jax.jit(lambda xs: [jnp.stack([x.sum(), jnp.abs(x).sum()]) for x in xs])(list(weights.values()))
    data = experiment.config.data
    what = (data.name, data.dir, data.train_split, data.channels, str(data.eval_transforms))
    digest = hashlib.sha256(repr((what, experiment.config.dtype, list(weights))).encode())
    for pair in jax.device_get(sums):
        digest.update(np.asarray(pair).tobytes())
    return digest.hexdigest()[:16]


def write_tokens(experiment: Experiment, state: TrainState, directory: Path, reporter: Reporter) -> Path:
    """The file of this encoder and data below `directory`, made unless it is there.

    Every process computes its share of each batch, the first one writes.

    Raises:
      UserError: when the encoder is not frozen.
    """
    check_frozen(experiment, state.params)
    path = directory / f"{fingerprint(experiment, state.params)}.npy"
    if path.exists():
        reporter.line(f"tokens of the training images: {path}")
        return path
    context = experiment.context([])
    batches = context.batches(experiment.config.data.train_split)
    total, writing = len(batches.source), jax.process_index() == 0
    temporary, rows, told = path.with_name("writing.npy"), None, time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(batches):
        values = context.program(
            Encoded(), state.params, state.stats, global_batch(batch, experiment.mesh), ()
        )
        tokens, mask = (np.asarray(jax.device_get(values[k])) for k in ("tokens", "mask"))
        first = number * experiment.config.eval_batch_size
        count = min(len(tokens), total - first)
        if writing:
            if rows is None:
                rows = open_memmap(temporary, "w+", tokens.dtype, (total, *tokens.shape[1:]))
            corrupt = mask[:count].reshape(-1, *[1] * (tokens.ndim - 1)) == 0
            rows[first : first + count] = np.where(corrupt, np.nan, tokens[:count])
        if time.monotonic() - told > 5:
            told = time.monotonic()
            reporter.line(f"encoding the training images: batch {number + 1} of {len(batches)}")
    if writing:
        rows.flush()
        temporary.rename(path)
        reporter.line(f"tokens of {total:,} training images, {rows.nbytes / 2**20:,.1f} MiB: {path}")
    distributed.meet("the tokens are written")
    return path
