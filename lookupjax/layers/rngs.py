"""A key source without traced counters."""

import jax
from flax import nnx


class Keys(nnx.Rngs):
    """An `nnx.Rngs` that counts its draws in Python.

    Flax counts them in a Variable; under tracing every draw then rewrites it, which makes building an
    abstract LookupViT-L take 20 s instead of 1. Stands wherever an `nnx.Rngs` does; all streams share
    one sequence, so the n-th draw is `fold_in(key, n)`.
    """

    def __init__(self, key: int | jax.Array):
        self.key = jax.random.key(key) if isinstance(key, int) else key
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn)

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return self

    def __getitem__(self, name: str):
        return self
