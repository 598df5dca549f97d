"""Properties of CATANet (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lookupjax import create_model
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models.catanet import GroupAttention, over_windows, stitching
from lookupjax.training.sharding import make_mesh, tree_shardings
from lookupjax.training.state import merge_model, split_model


def group_attention(group_size: int = 8) -> GroupAttention:
    return GroupAttention(8, 4, 2, group_size, dtype=jnp.float32, rngs=Keys(0))


def test_sorting_grouping_and_scattering_back_is_the_identity(monkeypatch):
    def own_values(self, q, k, v, name=""):  # of two groups the first half; nothing of the centres
        return v[:, :, : q.shape[2]] if v.shape[2] > q.shape[2] else jnp.zeros((*q.shape[:3], v.shape[3]))

    monkeypatch.setattr(GroupAttention, "attend", own_values)
    attn = group_attention()
    x = jax.random.normal(jax.random.key(0), (2, 29, 8))
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 29) for i in range(2)])
    y = attn(x, order, jnp.zeros((5, 4)), jnp.zeros((5, 8)))
    np.testing.assert_allclose(y, attn.out(attn.v(x)), atol=1e-6)


def test_centres_are_a_set():
    attn, random = group_attention(), jax.random.key
    x, k, v = (jax.random.normal(random(i), s) for i, s in enumerate([(1, 20, 8), (6, 4), (6, 8)]))
    order, turned = jnp.arange(20)[None], jax.random.permutation(random(9), 6)
    np.testing.assert_allclose(attn(x, order, k[turned], v[turned]), attn(x, order, k, v), atol=1e-6)


@pytest.mark.parametrize("size, exact", [(28, True), (29, True), (54, True), (100, True), (55, False)])
def test_stitching_is_an_average_where_at_most_two_windows_meet(size, exact):
    x = jax.random.uniform(jax.random.key(0), (1, size, 28, 2))
    error = np.abs(over_windows(x, 28, lambda tokens: tokens) - x).max()
    assert (error < 1e-6) == exact
    assert stitching(size, 28)[0].shape[1] == {28: 1, 55: 3}.get(size, 2)


def test_maps_narrower_than_a_window_are_padded():
    x = jax.random.uniform(jax.random.key(0), (1, 5, 13, 2))
    np.testing.assert_allclose(over_windows(x, 8, lambda tokens: tokens), x, atol=1e-6)


def state():
    return split_model(filled(lambda: create_model("catanet_mu")))


@pytest.mark.parametrize("size", [(6, 7), (17, 17)])  # 42 tokens: a group of 32 and less than half of another
def test_any_size_works_and_evaluation_leaves_the_centres_alone(size):
    graphdef, params, stats = state()

    @jax.jit
    def run(params, stats, x):
        model = merge_model(graphdef, params, stats)
        return model(x)["image"], nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    image, after = run(params, stats, jnp.ones((1, *size, 3)))
    assert image.shape == (1, 2 * size[0], 2 * size[1], 3) and np.isfinite(image).all()
    for before, now in zip(jax.tree.leaves(stats), jax.tree.leaves(after)):
        np.testing.assert_array_equal(now, before)


def test_training_over_8_devices_and_in_bfloat16():
    """The centres and gradients of a sharded batch are those of one device."""
    graphdef, params, stats = state()
    half, _, _ = split_model(nnx.eval_shape(lambda: create_model("catanet_mu", dtype=jnp.bfloat16)))
    x = np.random.default_rng(0).uniform(size=(8, 12, 12, 3)).astype(np.float32)

    def loss(params, stats, x, graphdef):
        model = merge_model(graphdef, params, stats)
        image = model(x, rngs=Keys(0))["image"]
        return jnp.abs(image).mean(), (image, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param))))

    @jax.jit
    def step(params, stats, x):
        (_, (image, after)), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, x, graphdef)
        return image, after, grads, merge_model(half, params, stats)(x)["image"]

    one = step(params, stats, x)
    mesh = make_mesh(ConfigDict(dict(data=1, fsdp=8, model=1)))
    placed = jax.device_put(
        (params, stats, x),
        (*tree_shardings((params, stats), mesh), NamedSharding(mesh, PartitionSpec("fsdp"))),
    )
    many = step(*placed)
    for a, b in zip(jax.tree.leaves(one[:3]), jax.tree.leaves(many[:3])):
        np.testing.assert_allclose(b, a, atol=2e-5 * max(1.0, np.abs(a).max()))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(one[2]))
    assert np.mean([np.any(g) for g in jax.tree.leaves(one[2])]) > 0.9
    assert all(bool(block["started"]) for block in one[1]["aggregate"].values())
    norms = np.linalg.norm(one[1]["aggregate"][0]["means"], axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)
    assert one[3].dtype == jnp.float32 and np.abs(one[3] - one[0]).max() < 0.2


def test_user_errors():
    with pytest.raises(UserError, match="scale=5"):
        create_model("catanet_x4", scale=5)
    with pytest.raises(UserError, match="one entry for each block"):
        create_model("catanet_x4", windows=(16,))
    with pytest.raises(UserError, match="cannot be split into num_heads=4"):
        create_model("catanet_x4", qk_dim=35)
