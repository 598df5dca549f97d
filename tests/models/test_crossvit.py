"""Properties of CrossViT that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.errors import UserError

IMAGES = jax.random.normal(jax.random.key(0), (2, 40, 40, 3))


def logits(**options):
    return jax.jit(create_model("crossvit_mu", num_classes=5, **options))(IMAGES)["logits"]


@pytest.mark.parametrize("name, tokens", [("18_dagger", (401, 197)), ("18_dagger_384", (1157, 577))])
def test_tokens_of_each_branch(name, tokens):
    model = nnx.eval_shape(lambda: create_model(f"crossvit_{name}"))
    assert tuple(pos.shape[0] for pos in model.pos) == tokens


def test_the_exchange_replaces_both_class_tokens_at_once():
    model = create_model("crossvit_mu", num_classes=5)
    xs = model.tokenize(IMAGES)
    block, rates = model.blocks[0], model.rates()[0]

    @jax.jit
    def run(xs):
        attended = block.attend(xs, rates=rates)
        return block(xs, rates=rates), attended, [block.revert[i](block.visit(attended, i)) for i in (0, 1)]

    after, attended, tokens = run(xs)
    for i in (0, 1):
        np.testing.assert_array_equal(after[i][:, 1:], attended[i][:, 1:])
        np.testing.assert_allclose(after[i][:, :1], tokens[i], atol=1e-6)


def test_options_are_live():
    default = logits()
    for options in (dict(pool="avg"), dict(qkv_bias=False), dict(crop=True, sizes=((36, 36), (32, 32)))):
        assert not np.allclose(logits(**options), default, atol=1e-5)


def test_three_branches_and_user_errors():
    three = dict(
        sizes=((36, 36), (32, 32), (32, 32)),
        patches=(12, 16, 32),
        dims=(16, 32, 16),
        depth=((1, 1, 1, 2),),
        num_heads=(2, 2, 2),
        mlp_ratio=(2.0, 2.0, 2.0),
    )
    assert jnp.isfinite(logits(**three)).all()
    with pytest.raises(UserError, match="one entry in every option"):
        create_model("crossvit_mu", dims=(16, 32, 16))
    with pytest.raises(UserError, match="defined for patches"):
        create_model("crossvit_mu", conv_stem=True, patches=(12, 8))
