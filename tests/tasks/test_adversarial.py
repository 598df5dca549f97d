"""Attacks stay within their bounds and hurt; training on them works for any classifier."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.tasks import create_task
from lookupjax.tasks.adversarial import Normalisation, attack

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@cache
def batch(size: int) -> dict[str, jax.Array]:
    """Normalised images, a quarter of whose pixels are saturated."""
    pixels = jnp.clip(2.0 * jax.random.uniform(jax.random.key(0), (4, size, size, 3)) - 0.5, 0.0, 1.0)
    inputs = (pixels - jnp.array(MEAN)[None, None, None]) / jnp.array(STD)[None, None, None]
    return {"image": inputs, "label": jnp.array([0, 1, 2, 3])}


@pytest.mark.parametrize("options", [{}, dict(steps=3, step=1 / 255, random_start=False)])
def test_attacked_images_are_within_the_bound_and_cost_more(options):
    model = create_model("vit_mu", num_classes=4)
    model.head.kernel[...] = jax.random.normal(jax.random.key(1), model.head.kernel.shape)
    task = create_task(dict(name="adversarial", mean=MEAN, std=STD) | options, model)
    clean = batch(32)
    attacked = jax.jit(lambda b: task.attacked(model, b, rngs=Keys(2)))(clean)
    pixels = attacked * jnp.array(STD)[None, None, None] + jnp.array(MEAN)[None, None, None]
    change = (attacked - clean["image"]) * jnp.array(STD)[None, None, None]
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    assert 0.9 * task.eps < jnp.abs(change).max() < task.eps + 1e-6
    losses = [task.loss(jax.jit(model)(x), clean)[0] for x in (clean["image"], attacked)]
    assert losses[1] > losses[0]


def test_statistics_follow_the_attacked_images_once():
    model = create_model("resnet_mu", depths=(1,), num_classes=4)
    task = create_task(dict(name="adversarial", mean=MEAN, std=STD), model)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def both(params):
        def loss(params):
            trained = nnx.merge(graphdef, params, rest, copy=True)
            return task.train_loss(trained, batch(32), rngs=Keys(3))[0], nnx.state(trained, nnx.BatchStat)

        gradient, statistics = jax.grad(loss, has_aux=True)(params)
        once = nnx.merge(graphdef, params, rest, copy=True)
        once(task.attacked(once, batch(32), rngs=Keys(3)), rngs=Keys(4))
        return gradient, statistics, nnx.state(once, nnx.BatchStat)

    gradient, statistics, expected = both(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    for a, b in zip(*map(jax.tree.leaves, (statistics, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_no_noise_changes_no_bit():
    inputs = batch(32)["image"]
    normalisation = Normalisation(MEAN, STD)
    pixels = normalisation.pixels(inputs)
    worst = attack(lambda x: (x**2).sum(), pixels, jnp.zeros_like(pixels), eps=0.0, step=0.0, steps=2)
    np.testing.assert_array_equal(normalisation.changed(inputs, pixels, worst), inputs)


def test_an_attack_needs_steps():
    with pytest.raises(UserError, match="at least one step"):
        attack(lambda x: x.sum(), jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)), eps=0.1, step=0.1, steps=0)
