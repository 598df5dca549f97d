"""Properties of MEDUSA that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_params
from lookupjax.errors import UserError

IMAGES = jax.random.normal(jax.random.key(0), (2, 37, 50, 3))  # odd: every upsampling has its own target


@pytest.mark.parametrize("attention", ["both", "global", "local", "none"])
def test_parts_can_be_switched_off(attention):
    model = create_model("medusa_mu", num_classes=4, attention=attention)
    maps, gates = jax.jit(model.attended)(IMAGES)
    assert [m.shape for m in maps] == [(2, 10, 13, 8), (2, 5, 7, 12), (2, 3, 4, 16)]
    expected = [m.shape[:3] + (1,) for m in maps] if attention in ("both", "global") else []
    assert [g.shape for g in gates] == expected
    plain = nnx.eval_shape(lambda: create_model("medusa_mu", num_classes=4, attention="none"))
    assert (count_params(model) > count_params(plain)) == (attention != "none")


def test_a_closed_gate_silences_the_product_form_only():
    closed = dict(num_classes=4, attention="global", gate_bias=-50.0)
    product, residual = (
        jax.jit(create_model("medusa_mu", gate=gate, **closed))(IMAGES)["features"]
        for gate in ("product", "residual")
    )
    none = jax.jit(create_model("medusa_mu", num_classes=4, attention="global", gate="residual"))
    assert jnp.abs(product).max() < 0.2 * jnp.abs(residual).max()  # only biases are left
    assert not np.allclose(none(IMAGES)["features"], residual, atol=1e-4)


def test_user_errors():
    with pytest.raises(UserError, match="gate='sum' is unknown"):
        create_model("medusa_mu", gate="sum")
