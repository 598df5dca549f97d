"""Initial values that published code sets over a whole model."""

import jax.numpy as jnp
from flax import nnx


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
