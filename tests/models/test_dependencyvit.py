"""Properties of DependencyViT that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.attention import record_taps, with_taps
from lookupjax.attention.reversed import ReversedAttention
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models.dependencyvit import kept_tokens

X = jax.random.normal(jax.random.key(0), (2, 16, 24))
IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
SMALL = dict(depth=3, num_classes=5, layer_scale=None)


def attention(**options):
    """With weights large enough for the tokens to differ in what they say."""
    module = ReversedAttention(24, 3, rngs=Keys(0), **options)
    for fc in (module.controller.fc1, module.controller.fc2, module.selector):
        fc.kernel[...] = 3.0 * fc.kernel[...]
    return module


def test_what_a_token_sends_sums_to_its_message():
    before = jax.random.uniform(jax.random.key(2), (2, 16))
    _, messages, weights = attention().send(X, before)
    np.testing.assert_allclose(weights.sum((1, 2)), messages, atol=1e-6)
    assert (messages <= before).all()


def test_without_selector_and_controller_it_is_the_transpose_of_attention():
    module = attention(temperature=1e9)
    module.controller.fc2.kernel[...] = jnp.zeros_like(module.controller.fc2.kernel[...])  # c = 1/2
    _, taps = record_taps(module, X, names=("weights", "scores"))
    forward = jax.nn.softmax(taps["/scores"], axis=-1)
    np.testing.assert_allclose(taps["/weights"], jnp.swapaxes(forward, -1, -2) / 3 / 2, atol=1e-6)


def test_tokens_are_a_set_without_positions():
    model = create_model("dependencyvit_mu", **SMALL, cpe_depth=0)
    order = np.random.default_rng(0).permutation(16)
    patches = IMAGES.reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 8, 8, 3)
    shuffled = patches[:, order].reshape(2, 4, 4, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    call = jax.jit(model.encode)
    a, b = call(IMAGES), call(shuffled.reshape(IMAGES.shape))
    np.testing.assert_allclose(a[:, order], b, atol=1e-5)


def test_published_pruning_keeps_the_published_numbers():
    counts = [196]
    for event in (1, 2, 3, 4):
        counts.append(kept_tokens(counts[-1], event, 0.16))
    assert counts == [196, 164, 132, 100, 69]


@pytest.mark.parametrize("prune_by", ["message", "received"])
def test_half_the_tokens_pruned_equals_half_the_tokens_masked(prune_by):
    """Kept tokens are what the whole model computes when nobody sends to or from the pruned ones."""
    lite = create_model("dependencyvit_mu", **SMALL, prune_layers=(2,), prune_ratio=0.5, prune_by=prune_by)
    full = create_model("dependencyvit_mu", **SMALL)
    for model in (lite, full):
        for block in model.blocks:
            block.attn.controller.fc2.kernel[...] *= 50.0
    (kept, layers), (everything, full_layers) = jax.jit(lite.run)(IMAGES), jax.jit(full.run)(IMAGES)
    assert kept.x.shape[1] == 8 and everything.x.shape[1] == 16

    # up to and with the pruning layer nothing has changed for them
    np.testing.assert_array_equal(layers[1].mask, full_layers[1].mask)
    after = np.take_along_axis(full_layers[1].messages, kept.place, axis=1)
    pruned = np.delete(full_layers[1].messages[0], kept.place[0])
    if prune_by == "message":
        assert after[0].min() >= pruned.max()

    alive = (jax.nn.one_hot(kept.place, 16).sum(1) > 0)[:, None]

    def silence(path, name, value):
        if path == "blocks/2/attn" and name == "scores":
            return jnp.where(alive[:, :, None], value, -jnp.inf)  # nobody chooses a pruned parent
        if path == "blocks/2/attn" and name == "weights":
            return jnp.where(alive[:, :, None], value, 0.0)  # and pruned children are silent
        return value

    masked, _ = jax.jit(lambda images: with_taps(full, silence).run(images))(IMAGES)
    for lite_value, full_value in ((kept.x, masked.x), (kept.messages, masked.messages)):
        index = kept.place[..., None] if full_value.ndim == 3 else kept.place
        np.testing.assert_allclose(lite_value, np.take_along_axis(full_value, index, axis=1), atol=1e-5)


def test_pruned_leaves_stand_as_their_heirs_in_the_map():
    lite = create_model("dependencyvit_mu", **SMALL, prune_layers=(2, 3), prune_ratio=0.3)
    (tokens, layers), (grid,) = jax.jit(lite.run)(IMAGES), jax.jit(lite.features)(IMAGES)
    assert tokens.x.shape[1] == 6 and grid.shape == (2, 4, 4, 24)
    flat = grid.reshape(2, 16, 24)
    np.testing.assert_array_equal(np.take_along_axis(flat, tokens.place[..., None], axis=1), tokens.x)
    assert len(np.unique(np.round(flat[0], 5), axis=0)) == 6
    assert layers[0].heir is None and layers[1].heir.max() < 11


def test_options_are_live_and_other_sizes_work():
    images = jax.random.normal(jax.random.key(3), (1, 40, 24, 3))
    results = [
        jax.jit(create_model("dependencyvit_mu", **SMALL, **options))(images)["logits"]
        for options in ({}, dict(qk_norm="head"), dict(temperature=1.0), dict(pos_embed=True))
    ]
    for changed in results[1:]:
        assert not np.allclose(results[0], changed, atol=1e-7)


def test_user_errors():
    with pytest.raises(UserError, match="must lie in 2"):
        create_model("dependencyvit_mu", **SMALL, prune_layers=(1,), prune_ratio=0.1)
    with pytest.raises(UserError, match="must remove some tokens, not all"):
        create_model("dependencyvit_mu", **SMALL, prune_layers=(2, 3), prune_ratio=0.5)
    with pytest.raises(UserError, match="prune_by='size' is unknown"):
        create_model("dependencyvit_mu", **SMALL, prune_by="size")
