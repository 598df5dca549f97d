"""MoH: gates, balance loss, and both routers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.attention import create_mixer
from lookupjax.attention.moh import HeadRouter, balance_loss, choose
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys

X = jax.random.normal(jax.random.key(0), (2, 16, 24))


@pytest.mark.parametrize("shared, routed", [(3, 2), (1, 3), (0, 4), (8, 0)])
def test_gates_sum_to_their_stages(shared, routed):
    router = HeadRouter(24, 8, shared, routed, rngs=Keys(0))
    gates, balance = jax.jit(router)(X)
    assert ((gates > 0).sum(-1) == shared + routed).all()
    always, chosen = gates[..., :shared].sum(-1), gates[..., shared:].sum(-1)
    if shared and routed:
        np.testing.assert_allclose(always / shared + chosen / routed, 2.0, rtol=1e-5)
    else:
        np.testing.assert_allclose(always + chosen, shared + routed, rtol=1e-5)
    assert (balance > 0) == (routed > 0)


def test_equal_logits_and_all_heads_give_plain_attention():
    moh = create_mixer("moh", 24, 4, shared=2, routed=2, rngs=Keys(0))
    plain = create_mixer("softmax", 24, 4, rngs=Keys(0))
    for layer in (moh.router.routed, moh.router.split, moh.router.shared):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    for name in ("q", "k", "v", "out"):
        getattr(plain, name).kernel[...] = getattr(moh, name).kernel[...]
    np.testing.assert_allclose(moh(X), plain(X), atol=1e-5)


def test_balance_loss_of_equal_and_collapsed_use():
    equal = jnp.tile(jnp.eye(4) * 0.7 + 0.075, (2, 4, 1))
    np.testing.assert_allclose(balance_loss(equal, choose(equal, 1)), 1.0, rtol=1e-5)
    collapsed = jnp.broadcast_to(jnp.array([0.5, 0.5, 0.0, 0.0]), (2, 8, 4))
    np.testing.assert_allclose(balance_loss(collapsed, choose(collapsed, 2)), 4.0, rtol=1e-5)


def test_llama_form_has_no_router_and_gates_of_zero_and_one():
    mixer = create_mixer(
        "moh", 24, 4, router="query_norm", kv_heads=2, rope_theta=1e4, shared=1, routed=2, rngs=Keys(0)
    )
    assert mixer.router is None and mixer.k.out_features == 12
    assert set(np.unique(mixer.gates(X, mixer.heads(mixer.q(X), 4))[0])) == {0.0, 1.0}
    run = jax.jit(lambda x: mixer(x, causal=True))
    np.testing.assert_allclose(run(X)[:, :9], run(X.at[:, 9:].add(1.0))[:, :9], atol=1e-5)


def test_rotation_depends_on_distance_only():
    mixer = create_mixer("moh", 24, 4, rope_theta=1e4, rngs=Keys(0))
    window = jnp.arange(16)[:, None] - jnp.arange(16)[None]
    mask = ((window >= 0) & (window < 3))[None, None]
    ours = mixer(X, mask=mask)[:, 6:]
    moved = mixer(X[:, 4:], mask=mask[..., 4:, 4:])[:, 2:]
    np.testing.assert_allclose(ours, moved, atol=1e-5)


def test_balance_loss_is_an_output_in_training_only():
    model = create_model("moh_vit_mu", num_classes=3)
    images = jnp.ones((1, 32, 32, 3))
    assert "aux_loss" not in jax.jit(lambda x: model(x))(images)
    aux = jax.jit(lambda x: model(x, rngs=Keys(0)))(images)["aux_loss"]
    assert aux.shape == () and 0.005 < aux < 0.05


def test_impossible_routing():
    for options in (dict(shared=3, routed=2), dict(shared=3, routed=0)):
        with pytest.raises(UserError, match="of 4 heads"):
            create_mixer("moh", 24, 4, **options, rngs=Keys(0))
    with pytest.raises(UserError, match="two candidates"):
        create_mixer("moh", 24, 4, router="query_norm", shared=3, routed=1, rngs=Keys(0))


def test_a_model_that_would_lose_the_balance_loss_says_so():
    for balance in (0.01, 0.0):
        mixer = create_mixer("moh", 24, 4, balance=balance, rngs=Keys(0))
        if balance:
            with pytest.raises(UserError, match="does not pass on"):
                mixer(X, rngs=Keys(1))
        assert mixer.has_aux_loss == (balance > 0)
