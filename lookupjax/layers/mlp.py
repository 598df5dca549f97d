"""The transformer's two-layer perceptron."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.regularise import dropout

GELU_FORMS = ("tanh", "exact")


def gelu(form: str) -> Callable[[Array], Array]:
    """GELU in the tanh approximation (JAX code bases) or with erf (PyTorch, timm)."""
    if form not in GELU_FORMS:
        raise UserError(f"gelu={form!r} is unknown; choose one of {GELU_FORMS}")
    return partial(jax.nn.gelu, approximate=form == "tanh")


def linear(
    d_in: int,
    d_out: int,
    *,
    bias: bool = True,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A dense layer with a xavier-uniform kernel (in, out), as in the JAX ViT."""
    return nnx.Linear(
        d_in,
        d_out,
        use_bias=bias,
        kernel_init=nnx.initializers.xavier_uniform(),
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
    )


class Mlp(nnx.Module):
    """fc2(gelu(fc1(x))), with dropout after both layers in training."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        gelu: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        bias_init = nnx.initializers.normal(1e-6)
        self.fc1 = linear(dim, hidden, bias=bias, bias_init=bias_init, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, dim, bias=bias, bias_init=bias_init, dtype=dtype, rngs=rngs)
        self.gelu, self.dropout = gelu, dropout

    def __call__(self, x: Float[Array, "b *s d"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b *s d"]:
        hidden = dropout(gelu(self.gelu)(self.fc1(x)), self.dropout, rngs)
        return dropout(self.fc2(hidden), self.dropout, rngs)
