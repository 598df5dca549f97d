"""Multi-head softmax attention (arXiv 1706.03762, section 3.2)."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.backend import get_backend
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.regularise import dropout

QK_NORMS = ("none", "head", "full")


def split_heads(x: Float[Array, "b n d"], num_heads: int) -> Float[Array, "b h n c"]:
    """(b, n, d) -> (b, h, n, d / h); head i owns channels i * d/h .. (i + 1) * d/h - 1."""
    b, n, d = x.shape
    return x.reshape(b, n, num_heads, d // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "b h n c"]) -> Float[Array, "b n d"]:
    """The inverse of `split_heads`."""
    b, h, n, c = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * c)


def attention_scores(q: Float[Array, "b h m c"], k: Float[Array, "b h n c"]) -> Float[Array, "b h m n"]:
    """Q K^T / sqrt(c), accumulated and returned in float32."""
    scores = jnp.einsum("bhmc,bhnc->bhmn", q, k, preferred_element_type=jnp.float32)
    return scores / math.sqrt(q.shape[-1])


def cudnn_serves(q: Float[Array, "b h m c"]) -> bool:
    """Whether cuDNN's fused attention can be used: Nvidia, 16-bit values, heads of 8, 16 ... 128 channels."""
    c = q.shape[-1]
    nvidia = "cuda" in get_backend().platform_version
    return nvidia and q.dtype.itemsize == 2 and c % 8 == 0 and c <= 128


def fused_attention(
    q: Float[Array, "b h m c"],
    k: Float[Array, "b h n c"],
    v: Float[Array, "b h n c"],
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b m d"]:
    """softmax(q k^T / sqrt(c)) v with its heads merged, scores never in memory (`jax.nn`)."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    mixed = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return mixed.reshape(*mixed.shape[:2], -1)


def causal_mask(
    scores: Float[Array, "b h m n"], mask: Bool[Array, "#b #h m n"] | None = None
) -> Bool[Array, "#b #h m n"]:
    """True for each query's own and earlier keys, where `mask` is True too; the last query sees all keys."""
    m, n = scores.shape[-2:]
    order = jnp.tril(jnp.ones((m, n), bool), k=n - m)[None, None]
    return order if mask is None else mask & order


def check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise UserError(f"dim={dim} cannot be split into num_heads={num_heads} equal heads")


class QKNorm(nnx.Module):
    """LayerNorm of projected queries or keys (b, n, d), returned split into heads.

    mode "full" normalises over all d channels before the split, "head" over each head's channels
    (ViT-22B, arXiv 2302.05442), "none" only splits.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mode: str,
        *,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if mode not in QK_NORMS:
            raise UserError(f"qk_norm={mode!r} is unknown; choose one of {QK_NORMS}")
        self.num_heads, self.mode = num_heads, mode
        width = dim if mode == "full" else dim // num_heads
        self.norm = None if mode == "none" else LayerNorm(width, eps=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b h n c"]:
        if self.mode == "full":
            return split_heads(self.norm(x), self.num_heads)
        x = split_heads(x, self.num_heads)
        return self.norm(x) if self.mode == "head" else x


class SoftmaxAttention(TokenMixer):
    """out(softmax(q k^T / sqrt(c)) v) with separate q, k, v, out projections."""

    supports_context = supports_mask = supports_causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: str = "none",
        eps: float = 1e-6,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.q_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.k_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, bias=out_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b m d"],
        context: Float[Array, "b n d"] | None = None,
        *,
        mask: Bool[Array, "#b #h m n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        """Mixes x with itself, or with `context` when given; `mask` is True where attention is allowed."""
        self.check_call(context, mask, grid, causal)
        q, k, v = self.project(x, context)
        return self.attend(q, k, v, mask=mask, causal=causal, rngs=rngs)

    def project(
        self, x: Float[Array, "b m d"], context: Float[Array, "b n d"] | None = None
    ) -> tuple[Float[Array, "b h m c"], Float[Array, "b h n c"], Float[Array, "b h n c"]]:
        """Queries of x, keys and values of x or of `context`."""
        return self.queries(x), *self.keys_values(x if context is None else context)

    def queries(self, x: Float[Array, "b m d"]) -> Float[Array, "b h m c"]:
        return self.tap("q", self.q_norm(self.q(x)))

    def keys_values(
        self, source: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b h n c"], Float[Array, "b h n c"]]:
        """What a decoder keeps of tokens that later ones attend to."""
        k = self.tap("k", self.k_norm(self.k(source)))
        return k, self.tap("v", split_heads(self.v(source), self.num_heads))

    def attend(
        self,
        q: Float[Array, "b h m c"],
        k: Float[Array, "b h n c"],
        v: Float[Array, "b h n c"],
        *,
        bias: Float[Array, "#b #h #m n"] | None = None,
        mask: Bool[Array, "#b #h #m n"] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        """out(softmax(q k^T / sqrt(c) + bias) v); on GPUs by cuDNN where nobody needs the weights."""
        whole = bias is None and mask is None and not causal
        if whole and not self.tapped and (rngs is None or not self.dropout) and cudnn_serves(q):
            return self.out(fused_attention(q, k, v))
        scores = self.tap("scores", attention_scores(q, k))
        if bias is not None:
            scores = scores + bias
        mask = causal_mask(scores, mask) if causal else mask
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        mixed = merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))
        return self.tap("output", self.out(mixed))


MIXER = SoftmaxAttention
