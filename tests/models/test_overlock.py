"""Properties of OverLoCK and its parts (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from lookupjax import create_model
from lookupjax.attention.contmix import ContMix, enlarged, window_bias, window_mix, window_starts
from lookupjax.errors import UserError
from lookupjax.layers.reparam import BRANCHES, DilatedReparam, merge_branches
from lookupjax.layers.rngs import Keys
from lookupjax.tasks import create_task


@jax.jit
def logits(model: nnx.Module, x: jax.Array) -> jax.Array:
    return model(x)["logits"]


def test_merged_model_has_equal_outputs_and_the_tree_of_a_merged_one():
    options = dict(num_classes=5, kernels=(7, 5, 5, 5))
    model = filled(lambda: create_model("overlock_mu", **options))
    x = jax.random.normal(jax.random.key(0), (2, 96, 64, 3))
    merged = merge_branches(model)
    before, after = logits(model, x), logits(merged, x)
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    built = nnx.eval_shape(lambda: create_model("overlock_mu", merged=True, **options))
    shapes = [{k: v.shape for k, v in nnx.to_flat_state(nnx.state(m))} for m in (merged, built)]
    assert shapes[0] == shapes[1]
    assert model.stages[0][0].large.conv is None  # the original is untouched


@pytest.mark.parametrize("kernel", [9, 19])
def test_every_kernel_merges(kernel):
    large = filled(lambda: DilatedReparam(2, kernel, rngs=Keys(0)))
    x = jax.random.normal(jax.random.key(0), (1, 6, 23, 2))
    np.testing.assert_allclose(large.merge()(x), large(x), atol=1e-4)
    assert large.merge().merge().conv is not None
    with pytest.raises(UserError, match="choose one of"):
        DilatedReparam(2, 4, rngs=Keys(0))
    assert max(r * (k - 1) + 1 for k, r in BRANCHES[kernel]) <= kernel


def test_constant_values_pass_unchanged():
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 2, 5, 6, 9))).reshape(1, 2, 5, 6, 3, 3)
    values = jnp.broadcast_to(jnp.arange(1.0, 5).reshape(1, 1, 1, 2, 2), (1, 5, 6, 2, 2))
    np.testing.assert_allclose(window_mix(weights, values), values, rtol=1e-5)


def test_windows_shift_at_borders_and_biases_follow():
    assert window_starts(8, 5).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    table = jnp.arange(81.0).reshape(1, 9, 9)
    bias = window_bias(table, (8, 7), 5)[0]
    np.testing.assert_array_equal(bias[3, 3], table[0, 2:7, 2:7])  # an interior pixel
    np.testing.assert_array_equal(bias[0, 0], table[0, 4:, 4:])  # a corner
    assert enlarged((3, 5), 7) == (7, 11) and enlarged((5, 3), 7) == (11, 7) and enlarged((7, 9), 7) == (7, 9)


def test_auxiliary_head_is_trained_with_its_weight():
    model = nnx.eval_shape(lambda: create_model("overlock_mu", num_classes=3))
    task = create_task({}, model)
    outputs = {"logits": jnp.zeros((2, 3)), "logits_aux": jnp.eye(3)[:2] * 5}
    loss, figures = task.loss(outputs, {"label": jnp.array([0, 1])})
    np.testing.assert_allclose(loss, np.log(3) + 0.4 * figures["loss_aux"], rtol=1e-5)


def test_user_errors():
    with pytest.raises(UserError, match="num_heads=5"):
        ContMix(24, 5, rngs=Keys(0))
    with pytest.raises(UserError, match="must be odd"):
        ContMix(24, 4, kernel_size=6, rngs=Keys(0))
    with pytest.raises(UserError, match="two axes"):
        ContMix(24, 4, rngs=Keys(0))(jnp.ones((1, 8, 24)), grid=(2, 2, 2))
    with pytest.raises(UserError, match="four entries"):
        create_model("overlock_mu", depths=(1, 1, 1))
