"""Weights from files: into every model whose family has an adapter, and never more than was asked for.

An adapter `interop/<family>.py` offers `parameter(params, path, shape)`: our parameter at `path` from a
file's arrays. Whatever it cannot give is missing, whatever it does not read is unexpected.
"""

import functools
import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lookupjax.errors import UserError
from lookupjax.grids import format_grid
from lookupjax.interop.fixture import Params
from lookupjax.layers.position import resize_grid
from lookupjax.paths import named_leaves

FILES = (".npz", ".safetensors")
BOOKKEEPING = (r"(^|\.)num_batches_tracked$", r"^opt/state/")  # of the training that wrote a file: no weights
SHOWN = 6  # names per kind in the report
LARGEST_GRID = 128  # of a stored position table that is looked for, tokens per side

ValueOf = Callable[[str, tuple[int, ...]], Any]


@dataclass
class Report:
    """What became of a model's parameters and a file's arrays.

    Attributes:
      missing: the model's parameters that kept their values, with the reason.
      unexpected: the file's arrays that no parameter read.
      resized: position tables that were interpolated, as "14x14 -> 24x24".
    """

    loaded: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.resized)

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} parameters"]
        for kind in ("missing", "unexpected", "resized"):
            found = getattr(self, kind)
            reasons = found.items() if isinstance(found, dict) else ((name, "") for name in found)
            names = [f"{name} ({reason})" if reason else name for name, reason in reasons]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{kind} {len(names)}" + (f": {', '.join(names[:SHOWN])}{more}" if names else ""))
        return "; ".join(parts)


def read_weights(path: str | Path) -> Params:
    """The arrays of a .npz or .safetensors file by name. Nothing is ever unpickled.

    Raises:
      UserError: when the file is missing, damaged or of another kind.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FILES:
        raise UserError(
            f"{path}: weights are read from .npz and .safetensors files; a pickled checkpoint (.pth, .bin) "
            "can run any code and is never opened: save its state dict with safetensors first"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if kind == ".safetensors":
            return Params(load_file(path))
        with np.load(path, allow_pickle=False) as file:
            return Params({name: file[name] for name in file.files})
    except (SafetensorError, ValueError, OSError, EOFError, KeyError) as error:
        raise UserError(f"{path} is no readable {kind} file: {error}") from None
    except Exception as error:  # a damaged archive raises whatever zipfile or zlib do
        raise UserError(f"{path} is damaged: {error}") from None


class Own:
    """The adapter of files with our own names, as `lookupjax.export` writes them."""

    @staticmethod
    def parameter(params: Params, path: str, shape: tuple[int, ...]) -> np.ndarray:
        return params[path]


def adapter(model: nnx.Module, params: Params) -> Any:
    """What reads the arrays: `Own` where most of them have names of the model's own parameters, otherwise
    the interop module of its family.

    Raises:
      UserError: when the family has none that loads weights.
    """
    own = named_leaves(nnx.to_pure_dict(nnx.state(model)))
    if 2 * len(own.keys() & set(params)) > len(params):
        return Own
    family = type(model).__module__.rpartition(".")[2]
    package = importlib.import_module("lookupjax.interop")
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    if family in names:
        module = importlib.import_module(f"lookupjax.interop.{family}")
        if hasattr(module, "parameter"):
            return module
    raise UserError(f"weights from files cannot be loaded into {family}: it has no adapter for them")


def reader(model: nnx.Module, params: Params) -> ValueOf:
    """value_of(path, shape) by the adapter of the model's family.

    `OPTIONS` of an adapter names attributes of the model that its `parameter` takes beside.

    Raises:
      UserError: when the family has none.
    """
    module = adapter(model, params)
    options = {name: getattr(model, name) for name in getattr(module, "OPTIONS", ())}
    return functools.partial(module.parameter, params, **options)


def is_position_table(path: str, shape: tuple[int, ...]) -> bool:
    """Whether this is a table of positions on a grid ([time,] height, width, d), such as "pos_lookup"."""
    return len(shape) in (3, 4) and path.rpartition("/")[2].startswith("pos")


def _stored_table(value_of: ValueOf, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A position table at the square grid that it is stored with."""
    for n in range(1, LARGEST_GRID):
        try:
            return np.asarray(value_of(path, (*shape[:-3], n, n, shape[-1])))
        except (UserError, KeyError):
            return None
        except ValueError:
            continue
    return None


