"""Learning-rate schedules and the gradient transformation, from config."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from lookupjax.errors import UserError, nearest
from lookupjax.paths import check_patterns, map_named, named_leaves

SCHEDULES = ("cosine", "rsqrt", "linear", "constant", "knots")
OPTIMIZERS = ("adamw", "adam", "muon", "sgd", "lars")
TRUST = 0.001  # of LARS
MUON_RMS = 0.2  # of Muon's updates: about that of Adam's


def make_schedule(config: ConfigDict, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over `warmup_steps`, then:

    "cosine": peak to `end` x peak at `steps`. "linear": the same along a line. "constant": peak.
    "rsqrt": peak sqrt(timescale / (timescale + t)), then linearly to 0 over the last `cooldown_steps`
    (arXiv 2106.04560, section 3.3). "knots": peak times the line through `knots`, pairs of (share of the
    steps after warm-up, factor).

    Raises:
      UserError: for an unknown name, a warm-up longer than the training, or knots out of order.
    """
    name, warmup = config.name, config.warmup_steps
    if name not in SCHEDULES:
        raise UserError(f"schedule.name={name!r} is unknown{nearest(name, SCHEDULES)}: {SCHEDULES}")
    if warmup >= steps:
        raise UserError(f"schedule.warmup_steps={warmup} must be smaller than steps={steps}")
    places = [place for place, _ in config.knots]
    if name == "knots" and (not places or places != sorted(places)):
        raise UserError(f"schedule.knots={config.knots} must be pairs (share of the steps, factor) in order")

    def schedule(step: jax.Array | int) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        done = jnp.clip((t - warmup) / (steps - warmup), 0.0, 1.0)
        if name == "cosine":
            rate = config.end + (1.0 - config.end) * 0.5 * (1.0 + jnp.cos(math.pi * done))
        elif name == "linear":
            rate = config.end + (1.0 - config.end) * (1.0 - done)
        elif name == "rsqrt":
            since = jnp.maximum(t - warmup, 0.0)
            rate = jnp.sqrt(config.timescale / (config.timescale + since))
            rate *= jnp.clip((steps - t) / max(config.cooldown_steps, 1), 0.0, 1.0)
        elif name == "knots":
            rate = jnp.interp(done, *jnp.asarray(config.knots, jnp.float32).T)
        else:
            rate = jnp.ones_like(t)
        return peak * rate * (jnp.minimum(1.0, t / warmup) if warmup else 1.0)

    return schedule


def multipliers(params: Any, rules: tuple[tuple[str, float], ...], purpose: str) -> Any:
    """The tree of factors: that of the first rule (pattern, factor) that matches, else 0."""
    check_patterns([pattern for pattern, _ in rules], named_leaves(params), purpose)

    def factor(name: str, _: Any) -> float:
        return next((value for pattern, value in rules if re.search(pattern, name)), 0.0)

    return map_named(factor, params)


def layer_rates(params: Any, decay: float) -> Any:
    """Layer-wise learning-rate factors decay^(L - l): embeddings are layer 0, heads layer L (BEiT)."""
    blocks = [int(m[1]) for name in named_leaves(params) if (m := re.match(r"blocks/(\d+)/", name))]
    last = max(blocks, default=-1) + 2

    def factor(name: str, _: Any) -> float:
        if m := re.match(r"blocks/(\d+)/", name):
            return decay ** (last - 1 - int(m[1]))
        embedding = re.match(r"(embed|pos|cls|registers)", name)
        return decay**last if embedding else 1.0

    return map_named(factor, params)


def muon_matrices(params: Any) -> Any:
    """How Muon reads each parameter: kernels with two axes as (in, out), but None for heads and others."""

    def matrix(name: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        hidden = re.search(r"(^|/)kernel$", name) and not re.search(r"(^|/)\w*head\w*/", name)
        return optax.contrib.MuonDimensionNumbers(0, 1) if hidden and len(leaf.shape) == 2 else None

    return map_named(matrix, params)


def _scale(factors: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def make_optimizer(config: ConfigDict, schedule: optax.Schedule, params: Any) -> optax.GradientTransformation:
    """clip -> Adam or momentum -> decoupled weight decay -> layer decay -> -learning rate.

    "adam" is "adamw" with the weight decay added to the gradient, before Adam (PyTorch's Adam). "lars"
    (arXiv 1708.03888): weight decay in the gradient g, then g *= 0.001 |w| / |g| for every array w of more
    than one axis (where both are not zero), then momentum. "muon": for kernels of hidden layers the momentum
    made orthogonal (Jordan 2024), scaled to the size of Adam's updates so that AdamW's learning rate and
    weight decay serve (arXiv 2502.16982, section 2.2); Adam for the rest. Both with Nesterov's look-ahead.

    Args:
      config: the `optimizer` part of the config; `decay` lists (pattern, factor of weight_decay).
      params: the (abstract) trainable parameters, for their names.

    Raises:
      UserError: for an unknown optimizer, or a pattern that matches nothing.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name={config.name!r} is unknown; choose one of {OPTIMIZERS}")
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    decay = []
    if config.weight_decay:
        factors = multipliers(params, config.decay, "optimizer.decay")
        rate = config.weight_decay
        decay.append(
            optax.stateless(
                lambda updates, p: jax.tree.map(lambda u, w, f: u + rate * f * w, updates, p, factors)
            )
        )
    if config.name == "sgd":
        parts += [optax.trace(decay=config.momentum), *decay]
    elif config.name == "lars":
        several = jax.tree.map(lambda p: len(p.shape) > 1, params)
        trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), several)
        parts += [*decay, trust, optax.trace(decay=config.momentum)]
    elif config.name == "muon":
        direction = optax.contrib.muon(
            -1.0,  # as the learning rate: leaves the sign and the size to what follows
            beta=config.momentum,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            muon_weight_dimension_numbers=muon_matrices(params),
            consistent_rms=MUON_RMS,
        )
        parts += [direction, *decay]
    else:
        adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
        parts += [*decay, adam] if config.name == "adam" else [adam, *decay]
    if config.layer_decay != 1.0:
        parts.append(_scale(layer_rates(params, config.layer_decay)))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)
