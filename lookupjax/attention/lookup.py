"""LookupViT's multi-head bidirectional cross-attention, MHBC (arXiv 2407.12753, section 3).

One score matrix per block serves both directions: compressed tokens gather from lookup tokens with
A = softmax_N(Q K^T / sqrt(c)), and after their refinement write back through the same A, transposed.
The arithmetic is in the plain functions `gather` and `infuse`; the modules add projections and norms.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import (
    QKNorm,
    attention_scores,
    check_heads,
    merge_heads,
    split_heads,
)
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm

REUSE = ("transpose", "renorm", "softmax")


def gather(weights: Float[Array, "b h m n"], v: Float[Array, "b h n c"]) -> Float[Array, "b h m c"]:
    """Information gathering, A V, with A = softmax of the scores over the n lookup tokens."""
    return jnp.einsum("bhmn,bhnc->bhmc", weights.astype(v.dtype), v)


def infusion_weights(
    scores: Float[Array, "b h m n"], weights: Float[Array, "b h m n"], reuse: str
) -> Float[Array, "b h m n"]:
    """The weights W of the write-back, W^T V': how A is reused.

    "transpose": A itself. "renorm": A / (sum_m A + 1e-6). "softmax": softmax over the compressed tokens
    of the same scores (the reading of vit-pytorch).
    """
    if reuse == "transpose":
        return weights
    if reuse == "renorm":
        return weights / (weights.sum(-2, keepdims=True) + 1e-6)
    if reuse == "softmax":
        return jax.nn.softmax(scores, axis=-2)
    raise UserError(f"reuse={reuse!r} is unknown; choose one of {REUSE}")


def infuse(weights: Float[Array, "b h m n"], v: Float[Array, "b h m c"]) -> Float[Array, "b h n c"]:
    """Global context infusion: W^T V', contracting over the compressed tokens without a transpose of W."""
    return jnp.einsum("bhmn,bhmc->bhnc", weights.astype(v.dtype), v)


class Gather(TokenMixer):
    """Information gathering: the update of the compressed tokens, with the scores it was made from."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        pre_norm: bool = True,
        qk_norm: str = "full",
        out_proj: bool = True,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.norm_p = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        self.norm_l = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        self.q = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.q_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.k_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs) if out_proj else None

    def __call__(
        self, z_p: Float[Array, "b m d"], z_l: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b h m n"], Float[Array, "b h m n"]]:
        """Returns (update of z_p, scores, A); scores and A are float32."""
        if self.norm_p is not None:
            z_p, z_l = self.norm_p(z_p), self.norm_l(z_l)
        q = self.tap("q", self.q_norm(self.q(z_p)))
        k = self.tap("k", self.k_norm(self.k(z_l)))
        v = self.tap("v", split_heads(self.v(z_l), self.num_heads))
        scores = self.tap("scores", attention_scores(q, k))
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        mixed = merge_heads(gather(weights, v))
        update = self.out(mixed) if self.out is not None else mixed
        return self.tap("output", update), scores, weights


class Infuse(TokenMixer):
    """Global context infusion: the update of the lookup tokens through the gathering's own attention."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        pre_norm: bool = True,
        reuse: str = "transpose",
        out_proj: bool = True,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if reuse not in REUSE:
            raise UserError(f"reuse={reuse!r} is unknown; choose one of {REUSE}")
        self.num_heads, self.reuse = num_heads, reuse
        self.norm_p = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        self.v = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs) if out_proj else None

    def __call__(
        self,
        z_p: Float[Array, "b m d"],
        scores: Float[Array, "b h m n"],
        weights: Float[Array, "b h m n"],
    ) -> Float[Array, "b n d"]:
        """`z_p` are the refined compressed tokens; `scores` and `weights` come from `Gather`."""
        if self.norm_p is not None:
            z_p = self.norm_p(z_p)
        v = self.tap("v", split_heads(self.v(z_p), self.num_heads))
        weights = self.tap("weights", infusion_weights(scores, weights, self.reuse))
        mixed = merge_heads(infuse(weights, v))
        return self.tap("output", self.out(mixed) if self.out is not None else mixed)
