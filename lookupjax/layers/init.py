"""Initial values that published code sets over a whole model."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

torch_kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def torch_linear(
    d_in: int, d_out: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer with PyTorch's initial values: kernel and bias from U(+-1 / sqrt(d_in))."""
    bound = 1 / math.sqrt(d_in)

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(d_in, d_out, use_bias=bias, kernel_init=draw, bias_init=draw, dtype=dtype, rngs=rngs)


def normal_linears(model: nnx.Module, rngs: nnx.Rngs, std: float = 0.02) -> None:
    """Redraws the kernel of every Linear inside `model` from N(0, std) and zeroes its bias.

    timm and the code bases that descend from it (DeiT, CrossViT, ...) do this to the finished model.
    Their "trunc_normal_" cuts at +-2, a hundred standard deviations: a normal distribution.
    The Params are new ones, because writing into a traced Param takes 20 ms.
    """
    draw = nnx.initializers.normal(std)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear):
            module.kernel = nnx.Param(draw(rngs.params(), module.kernel.shape))
            if module.bias is not None:
                module.bias = nnx.Param(jnp.zeros(module.bias.shape))