def stored_value(value_of: ValueOf, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """value_of(path, shape); a position table of another grid comes as it is stored.

    Raises:
      UserError, KeyError: when there is none.
      ValueError: when it cannot take this shape.
    """
    try:
        return np.asarray(value_of(path, shape))
    except (UserError, KeyError):
        raise
    except ValueError:
        table = _stored_table(value_of, path, shape) if is_position_table(path, shape) else None
        if table is None:
            raise
        return table


def gather_values(
    wanted: Mapping[str, tuple[int, ...]], value_of: ValueOf, *, pos_resize: str = "linear"
) -> tuple[dict[str, np.ndarray], Report]:
    """({path: value} of what could be had, what became of each path).

    Args:
      wanted: the shape of every parameter.
      value_of: value_of(path, shape) gives a value, or raises UserError or KeyError when there is none and
        ValueError when it cannot take that shape.
      pos_resize: how position tables meet another grid, see `layers.position.resize_matrix`.
    """
    values, report = {}, Report()
    for path, shape in wanted.items():
        try:
            value = stored_value(value_of, path, shape)
        except (UserError, KeyError) as error:
            report.missing[path] = str(error).strip("'\"")
            continue
        except ValueError as error:
            report.missing[path] = f"not {shape}: {error}"
            continue
        if value.shape != shape and is_position_table(path, shape) and value.ndim == len(shape):
            old, new = value.shape[:-1], shape[:-1]
            value = np.asarray(resize_grid(jnp.asarray(value, jnp.float32), new, method=pos_resize))
            report.resized[path] = f"{format_grid(old)} -> {format_grid(new)}"
        if value.shape != shape:
            report.missing[path] = f"{value.shape} in the file, {shape} here"
            continue
        values[path] = value
        report.loaded.append(path)
    return values, report


def unread(module: Any, params: Params) -> list[str]:
    """Names of the file that no parameter was read from, without bookkeeping (also the adapter's own)."""
    ignored = BOOKKEEPING + tuple(getattr(module, "BOOKKEEPING", ()))
    return [n for n in params.unused if not any(re.search(pattern, n) for pattern in ignored)]


def load_weights(
    model: nnx.Module, path: str | Path, *, strict: bool = True, pos_resize: str | None = None
) -> Report:
    """Sets the model's parameters (and statistics) from a file, and prints what was done.

    Args:
      strict: refuse unless every parameter is loaded as it is stored and every array is used.
      pos_resize: how position tables meet another grid; default: as the model does.

    Raises:
      UserError: for an unreadable file, a family without adapter, and in strict mode for anything missing,
        unexpected or resized; the model is then unchanged.
    """
    params, state = read_weights(path), nnx.state(model)
    pure = nnx.to_pure_dict(state)
    leaves = named_leaves(pure)
    values, report = gather_values(
        {name: leaf.shape for name, leaf in leaves.items()},
        reader(model, params),
        pos_resize=pos_resize or getattr(model, "pos_resize", "linear"),
    )
    report.unexpected = unread(adapter(model, params), params)
    if strict and not report.complete:
        raise UserError(f"{path}: {report}; strict=False loads what fits and leaves the rest as it is")
    new = [jnp.asarray(values.get(name, leaf), leaf.dtype) for name, leaf in leaves.items()]
    nnx.replace_by_pure_dict(state, jax.tree.unflatten(jax.tree.structure(pure), new))
    nnx.update(model, state)
    print(f"{path}: {report}", file=sys.stderr)
    return report
