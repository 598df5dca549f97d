"""Poolings with more than one attention call: MLPs, residual branches, whole transformer blocks."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.pooling.base import Heads, Pooling, learned_query, repeat
from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.errors import UserError
from lookupjax.layers.init import torch_linear
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm

Grid = tuple[int, ...] | None
ATTENDED = ("both", "map", "none")
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class Abmilp(Pooling):
    """sum_n softmax_n(score(u)) w, u = self-attention of x (ABMILP, arXiv 1802.04712).

    score is `depth` linear layers with `activation` between. Self-attention has one head, no residual, no
    norm; its result is what is scored and summed ("both"), only scored ("map"), or absent ("none").
    """

    def __init__(
        self,
        dim: int,
        *,
        self_attention: str = "both",
        activation: str = "tanh",
        depth: int = 2,
        num_heads: int = 1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (
            ("self_attention", self_attention, ATTENDED),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        self.width, self.self_attention, self.activation = dim, self_attention, activation
        attended = self_attention != "none"
        options = dict(qkv_bias=False, dtype=dtype, rngs=rngs)
        self.attn = SoftmaxAttention(dim, num_heads, **options) if attended else None
        widths = [dim] * depth + [1]
        self.score = nnx.List(
            torch_linear(widths[i], widths[i + 1], bias=True, dtype=dtype, rngs=rngs) for i in range(depth)
        )

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        attended = x if self.attn is None else self.attn(x)
        scores = self.score[0](attended)
        for layer in self.score[1:]:
            scores = layer(ACTIVATIONS[self.activation](scores))
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=1)
        weights = self.tap("weights", weights.transpose(0, 2, 1)).astype(x.dtype)
        values = attended if self.self_attention == "both" else x
        return jnp.einsum("bmn,bnd->bmd", weights, values)[:, 0]


class SigLip(Heads):
    """z + MLP(z), z = out(A(Wq latent, Wk x, Wv x)) (SigLIP's attention pool, arXiv 2303.15343), no norm."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.query = learned_query((1, dim), rngs)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        z = self.attn(repeat(self.query, x), x)
        return (z + self.mlp(z))[:, 0]


class ClassAttentionBlock(nnx.Module):
    """cls += g1 A(LN u), u = [cls, x]; cls += g2 MLP(LN cls) (CaiT, arXiv 2103.17239)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        init: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attn_norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dtype=dtype, rngs=rngs)
        self.gamma1 = nnx.Param(jnp.full((dim,), init))
        self.gamma2 = nnx.Param(jnp.full((dim,), init))

    def __call__(self, cls: Float[Array, "b 1 d"], x: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
        gamma1, gamma2 = (g[...].astype(x.dtype)[None, None] for g in (self.gamma1, self.gamma2))
        u = self.attn_norm(jnp.concatenate([cls, x], axis=1))
        cls = cls + gamma1 * self.attn(u[:, :1], u)
        return cls + gamma2 * self.mlp(self.mlp_norm(cls))


class CaiT(Heads):
    """LN of a class token after `depth` class-attention blocks."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.query = learned_query((1, dim), rngs)
        self.blocks = nnx.List(
            ClassAttentionBlock(dim, num_heads, mlp_ratio, qkv_bias, init, dtype=dtype, rngs=rngs)
            for _ in range(depth)
        )
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        cls = repeat(self.query, x)
        for block in self.blocks:
            cls = block(cls, x)
        return self.norm(cls)[:, 0]


class DinoVit(Heads):
    """Mean over the tokens after one DINOv2 block without layer scale (arXiv 2304.07193)."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.attn_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        x = x + self.attn(self.attn_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x.mean(1)


class Jepa(Heads):
    """q += out(A(Wq q, Wk LN(x), Wv LN(x))); q += MLP(LN q), from a learned q (I-JEPA's attentive probe).

    Unlike in a transformer block, q is not normalised before the attention.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.set_heads(dim, num_heads)
        self.query = learned_query((1, dim), rngs)
        self.attn_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dtype=dtype, rngs=rngs)
        for layer in (self.attn.out, self.mlp.fc2):
            layer.kernel = nnx.Param(layer.kernel[...] / math.sqrt(2.0))

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        q = repeat(self.query, x)
        q = q + self.attn(q, self.attn_norm(x))
        return (q + self.mlp(self.mlp_norm(q)))[:, 0]
