"""What a training run is at one step: pure nested dicts of arrays."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lookupjax.layers.rngs import Keys
from lookupjax.paths import check_patterns, map_named, named_leaves

Tree = Any  # nested dicts with array leaves


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """Everything the step replaces; `stats` is the non-parameter state (BatchNorm, EMA centres).

    `ema` is an exponential moving average of the trainable parameters, or None.
    """

    step: Tree  # int32 scalar
    params: Tree
    stats: Tree
    opt_state: Tree
    ema: Tree

    def model_part(self) -> dict[str, Tree]:
        """What evaluation and prediction need: a checkpoint item of its own."""
        return {"step": self.step, "params": self.params, "stats": self.stats, "ema": self.ema}


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """(static structure, parameters, other state) of a model, the trees as pure dicts."""
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def merge_model(graphdef: nnx.GraphDef, params: Tree, stats: Tree) -> nnx.Module:
    """The model again; safe inside jit and grad."""
    return nnx.merge(graphdef, params, stats, copy=True)


def partition(params: Tree, frozen: tuple[str, ...]) -> tuple[Tree, Tree]:
    """(trainable, frozen): the same tree twice, with None where the leaf is in the other one.

    Raises:
      UserError: when a pattern matches no parameter.
    """
    check_patterns(frozen, named_leaves(params), "frozen")

    def is_frozen(name: str) -> bool:
        return any(re.search(pattern, name) for pattern in frozen)

    trainable = map_named(lambda n, x: None if is_frozen(n) else x, params)
    return trainable, map_named(lambda n, x: x if is_frozen(n) else None, params)


def combine(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None)


def init_state(
    make_model, seed: int, optimizer: optax.GradientTransformation, frozen: tuple[str, ...], ema: bool
) -> TrainState:
    """The state at step 0. Pure: jit it with out_shardings and nothing is ever whole on one device."""
    _, params, stats = split_model(make_model(rngs=Keys(seed)))
    trainable, _ = partition(params, frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=optimizer.init(trainable),
        ema=jax.tree.map(jnp.copy, trainable) if ema else None,
    )
