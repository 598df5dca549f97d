"""Dynamic Perceiver: which exit depends on what, its options, its exits one by one."""

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.errors import UserError
from lookupjax.models.dynperceiver import EXITS


@cache
def split():
    graphdef, state = nnx.split(create_model("dynperceiver_mu", num_classes=5))
    return graphdef, nnx.to_pure_dict(state)


@cache
def images():
    return jax.random.normal(jax.random.key(0), (2, 32, 48, 3))


@cache
def forward():
    graphdef = split()[0]
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))


def changed(*stages):
    """The outputs after the weights of these CNN stages changed."""
    state = split()[1]
    cnn = state["cnn"] | {
        "stages": {
            i: jax.tree.map(lambda w: 1.1 * w + 0.01, stage) if i in stages else stage
            for i, stage in state["cnn"]["stages"].items()
        }
    }
    return forward()(state | {"cnn": cnn}, images())


def test_an_exit_knows_nothing_of_what_follows_it():
    plain, both, last = changed(), changed(2, 3), changed(3)
    same = {name: np.array_equal(plain[name], both[name]) for name in EXITS}
    assert same == {"logits_early3": True, "logits_att": False, "logits_cnn": False, "logits": False}
    same = {name: np.array_equal(plain[name], last[name]) for name in EXITS}
    assert same == {"logits_early3": True, "logits_att": True, "logits_cnn": False, "logits": False}


def test_exits_one_by_one_are_the_whole():
    graphdef, state = split()
    whole, carry = changed(), (images(),)
    for i, name in enumerate(EXITS):

        @jax.jit
        def segment(state, carry, i=i):
            return nnx.merge(graphdef, state).run_segment(i, carry)

        logits, carry = segment(state, carry)
        np.testing.assert_allclose(logits, whole[name], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(x2z=False),
        dict(z2x=False),
        dict(last_z2x=False),
        dict(dwc=False),
        dict(shortcuts=False),
        dict(hidden=16),
        dict(host="resnet_mu"),
        dict(host="mobilenet_mu", host_options=dict(cuts=(2, 3, 4, 5))),
    ],
    ids=lambda options: "-".join(options),
)
def test_options_and_hosts_build_other_models(options):
    def shapes(**options):
        model = nnx.eval_shape(lambda: create_model("dynperceiver_mu", num_classes=5, **options))
        outputs = nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 64, 64, 3), "float32"))
        assert {outputs[name].shape for name in EXITS} == {(2, 5)}
        return jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(nnx.state(model)))

    assert shapes(**options) != shapes()


def test_user_errors():
    with pytest.raises(UserError, match="must be a multiple of 8"):
        create_model("dynperceiver_mu", latents=12)
    with pytest.raises(UserError, match="must be a convolutional network of four stages"):
        create_model("dynperceiver_mu", host="vit_mu")
