"""Losses over embeddings, and the tasks that train with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.tasks import create_task
from lookupjax.tasks.conditional_triplet import draw
from lookupjax.tasks.metric import batch_hard_triplet, triplet_loss

IMAGES = jax.random.normal(jax.random.key(0), (6, 32, 32, 3))


def test_triplets_by_hand():
    a, p, n = (jnp.array([[x, 0.0]]) for x in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(triplet_loss(a, p, n, 0.3), [1.0 - 0.25 + 0.3])
    features = jnp.array([[0.0], [1.0], [4.0], [9.0]])
    # anchors 0 and 1: positive at 1, negatives at 4 and 3; 2 and 3 have no positive
    np.testing.assert_allclose(batch_hard_triplet(features, jnp.array([7, 7, 1, 2]), 5.0), (2.0 + 3.0) / 2)
    assert batch_hard_triplet(features, jnp.array([1, 2, 3, 4])) == 0.0
    gradient = jax.grad(lambda f: batch_hard_triplet(f, jnp.array([1, 1, 2, 2])))(jnp.zeros((4, 3)))
    assert np.isfinite(gradient).all()


def test_draws_are_allowed_and_uniform():
    allowed = jnp.array([[True, False, True, False]] * 2000)
    index = draw(allowed, jax.random.key(1))
    assert set(np.unique(index)) == {0, 2} and 0.45 < (index == 2).mean() < 0.55


def test_conditional_triplets():
    model = create_model("ccan_mu", conditions=2)
    task = create_task(dict(name="conditional_triplet"), model)
    batch = {"image": IMAGES, "attributes": jnp.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 5], [2, 0]])}
    loss, figures = jax.jit(lambda b: task.train_loss(model, b, rngs=Keys(2)))(batch)
    assert 0.0 < loss < 4.3 and 0.0 < figures["active"] <= 1.0
    perfect = jax.nn.one_hot(batch["attributes"], 6)
    assert task.evaluate({"embedding": perfect}, batch)["nearest"].tolist() == [1, 1, 1, 1, 0.5, 1]
    one_space = create_task(dict(name="conditional_triplet", output="features"), model)
    assert one_space.spaces({"features": jnp.ones((6, 3))}, 2).shape == (2, 6, 3)
    with pytest.raises(UserError, match="use a dataset with attributes"):
        task.train_loss(model, {"image": IMAGES}, rngs=Keys(2))


@pytest.mark.parametrize("options", [{}, dict(margin=0.3)])
def test_all_branches_of_dcal_are_trained(options):
    model = create_model("dcal_mu", num_classes=5, learned_balance=True)
    for head in (model.trunk.head, model.glca_head):
        head.kernel[...] = jax.random.normal(jax.random.key(1), head.kernel.shape)
    task = create_task(dict(name="dual_cross_attention") | options, model)
    batch = {"image": IMAGES, "label": jnp.array([0, 0, 1, 1, 2, 3])}
    loss, figures = jax.jit(lambda b: task.train_loss(model, b, rngs=Keys(2)))(batch)
    branches = [figures[f"loss_{name}"] for name in ("sa", "glca", "pwca")]
    np.testing.assert_allclose(loss, 0.5 * sum(branches), rtol=1e-5)
    with pytest.raises(UserError, match="trains DCAL"):
        create_task(dict(name="dual_cross_attention"), create_model("ccan_mu"))
