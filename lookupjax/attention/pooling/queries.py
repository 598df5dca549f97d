"""Poolings that are one attention call: the query is the mean token or a learned one.

Each class's docstring is its formula; x are the tokens, A(q, k, v) is multi-head softmax attention.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.pooling.base import Heads, Pooling, learned_query, repeat
from lookupjax.errors import UserError
from lookupjax.layers.init import torch_linear
from lookupjax.layers.norm import BatchNorm, LayerNorm

Grid = tuple[int, ...] | None


def mean_token(x: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
    return x.astype(jnp.float32).mean(1, keepdims=True).astype(x.dtype)


class Token(Pooling):
    """x[0]: the class token, for linear probing. Needs the tokens with their prefix."""

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.width = dim

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        return x[:, 0]


class Mean(Pooling):
    """mean(x): global average pooling, for linear probing."""

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.width = dim

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        return mean_token(x)[:, 0]


class SimPool(Heads):
    """A(Wq mean(x), Wk LN(x), LN(x)) (arXiv 2309.06891)."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        qkv_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)
        self.q = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        normed = self.norm(x)
        return self.attend(self.q(mean_token(x)), self.k(normed), normed, self.num_heads)[:, 0]


class ESimPool(Heads):
    """A(LN(mean(x)), LN(x), x): SimPool without projections."""

    def __init__(self, dim: int, *, num_heads: int = 12, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.set_heads(dim, num_heads)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        return self.attend(self.norm(mean_token(x)), self.norm(x), x, self.num_heads)[:, 0]


class Aim(Heads):
    """mean over queries of A(query, Wk BN(x), Wv BN(x)) (AIM, arXiv 2401.08541); BN has no scale or bias."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 16,
        num_queries: int = 1,
        qkv_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.query = learned_query((num_queries, dim), rngs)
        self.norm = BatchNorm(dim, eps=1e-6, affine=False, dtype=dtype, rngs=rngs)
        self.k = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        x = self.norm(x, train=rngs is not None)
        return self.attend(repeat(self.query, x), self.k(x), self.v(x), self.num_heads).mean(1)


class Clip(Heads):
    """out(A(first, u, u)), u = [mean(LN x), LN x] + positions (CLIP's AttentionPool2d).

    Positions exist for `feat_size` x `feat_size` tokens only.
    """

    def __init__(
        self,
        dim: int,
        *,
        feat_size: int = 14,
        num_heads: int = 4,
        qkv_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)
        self.pos = learned_query((feat_size**2 + 1, dim), rngs)
        self.q = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = torch_linear(dim, dim, bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        x = self.norm(x)
        x = jnp.concatenate([mean_token(x), x], axis=1)
        if x.shape[1] != self.pos.shape[0]:
            raise UserError(
                f"pooling 'clip' has positions for {self.pos.shape[0] - 1} tokens, but gets "
                f"{x.shape[1] - 1}; set feat_size to the token grid's side"
            )
        x = x + self.pos[...].astype(x.dtype)[None]
        return self.out(self.attend(self.q(x[:, :1]), self.k(x), self.v(x), self.num_heads))[:, 0]


class CoCa(Pooling):
    """out(A(Wq LN(query_0), Wk x, Wv x)), one key and value head for all query heads (arXiv 2205.01917).

    The other `num_queries` - 1 queries are captioning's: they exist in the checkpoints, nothing reads them.
    The LN's shift is a buffer of zeros.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_queries: int = 196,
        num_heads: int = 8,
        head_dim: int = 64,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width, self.num_heads = dim, num_heads
        self.query = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (num_queries, dim)))
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.norm.bias = nnx.Variable(jnp.zeros((dim,)))  # type: ignore[assignment]  # not trained
        self.q = torch_linear(dim, num_heads * head_dim, bias=False, dtype=dtype, rngs=rngs)
        self.k = torch_linear(dim, head_dim, bias=False, dtype=dtype, rngs=rngs)
        self.v = torch_linear(dim, head_dim, bias=False, dtype=dtype, rngs=rngs)
        self.out = torch_linear(num_heads * head_dim, dim, bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        query = self.norm(repeat(self.query, x)[:, :1])
        q, k, v = self.q(query), self.k(x), self.v(x)
        heads = q.reshape(q.shape[0], self.num_heads, -1)  # as so many queries of one head
        return self.out(self.attend(heads, k, v, 1).reshape(q.shape))[:, 0]


class Cae(Heads):
    """out(A(Wq LNq(query), Wk LNk(x), Wv LNv(x))) (CAE, arXiv 2202.03026).

    `spare_norm` stands in the checkpoints, but nothing reads it.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.query = learned_query((1, dim), rngs)
        self.q_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.k_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.v_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.spare_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.q = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = torch_linear(dim, dim, bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        q = self.q(self.q_norm(repeat(self.query, x)))
        return self.out(self.attend(q, self.k(self.k_norm(x)), self.v(self.v_norm(x)), self.num_heads))[:, 0]


class VitMhca(Heads):
    """A(Wq query, Wk [query, x], Wv [query, x]): a class token's attention, without output projection."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.query = learned_query((1, dim), rngs)
        self.q = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = torch_linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        query = repeat(self.query, x)
        x = jnp.concatenate([query, x], axis=1)
        return self.attend(self.q(query), self.k(x), self.v(x), self.num_heads)[:, 0]
