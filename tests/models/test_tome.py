"""Properties of token merging and of TokenLearner that their data sheet asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.errors import UserError
from lookupjax.models.tome import match, merge, merging_schedule


def test_merging_keeps_the_mass_and_never_moves_protected_tokens():
    x, metric = jax.random.normal(jax.random.key(0), (2, 2, 13, 8))
    size = jax.random.uniform(jax.random.key(1), (2, 13), minval=1.0, maxval=4.0)

    @jax.jit
    def run(x, size, metric):
        return merge(x, size, match(metric, 99, distilled=True))

    y, new = run(x, size, metric)
    assert y.shape == (2, 13 - 5, 8)  # at most half of the 11 tokens that are not protected
    np.testing.assert_allclose(
        (y * new[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(y[:, 0], x[:, 0], rtol=1e-6)
    np.testing.assert_allclose(y[:, 1], x[:, 1], rtol=1e-6)


def test_schedules():
    assert merging_schedule(8, 0.0, 3) == (8, 8, 8)
    assert merging_schedule(8, -1.0, 5) == (16, 12, 8, 4, 0)
    assert merging_schedule((3, 1), 0.0, 4) == (3, 1, 0, 0)


def test_equal_tokens_merge_without_a_trace():
    """Two copies of a token, of size one each, act as one of size two: proportional attention is exact."""
    graphdef, state = nnx.split(create_model("tome_mu", depth=1, r=0, head="gap", num_classes=0))
    merging = nnx.graphdef(create_model("tome_mu", depth=1, r=(1,), head="gap", num_classes=0))
    a, b = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 3)).astype(np.float32)
    image = np.concatenate([a, b, a, a], axis=1)  # one of the even places merges into the last
    state["pos"] = jax.tree.map(jnp.zeros_like, state["pos"])
    merged = jax.jit(lambda s, x: nnx.merge(merging, s).run(x))(state, image)
    whole = jax.jit(lambda s, x: nnx.merge(graphdef, s).run(x))(state, image)
    assert sorted(np.asarray(merged.size[0])) == [1.0, 1.0, 2.0]
    total = (merged.x * merged.size[..., None]).sum(1)
    np.testing.assert_allclose(total, whole.x.sum(1), rtol=1e-4, atol=1e-4)


def call(name, method="__call__", **options):
    """The shapes that a method of a model returns for two images."""
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return nnx.eval_shape(lambda x: getattr(create_model(name, **options), method)(x), x)


def test_distilled_has_two_heads():
    out = call("tome_mu", distilled=True, num_classes=5)
    assert out["logits"].shape == out["logits_distilled"].shape == (2, 5)


def test_fuser_keeps_all_tokens_and_learner_keeps_few():
    for options, tokens in ((dict(), 4), (dict(fuser=True), 64), (dict(learner="v1"), 4), (dict(loc=2), 64)):
        assert call("tokenlearner_mu", "encode", **options).shape == (2, tokens, 32)
    with pytest.raises(UserError, match="loc=3"):
        create_model("tokenlearner_mu", loc=3)
    with pytest.raises(UserError, match="learner='v2'"):
        create_model("tokenlearner_mu", learner="v2")
