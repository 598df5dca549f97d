"""What every layer of a model costs: parameters, multiply-accumulates, bytes of activations.

The traced program is attributed to the modules that computed it: every method of every module runs under a
name scope of its place in the model.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from lookupjax.analysis.counts import equations, products_of, trace_model
from lookupjax.paths import named_leaves

MARK = "layer:"  # before the path in a name scope; "." stands for "/" in it


@dataclass(frozen=True)
class Layer:
    """The costs of a module with all that it holds, for one input.

    Attributes:
      path: its place in the model, "" for the model itself.
      kind: its class.
      params: trainable numbers.
      macs: multiply-accumulates of matrix products and convolutions.
      activations: bytes of the results of those, in the dtype they are computed in.
    """

    path: str
    kind: str
    params: int
    macs: int
    activations: int


def scoped(method: Callable, path: str) -> Callable:
    """`method` under a name scope that tells its module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(MARK + path.replace("/", ".")):
            return method(*args, **kwargs)

    return call


def name_scopes(model: nnx.Module) -> dict[str, str]:
    """Gives every module in `model` a class of its own whose methods run under its name; {path: class}."""
    kinds = {}
    for path, module in list(nnx.iter_modules(model)):
        name, kind = "/".join(map(str, path)), type(module)
        methods = {
            key: scoped(value, name)
            for base in reversed(kind.__mro__)
            if issubclass(base, nnx.Module) and base is not nnx.Module
            for key, value in vars(base).items()
            if inspect.isfunction(value) and (key == "__call__" or not key.startswith("_"))
        }
        kinds[name] = kind.__name__
        module.__class__ = type(kind.__name__, (kind,), methods)
    return kinds


def layer_costs(
    make: Callable[[], nnx.Module], size: tuple[int, ...], channels: int = 3, **call: Any
) -> list[Layer]:
    """Every module that costs anything, itself (path "") included.

    Args:
      make: builds the model; traced only, so size does not matter.
      size: (height, width) or (frames, height, width) of the input.
      call: further arguments of the model's call, such as compressed=(3, 3).
    """
    model = nnx.eval_shape(make)
    params = named_leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    kinds = name_scopes(model)
    costs = dict.fromkeys(kinds, (0, 0, 0))

    def add(path: str, params: int, macs: int, activations: int) -> None:
        """To the module at `path` and all that hold it."""
        parts = path.split("/") if path else []
        for end in range(len(parts) + 1):
            place = "/".join(parts[:end])
            if place in costs:
                old = costs[place]
                costs[place] = (old[0] + params, old[1] + macs, old[2] + activations)

    for path, leaf in params.items():
        add(path.rpartition("/")[0], leaf.size, 0, 0)
    for equation, scope, times in equations(trace_model(model, size, channels, **call).jaxpr.jaxpr):
        macs = products_of(equation)
        if macs:
            place = scope.rpartition(MARK)[2].partition("/")[0].replace(".", "/") if MARK in scope else ""
            result = equation.outvars[0].aval
            add(place, 0, times * macs, times * result.size * result.dtype.itemsize)
    return [Layer(path, kinds[path], *values) for path, values in costs.items() if any(values)]
