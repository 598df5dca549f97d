"""The training step: one pure function, everything that happens in it visible in order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lookupjax.data.mixing import Mixing, normalize_images
from lookupjax.data.transforms import Normalize
from lookupjax.layers.rngs import Keys
from lookupjax.tasks.base import Task
from lookupjax.training.sharding import Layout
from lookupjax.training.state import TrainState, combine, merge_model, partition

Batch = dict[str, jax.Array]


def make_train_step(
    graphdef: nnx.GraphDef,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    normalize: Normalize | None = None,
    mixing: Mixing | None = None,
    frozen: tuple[str, ...] = (),
    accumulate: int = 1,
    ema: float = 0.0,
    layout: Layout | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns train_step(state, batch, call) -> (new state, metrics).

    `call` holds static keyword arguments of the model's call as a tuple of pairs, such as
    (("compressed", (3, 3)),); each value of it is a program of its own.
    `layout` says where parameters and gradients lie on a mesh that splits them.
    All randomness derives from (seed, step, microbatch).
    """

    def train_step(state: TrainState, batch: Batch, call: tuple[tuple[str, Any], ...] = ()):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if normalize is not None and "image" in batch:
            batch = batch | {"image": normalize_images(batch["image"], normalize)}
        if mixing is not None and mixing.active:
            key, mixing_key = jax.random.split(key)
            batch = mixing(batch, mixing_key)
        trainable, fixed = partition(state.params, frozen)

        def loss_fn(trainable, stats, batch, key):
            params = combine(trainable, fixed)
            if layout is not None:
                params = layout.gather(params)
            model = merge_model(graphdef, params, stats)
            loss, figures = task.train_loss(model, batch, rngs=Keys(key), **dict(call))
            new_stats = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
            return loss, ({"loss": loss} | figures, new_stats)

        def grad_fn(*args):
            grads, aux = jax.grad(loss_fn, has_aux=True)(*args)
            return (grads if layout is None else layout.scatter(grads)), aux

        if accumulate == 1:
            grads, (metrics, stats) = grad_fn(trainable, state.stats, batch, key)
        else:
            grads, metrics, stats = _accumulate(grad_fn, trainable, state.stats, batch, key, accumulate)

        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        average = state.ema
        if average is not None:
            done = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema, (1.0 + done) / (10.0 + done))  # follows closely at first
            average = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), average, trainable)

        metrics = metrics | {
            "grad_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        params = combine(trainable, fixed)
        return TrainState(state.step + 1, params, stats, opt_state, average), metrics

    return train_step


def _accumulate(grad_fn, trainable, stats, batch: Batch, key: jax.Array, parts: int):
    """Mean gradient and metrics over `parts` microbatches, one after the other.

    Microbatch i takes examples i, i + parts, ...: every device keeps its own examples.
    """
    split = {k: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}
    first = jax.tree.map(lambda x: x[0], split)
    abstract = jax.eval_shape(grad_fn, trainable, stats, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (abstract[0], abstract[1][0]))

    def body(carry, part):
        total, stats = carry
        index, microbatch = part
        grads, (metrics, stats) = grad_fn(trainable, stats, microbatch, jax.random.fold_in(key, index))
        return (jax.tree.map(lambda t, g: t + g / parts, total, (grads, metrics)), stats), None

    (total, stats), _ = jax.lax.scan(body, (zeros, stats), (jnp.arange(parts), split))
    return *total, stats
