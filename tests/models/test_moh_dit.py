"""MoH-DiT: starts as the identity, drops labels in training, other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys


def test_latents_times_and_labels():
    model = create_model("moh_dit_mu", classes=5, label_dropout=1.0)
    x, t, label = jnp.ones((2, 8, 12, 4)), jnp.array([0.0, 9.0]), jnp.array([0, 4])

    @jax.jit
    def run(model):
        first = model(x, t, label)["eps"]
        for block in (*model.blocks, model):  # away from the zeros of the beginning
            for kernel in (block.modulation.linear.kernel, model.head.kernel):
                kernel[...] = 0.1 * jax.random.normal(jax.random.key(1), kernel[...].shape)
        none = jnp.full((2,), 5)
        trained = model(x, t, label, rngs=Keys(0))
        return first, model(x, t, label)["eps"], model(x, t, none)["eps"], trained

    first, labelled, unlabelled, trained = run(model)
    assert first.shape == (2, 8, 12, 8) and not first.any()
    assert not np.allclose(labelled, unlabelled, atol=1e-4)
    np.testing.assert_allclose(trained["eps"], unlabelled, atol=1e-5)
    assert trained["aux_loss"] > 0


def test_latents_must_hold_whole_patches():
    with pytest.raises(UserError, match="patches of 2x2"):
        create_model("moh_dit_mu")(jnp.ones((1, 7, 8, 4)))
