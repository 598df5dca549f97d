"""Reference fixtures: .npz files of a reference implementation's weights, inputs and outputs."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.errors import UserError, nearest
from lookupjax.paths import map_named


class Params(Mapping[str, np.ndarray]):
    """The reference's parameters by their own names, remembering which were read."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise UserError(f"the reference has no parameter {name!r}{nearest(name, self.arrays)}")
        self.used.add(name)
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    @property
    def unused(self) -> list[str]:
        return sorted(set(self.arrays) - self.used)


@dataclass
class Fixture:
    """One .npz file: `config` (JSON), `param/...`, `in/...`; expectations `out/...` and `grad/...`."""

    name: str
    config: dict
    params: Params
    inputs: dict[str, jax.Array]
    expected: dict[str, np.ndarray]

    @property
    def family(self) -> str:
        return self.name.split("__")[0]

    def wants(self, prefix: str) -> bool:
        """Whether any expected key starts with `prefix`, such as "grad/" or "out/logits"."""
        return any(key.startswith(prefix) for key in self.expected)


def load_fixture(path: str | Path) -> Fixture:
    """Reads a fixture; never unpickles.

    Raises:
      UserError: when the file is missing or not such a fixture.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        config = json.loads(str(arrays.pop("config")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        raise UserError(f"{path} is not a fixture (.npz with a JSON `config`): {error}") from None
    groups: dict[str, dict[str, np.ndarray]] = {"param": {}, "in": {}}
    expected = {}
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        if group in groups:
            groups[group][name] = value
        else:
            expected[key] = value
    inputs = {k: jnp.asarray(v) for k, v in groups["in"].items()}
    return Fixture(path.stem, config, Params(groups["param"]), inputs, expected)


def tuples(value: Any) -> Any:
    """JSON's lists as the tuples that constructors take."""
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def reals(value: Any) -> Any:
    """JSON's whole numbers as the floats that constructors take; inside lists too, which become tuples."""
    if isinstance(value, list):
        return tuple(reals(v) for v in value)
    return float(value) if isinstance(value, int) else value


def fill(
    module: nnx.Module, value_of: Callable[[str, tuple[int, ...]], np.ndarray | jax.Array]
) -> nnx.Module:
    """Sets every parameter and statistic of `module` to `value_of(path, shape)`; returns the module.

    `path` is our own, such as "blocks/0/attn/q/kernel". `module` may be abstract (`nnx.eval_shape`), values
    may be traced: gradients then come out in the reference's own names and layouts.

    Raises:
      UserError: when a value's shape is not the parameter's.
    """
    graphdef, state = nnx.split(module)
    pure = nnx.to_pure_dict(state)

    def assign(path: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        value = value_of(path, leaf.shape)
        if np.shape(value) != leaf.shape:
            raise UserError(f"{path} has shape {leaf.shape} here, but {np.shape(value)} in the reference")
        return jnp.asarray(value, leaf.dtype)

    return nnx.merge(graphdef, map_named(assign, pure))
