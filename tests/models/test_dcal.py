"""Properties of DCAL that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.attention.rollout import rollout, rollout_row
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models.dcal import attend_to, random_pairs
from lookupjax.tasks.dual_cross_attention import balanced

IMAGES = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
PAIRS = jnp.array([1, 0, 3, 2])


def model(**options):
    """A tiny model whose heads are not zero."""
    dcal = create_model("dcal_mu", num_classes=5, **options)
    for head in (dcal.trunk.head, dcal.glca_head):
        head.kernel[...] = jax.random.normal(jax.random.key(1), head.kernel.shape)
    return dcal


def test_rollout_rows_sum_to_one_and_one_row_costs_no_products():
    attention = list(jax.nn.softmax(jax.random.normal(jax.random.key(2), (3, 2, 9, 9))))
    whole = rollout(attention)
    np.testing.assert_allclose(whole.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(rollout_row(attention, 4), whole[:, 4], rtol=1e-5)
    assert not np.allclose(rollout(attention[::-1]), whole, atol=1e-3)


def test_with_every_patch_selected_glca_is_an_ordinary_block():
    dcal = model(ratio=1.0)

    @jax.jit
    def both(images):
        xs, attention = dcal.self_attention(dcal.trunk.tokenize(images))
        return dcal.global_local(xs[-1], dcal.select(attention)), dcal.glca(xs[-1])

    np.testing.assert_allclose(*both(IMAGES), atol=1e-5)


def test_pair_wise_attention_without_the_partners_keys_is_self_attention():
    dcal = model()
    block, x = dcal.trunk.blocks[0], dcal.trunk.tokenize(IMAGES)
    np.testing.assert_allclose(jax.jit(lambda x: attend_to(block, x, x))(x), jax.jit(block)(x), atol=1e-6)

    @jax.jit
    def run(images):
        return dcal(images, pairs=jnp.arange(4)), dcal(images, pairs=PAIRS)

    alone, paired = run(IMAGES)  # its own partner: every key twice, the same softmax
    np.testing.assert_allclose(alone["logits_pwca"], alone["logits_sa"], atol=1e-4)
    assert not np.allclose(paired["logits_pwca"], paired["logits_sa"], atol=1e-2)
    np.testing.assert_allclose(jnp.exp(paired["logits"]).sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("count", [6, 7])
def test_partners_are_mutual(count):
    pairs = random_pairs(jax.random.key(4), count)
    np.testing.assert_array_equal(pairs[pairs], np.arange(count))
    assert (pairs == np.arange(count)).sum() == count % 2


def test_without_uncertainty_the_loss_is_half_the_sum():
    losses = jnp.array([1.0, 2.0, 4.0])
    assert balanced(losses, jnp.zeros(3)) == 3.5


def test_registers_are_never_asked_with():
    dcal = model(registers=2)
    attention = list(jax.nn.softmax(jax.random.normal(jax.random.key(5), (2, 3, 19, 19))))
    selected = np.asarray(dcal.select(attention))
    assert selected.shape == (3, 2) and (selected[:, 0] == 0).all() and (selected[:, 1:] >= 3).all()


def test_training_mode_and_user_errors():
    out = jax.jit(lambda x: model(drop_path=0.3)(x, pairs=PAIRS, rngs=Keys(0)))(IMAGES)
    assert out["token_pwca"].shape == (4, 32) and out["features"].shape == (4, 64)
    with pytest.raises(UserError, match="share of patches"):
        create_model("dcal_mu", ratio=0.0)
    with pytest.raises(UserError, match="pwca='frozen' is unknown"):
        create_model("dcal_mu", pwca="frozen")
