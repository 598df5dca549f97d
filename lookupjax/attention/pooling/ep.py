"""Efficient Probing (arXiv 2506.10178, ICLR 2026): learned queries, no query or key projection.

    S = softmax_n(q / sqrt(d) . x)   (b, Q, n)    the keys are the raw tokens
    v = W x, split over the queries  (b, n, Q, c) c = d / (d_out Q): slice i belongs to query i
    pooled = [S_1 v_1, ..., S_Q v_Q] (b, d / d_out)

This is the released code; the paper's text speaks of identity values and of averaging over queries.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.pooling.base import Pooling, learned_query
from lookupjax.errors import UserError
from lookupjax.layers.init import torch_linear


def query_weights(q: Float[Array, "m d"], x: Float[Array, "b n d"]) -> Float[Array, "b m n"]:
    """softmax over tokens of q x^T / sqrt(d), in float32: raw features make large scores."""
    q, x = q.astype(jnp.float32) / math.sqrt(q.shape[-1]), x.astype(jnp.float32)
    return jax.nn.softmax(jnp.einsum("md,bnd->bmn", q, x), axis=-1)


def pool_slices(weights: Float[Array, "b m n"], v: Float[Array, "b n e"]) -> Float[Array, "b e"]:
    """Query i pools channel slice i of v; the results side by side."""
    b, n, e = v.shape
    v = v.reshape(b, n, weights.shape[1], -1)
    return jnp.einsum("bmn,bnmc->bmc", weights.astype(v.dtype), v).reshape(b, e)


class EfficientProbing(Pooling):
    """EP.

    Args:
      num_queries: must divide dim / d_out.
      d_out: divisor of the pooled width.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_queries: int = 32,
        d_out: int = 1,
        qkv_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % d_out or (dim // d_out) % num_queries:
            raise UserError(f"num_queries={num_queries} must divide dim / d_out = {dim} / {d_out}")
        self.width = dim // d_out
        self.query = learned_query((num_queries, dim), rngs)
        self.v = torch_linear(dim, self.width, bias=qkv_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: tuple[int, ...] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b e"]:
        weights = self.tap("weights", query_weights(self.query[...], x))
        return self.tap("output", pool_slices(weights, self.v(x)))
