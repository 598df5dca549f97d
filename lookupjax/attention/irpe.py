"""Softmax attention with a learned bias of the distance between two positions (iRPE, arXiv 2107.14222).

    scores = q k^T / sqrt(c) + table[head, bucket(distance)]        weights = softmax(scores)

This is iRPE's "bias" mode with the Euclidean distance on the grid: distances up to `alpha` have a bucket
each, larger ones share logarithmic buckets up to `beta`, so a table of 2 beta + 1 entries serves every
grid. The distance is never negative, hence the first `beta` entries of the published layout stay unused.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.layers.mlp import linear
from lookupjax.layers.regularise import dropout

ALPHA, BETA, GAMMA = 20, 40, 160  # PATNet's: iRPE with ratio 20


def distance_buckets(grid: tuple[int, ...]) -> np.ndarray:
    """(n, n) bucket of each pair of the n row-major positions of `grid`, from BETA to 2 BETA."""
    positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
    offset = positions[:, None] - positions[None]
    distance = np.rint(np.sqrt(np.square(offset).sum(-1)))
    far = np.log(np.maximum(distance, 1) / ALPHA) / np.log(GAMMA / ALPHA) * (BETA - ALPHA)
    bucket = np.where(distance <= ALPHA, distance, np.minimum(np.rint(ALPHA + far), BETA))
    return bucket.astype(np.int32) + BETA


class DistanceAttention(TokenMixer):
    """Self-attention on a grid; dropout after the softmax and after the last projection in training."""

    supports_mask = True
    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.table = nnx.Param(jnp.zeros((num_heads, 2 * BETA + 1)))
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b _ d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """Mixes the row-major tokens of `grid`; `mask` is True where attention is allowed."""
        self.check_call(context, mask, grid, causal)
        q = self.tap("q", split_heads(self.q(x), self.num_heads))
        k = self.tap("k", split_heads(self.k(x), self.num_heads))
        v = self.tap("v", split_heads(self.v(x), self.num_heads))
        bias = self.table[...][:, distance_buckets(grid)]
        scores = self.tap("scores", attention_scores(q, k) + bias[None])
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        mixed = merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))
        return self.tap("output", dropout(self.out(mixed), self.dropout, rngs))


MIXER = DistanceAttention
