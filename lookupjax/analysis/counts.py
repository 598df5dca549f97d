"""Parameters and multiply-accumulates (MACs) of a model, without memory for either."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.errors import UserError


def count_params(model: nnx.Module) -> int:
    """Values in the model's parameters (abstract models too)."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def model_call(
    model: nnx.Module, size: tuple[int, ...], channels: int, **call: Any
) -> tuple[Callable, tuple]:
    """(function, abstract arguments) of the model's "logits" for one input of `size` pixels."""
    graphdef, state = nnx.split(model)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))

    def logits(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state, copy=True)(x, **call)["logits"]

    return logits, (abstract, jax.ShapeDtypeStruct((1, *size, channels), jnp.float32))


def count_products(fn: Callable, arguments: tuple) -> int:
    """MACs of every matrix product and convolution in the traced program, attention included."""
    return _walk(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _walk(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features
        elif name == "while":
            raise UserError("MACs of a while loop are unknown: its number of rounds depends on the data")
        elif name == "cond":
            total += max(_walk(branch.jaxpr) for branch in params["branches"])
        else:
            inner = [p for p in params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
            rounds = params["length"] if name == "scan" else 1
            total += rounds * sum(_walk(getattr(p, "jaxpr", p)) for p in inner[:1])
    return total


def xla_flops(fn: Callable, arguments: tuple) -> float:
    """XLA's own count of floating-point operations, element-wise ones included (2 per MAC)."""
    return float(jax.jit(fn).lower(*arguments).cost_analysis()["flops"])
