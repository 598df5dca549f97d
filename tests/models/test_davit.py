"""Properties of DaViT that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.attention import create_mixer, record_taps
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys


def test_channel_attention_treats_positions_as_a_set():
    mixer = create_mixer("channel", 24, 3, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(0), (2, 30, 24))
    order = jax.random.permutation(jax.random.key(1), 30)
    np.testing.assert_allclose(mixer(x)[:, order], mixer(x[:, order]), atol=1e-5)


def test_channel_weights_are_32_by_32_in_every_stage():
    def weights(images):
        model = create_model("davit_t", depths=(1, 1, 1, 1))
        return record_taps(model, images)[1]

    taps = jax.eval_shape(weights, jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    for stage, heads in enumerate((3, 6, 12, 24)):
        assert taps[f"stages/{stage}/blocks/0/1/attn/weights"].shape == (1, heads, 32, 32)
        windows = (8 >> stage) ** 2
        assert taps[f"stages/{stage}/blocks/0/0/attn/weights"].shape == (windows, heads, 49, 49)


def test_stochastic_depth_of_the_two_public_forms():
    def rates(by):
        model = nnx.eval_shape(
            lambda: create_model("davit_mu", depths=(1, 2), drop_path=0.5, drop_path_by=by)
        )
        return np.array([rate for stage in model.rates() for layer in stage for rate in layer])

    np.testing.assert_allclose(rates("block"), np.linspace(0, 0.5, 6))
    np.testing.assert_allclose(rates("layer"), [0, 0, 0.25, 0.25, 0.5, 0.5])


def test_user_errors():
    with pytest.raises(UserError, match="attention type 'chanel' is unknown"):
        create_model("davit_mu", attention_types=("chanel",))
    with pytest.raises(UserError, match="need one entry per stage"):
        create_model("davit_mu", depths=(1, 1, 1))
    with pytest.raises(UserError, match="scale='sum' of channel attention"):
        create_mixer("channel", 24, 3, scale="sum", rngs=Keys(0))
