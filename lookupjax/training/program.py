"""The compiled training step: the same lowering for the loop and for compilation ahead of time."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lookupjax.data.loader import train_iterator
from lookupjax.data.transforms import build_transforms, output_size
from lookupjax.errors import UserError
from lookupjax.evaluation.context import Call, call_name
from lookupjax.training import sharding
from lookupjax.training.debug import raising, with_nan_checks
from lookupjax.training.experiment import Experiment, check_compressed
from lookupjax.training.progress import Reporter
from lookupjax.training.step import make_train_step

Batch = dict[str, Any]  # arrays, or their shapes


def trace_step(experiment: Experiment, batch: Batch, call: Call) -> jax.stages.Traced:
    """The training step of one call variant with the shardings of the mesh, its state donated; traced.

    With config.check_nans it also returns an error, see `with_nan_checks`.

    Raises:
      UserError: when `call` asks for a grid that the inputs are too small for.
    """
    config = experiment.config
    for _, grid in call:
        check_compressed(experiment, grid, batch["image"].shape[1:-1])
    step = make_train_step(
        experiment.graphdef,
        experiment.task,
        experiment.optimizer,
        experiment.schedule,
        seed=config.seed,
        normalize=experiment.normalize,
        mixing=experiment.mixing,
        frozen=config.frozen,
        accumulate=config.accumulate,
        ema=config.ema,
        layout=experiment.layout,
    )
    places = experiment.state_shardings
    jitted = jax.jit(
        with_nan_checks(step) if config.check_nans else step,
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(places, {key: NamedSharding(experiment.mesh, sharding.BATCH) for key in batch}),
        out_shardings=(None, (places, None)) if config.check_nans else (places, None),
    )
    return jitted.trace(experiment.abstract_state, batch, call)


def compile_steps(experiment: Experiment, batch: Batch, reporter: Reporter) -> dict[Call, Any]:
    """One compiled train step per call variant, all of them before the first step."""
    calls = experiment.calls()

    def compiled(call: Call) -> Any:
        start = time.perf_counter()
        program = trace_step(experiment, batch, call).lower().compile()
        reporter.line(f"compiled the step {call_name(call)} in {time.perf_counter() - start:.1f} s")
        return raising(program) if experiment.config.check_nans else program

    reporter.line(f"compiling {len(calls)} program{'s' if len(calls) > 1 else ''}")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(calls, pool.map(compiled, calls)))


def batch_shapes(experiment: Experiment, size: tuple[int, ...] = ()) -> Batch:
    """The shapes of a training batch: of the first example, or, where the dataset is not here, of images of
    `size` (default: that of the last transform that sets one, with the number of frames where one draws
    them) with a class label, and a caption where the transforms make one.

    Raises:
      UserError: when neither the dataset nor a size is there.
    """
    config = experiment.config
    try:
        if size:
            raise UserError("a size is given")
        example = next(train_iterator(config.data, 2, config.seed))
        return {
            key: jax.ShapeDtypeStruct((config.batch_size, *value.shape[1:]), value.dtype)
            for key, value in example.items()
        }
    except UserError as error:
        frames = [spec["frames"] for spec in config.data.train_transforms if "frames" in spec][:1]
        last = output_size(config.data.train_transforms)
        size = size or ((*frames, *last) if last else ())
        if not size:
            raise UserError(f"the inputs' size is unknown: {error}") from None
    image = jax.ShapeDtypeStruct((config.batch_size, *size, config.data.channels), jnp.float32)
    label, texts = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32), {}
    for spec in config.data.train_transforms:
        if spec.get("name") == "captions":
            transform = build_transforms([spec])[0]
            texts = {"caption": jax.ShapeDtypeStruct((config.batch_size, transform.length), jnp.int32)}
    return {"image": image, "label": label} | texts
