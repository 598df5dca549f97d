"""Properties of CCAN that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np

from lookupjax import create_model
from lookupjax.layers.rngs import Keys

IMAGES = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))


def test_every_condition_is_a_space_of_its_own():
    model = create_model("ccan_mu")
    condition = jnp.array([2, 0, 1, 0])
    every, one = jax.jit(lambda x: (model(x), model(x, condition)))(IMAGES)
    assert every["embedding"].shape == (4, 3, 16) and every["features"].shape == (4, 48)
    np.testing.assert_allclose(jnp.linalg.norm(every["embedding"], axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(one["embedding"], every["embedding"][jnp.arange(4), condition], atol=1e-5)
    assert not np.allclose(every["embedding"][:, 0], every["embedding"][:, 1], atol=1e-2)


def test_options_are_live_and_training_needs_only_rngs():
    embeddings = [
        jax.jit(create_model("ccan_mu", **options))(IMAGES, rngs=rngs)["features"]
        for options, rngs in (({}, None), (dict(query_residual=False), None), (dict(drop_path=0.5), Keys(0)))
    ]
    for changed in embeddings[1:]:
        assert not np.allclose(embeddings[0], changed, atol=1e-4)
