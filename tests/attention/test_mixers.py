"""What every token mixer promises, and the taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.attention import create_mixer, list_mixers, record_taps, with_taps
from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys

X = jax.random.normal(jax.random.key(0), (2, 16, 24))


@pytest.mark.parametrize("name", list_mixers())
def test_a_mixer_keeps_shape_and_declares_what_it_cannot_do(name):
    mixer = create_mixer(name, 24, 4, rngs=Keys(0))
    assert mixer(X, grid=(4, 4)).shape == X.shape
    asked = {
        "supports_causal": dict(causal=True),
        "supports_context": dict(context=X[:, :9]),
        "supports_mask": dict(mask=jnp.ones((2, 1, 16, 16), bool)),
    }
    for ability, arguments in asked.items():
        if getattr(mixer, ability):
            assert mixer(X, grid=(4, 4), **arguments).shape == X.shape
        else:
            with pytest.raises(UserError, match="does not support"):
                mixer(X, grid=(4, 4), **arguments)
    if mixer.needs_grid:
        with pytest.raises(UserError, match="pass grid"):
            mixer(X)


def supports_causal(name: str) -> bool:
    return nnx.eval_shape(lambda: create_mixer(name, 24, 4, rngs=Keys(0))).supports_causal


@pytest.mark.parametrize("name", filter(supports_causal, list_mixers()))
def test_causal_means_no_look_ahead(name):
    mixer = create_mixer(name, 24, 4, rngs=Keys(0))
    before = mixer(X, grid=(4, 4), causal=True)
    after = mixer(X.at[:, 10:].add(1.0), grid=(4, 4), causal=True)
    np.testing.assert_allclose(before[:, :10], after[:, :10], atol=1e-5)
    assert not np.allclose(before[:, 10:], after[:, 10:], atol=1e-3)


def test_softmax_attention_equals_jax():
    mixer = SoftmaxAttention(24, 4, rngs=Keys(0))
    q, k, v = (layer(X).reshape(2, 16, 4, 6) for layer in (mixer.q, mixer.k, mixer.v))
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 1, 16, 16)) | jnp.eye(16, dtype=bool)[None, None]
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True).reshape(2, 16, 24)
    np.testing.assert_allclose(mixer(X, mask=mask, causal=True), mixer.out(expected), atol=1e-5)


def test_taps_read_and_edit_through_one_mechanism():
    model = create_model("vit_mu", pos_grid=(4, 4), depth=2, num_classes=3)
    model.head.kernel[...] = jnp.ones_like(model.head.kernel[...])
    images = jax.random.normal(jax.random.key(2), (1, 16, 16, 3))
    names = ("q", "k", "v", "scores", "weights", "output")
    out, taps = record_taps(model, images, names=names)
    assert {key.rsplit("/", 1)[1] for key in taps} == set(names)
    np.testing.assert_array_equal(out["features"], model(images)["features"])

    def mask_head(path, name, value):
        return value.at[:, 1].set(0.0) if (path, name) == ("blocks/1/attn", "weights") else value

    def run(images):
        return with_taps(model, mask_head)(images)["features"]

    masked = run(images)
    np.testing.assert_allclose(jax.jit(run)(images), masked, rtol=1e-5, atol=1e-6)
    assert not np.allclose(masked, out["features"], atol=1e-5)
    assert model.blocks[1].attn.tap_fn is None  # the original is untouched


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="dim=24 cannot be split into num_heads=5"):
        SoftmaxAttention(24, 5, rngs=Keys(0))
