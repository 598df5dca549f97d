"""Agent models: what the mixer promises, and sizes other than the training one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.attention import record_taps
from lookupjax.attention.agent import AgentAttention
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models.agent_swin import AgentSwin, block_kinds, shift_mask

X = jax.random.normal(jax.random.key(0), (2, 16, 24))


def test_with_an_agent_per_token_and_no_extras_it_is_two_softmax_products():
    """softmax(Q Q^T s) softmax(Q K^T s) V, when tables and convolution are zero and pooling is identity."""
    mixer = AgentAttention(24, 4, agents=16, window=(4, 4), rngs=Keys(0))
    for bias in (mixer.source_bias, mixer.query_bias):
        for table in (bias.coarse, bias.rows, bias.columns):
            table[...] = jnp.zeros_like(table[...])
    mixer.local.kernel[...] = jnp.zeros_like(mixer.local.kernel[...])

    @jax.jit
    def both(x):
        q, k, v = (
            layer(x).reshape(2, 16, 4, 6).transpose(0, 2, 1, 3) for layer in (mixer.q, mixer.k, mixer.v)
        )
        first = jax.nn.softmax(q @ k.mT / 6**0.5) @ v
        expected = jax.nn.softmax(q @ q.mT / 6**0.5) @ first
        return mixer(x, grid=(4, 4)), mixer.out(expected.transpose(0, 2, 1, 3).reshape(2, 16, 24))

    ours, expected = both(X)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_taps_of_both_maps_and_their_product():
    mixer = AgentAttention(24, 4, agents=9, window=(3, 3), prefix=1, rngs=Keys(0))
    x = jnp.concatenate([X, X[:, :1]], axis=1)
    names = ("agent_weights", "broadcast_weights", "weights")

    @jax.jit
    def both(x):
        return mixer(x, grid=(2, 8)), *record_taps(mixer, x, grid=(2, 8), names=names)

    plain, tapped, taps = both(x)
    np.testing.assert_allclose(plain, tapped, atol=1e-5)
    maps = {key.rpartition("/")[2]: value for key, value in taps.items()}
    assert maps["agent_weights"].shape == (2, 4, 9, 17) and maps["broadcast_weights"].shape == (2, 4, 17, 9)
    for value in maps.values():
        np.testing.assert_allclose(value.sum(-1), 1.0, atol=1e-5)


def test_non_square_inputs_of_other_sizes():
    for name in ("agent_deit_mu", "agent_pvt_mu", "agent_swin_mu"):
        model = create_model(name, num_classes=3)
        maps = jax.jit(lambda model, x: (model(x)["logits"], model.features(x)))
        logits, _ = maps(model, jnp.ones((1, 64, 96, 3)))
        assert logits.shape == (1, 3) and np.isfinite(logits).all()


def test_swin_kinds_windows_and_shift():
    assert [block_kinds(kind, 3, 2) for kind in "AMB"] == ["AAA", "AAB", "BBB"]
    model = AgentSwin(
        size=(64, 64),
        dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        kinds="AB",
        window=8,
        agents=(4, 4),
        rngs=Keys(0),
    )
    shifts = [[(block.window, block.shift) for block in stage.blocks] for stage in model.stages]
    assert shifts == [[(8, 0), (8, 4)], [(7, 0), (7, 3)]]
    mask = shift_mask((8, 8), (4, 4), 2)
    assert mask.shape == (4, 16, 16) and mask[0].all()
    assert mask[1].sum() == 2 * 8 * 8 and mask[3].sum() == 4 * 4 * 4


def test_user_errors():
    with pytest.raises(UserError, match="agents=10 is no square"):
        AgentAttention(24, 4, agents=10, rngs=Keys(0))
    with pytest.raises(UserError, match="not on 16 tokens with grid"):
        AgentAttention(24, 4, rngs=Keys(0))(X, grid=(4, 2, 2))
    with pytest.raises(UserError, match="a letter A or B for each of the 2 stages"):
        create_model("agent_pvt_mu", kinds="AAM")
