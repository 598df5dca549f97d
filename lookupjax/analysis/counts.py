"""Parameters and multiply-accumulates of a model, without memory for either.

A program is traced on abstract parameters; its matrix products and convolutions are then counted in two
ways that know nothing of each other: from the jaxpr (exact, products only) and by XLA's cost analysis.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from lookupjax.errors import UserError


def count_params(model: nnx.Module) -> int:
    """Trainable numbers of a model, which may be abstract (`nnx.eval_shape`)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def short(number: int) -> str:
    """1234567 -> "1.235 M"."""
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g} {word}"
    return f"{number:.0f}"


def trace_model(
    model: nnx.Module, input_size: tuple[int, ...], channels: int = 3, *, batch: int = 1, **call: Any
) -> jax.stages.Traced:
    """The traced evaluation call of a model, for `count_products` and `xla_flops`.

    Args:
      model: abstract or real; only the shapes of its parameters are used.
      input_size: (height, width) or, for videos, (frames, height, width).
      call: keyword arguments of the model's call, such as compressed=(5, 5).
    """
    graphdef, state = nnx.split(model)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    inputs = jax.ShapeDtypeStruct((batch, *input_size, channels), jnp.float32)

    def evaluate(state, inputs):
        return nnx.merge(graphdef, state, copy=True)(inputs, **call)

    return jax.jit(evaluate).trace(shapes, inputs)


def count_products(traced: jax.stages.Traced) -> int:
    """Multiply-accumulates of the matrix products and convolutions of `jax.jit(f).trace(...)`.

    The body of a scan counts as often as it runs, of a conditional the dearest branch counts. Products
    with the zeros of a convolution's padding are included.

    Raises:
      UserError: for products inside a while loop, whose length is not known before it runs.
    """
    return sum(times * products_of(eqn) for eqn, _, times in equations(traced.jaxpr.jaxpr))


def products_of(eqn: JaxprEqn) -> int:
    """Multiply-accumulates of one matrix product or convolution, 0 for anything else."""
    kind, params = eqn.primitive.name, eqn.params
    if kind == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        return eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if kind == "ragged_dot_general":  # a row of the left side meets the matrix of one group only
        contracted = params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][0]
        return eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if kind == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        per_output = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return eqn.outvars[0].aval.size * per_output // math.prod(params["lhs_dilation"])
    return 0


def equations(jaxpr: Jaxpr, scope: str = "", times: int = 1) -> Iterator[tuple[JaxprEqn, str, int]]:
    """(equation, its name scopes, how often it runs) of a program and all programs within it.

    The body of a scan runs as often as it is long, of a conditional only the dearest branch.

    Raises:
      UserError: for products inside a while loop, whose length is not known before it runs.
    """
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        name = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        repeats = times
        if kind == "scan":
            repeats = times * params["length"]
        if kind == "pallas_call":
            repeats = times * math.prod(params["grid_mapping"].grid)
        bodies = [list(equations(body, name, repeats)) for body in _inner_jaxprs(params)]
        if kind == "cond":
            bodies = [max(bodies, key=_total)]
        if kind == "while" and any(map(_total, bodies)):
            raise UserError(
                "cannot count matrix products inside a while loop of unknown length; use lax.scan or a "
                "lax.fori_loop with constant bounds"
            )
        if not bodies:
            yield eqn, name, times
        for body in bodies:
            yield from body


def _total(body: list[tuple[JaxprEqn, str, int]]) -> int:
    return sum(times * products_of(eqn) for eqn, _, times in body)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an equation holds (of jit, remat, custom gradients, loops and branches)."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def largest_array(traced: jax.stages.Traced) -> int:
    """Bytes of the largest array that any step of `jax.jit(f).trace(...)` produces, fused or not."""
    return max((aval.size * aval.dtype.itemsize for aval, _ in arrays(traced.jaxpr.jaxpr)), default=0)


def arrays(jaxpr: Jaxpr, scope: str = "") -> Iterator[tuple[Any, str]]:
    """(shape and dtype, operation) of everything a program computes, programs within it included."""
    for eqn in jaxpr.eqns:
        name = "/".join(filter(None, (scope, str(eqn.source_info.name_stack), eqn.primitive.name)))
        yield from ((v.aval, name) for v in eqn.outvars)
        for body in _inner_jaxprs(eqn.params):
            yield from arrays(body, name)


def xla_flops(traced: jax.stages.Traced) -> float:
    """Floating-point operations by XLA's cost analysis of the lowered program, before compilation.

    A multiply-accumulate is two of them and element-wise arithmetic is included; the body of a loop
    is counted once.

    Raises:
      UserError: when the backend has no cost analysis.
    """
    costs = traced.lower().cost_analysis()
    if not costs or "flops" not in costs:
        raise UserError(f"{jax.default_backend()} has no cost analysis; set JAX_PLATFORMS=cpu")
    return float(costs["flops"])
