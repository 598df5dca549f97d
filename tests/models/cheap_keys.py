"""Random keys whose draws are quick to compile: every parameter of a model is a draw of its own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl


def mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bit integers under which neighbours have nothing in common."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def fold_in(key: jax.Array, number: jax.Array) -> jax.Array:
    return mixed(key + mixed(number + np.uint32(0x9E3779B9)))


def split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return fold_in(key, jnp.arange(math.prod(shape), dtype=jnp.uint32)).reshape(*shape, 1)


def random_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    assert width == 32
    return mixed(key + mixed(jnp.arange(math.prod(shape), dtype=jnp.uint32))).reshape(shape)


CHEAP = define_prng_impl(
    key_shape=(1,),
    seed=lambda seed: mixed(seed.astype(jnp.uint32)).reshape(1),
    split=split,
    random_bits=random_bits,
    fold_in=fold_in,
    name="cheap",
    tag="cheap",
)


def cheap_key(seed: int) -> jax.Array:
    """For tests that need different random values, but not good ones."""
    return jax.random.key(seed, impl=CHEAP)
