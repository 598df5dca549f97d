"""Models with arbitrary values, without compiling their initialisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.paths import map_named


def filled(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """`make()` with NumPy's random numbers: scales and variances near one, flags off."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    random = np.random.default_rng(seed)

    def value(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype != np.float32:
            return jnp.zeros(leaf.shape, leaf.dtype)
        if path.endswith(("scale", "var")):
            return jnp.asarray(random.uniform(0.8, 1.2, leaf.shape), leaf.dtype)
        return jnp.asarray(random.normal(0, 0.1, leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, map_named(value, nnx.to_pure_dict(state)))
