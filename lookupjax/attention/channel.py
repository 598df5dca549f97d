"""Channel-group attention (DaViT, arXiv 2204.03645): the tokens are the channels of a head.

Within a head of c channels over n positions, A is a (c, c) matrix, whatever n is:

    form "v1":  A = softmax(s k^T v),  out = q A^T        (the released ImageNet models; k asks, v answers)
    form "v2":  A = softmax(s q^T k),  out = v A^T        (the encoders of Florence-2)

The scale s is c^-1/2 ("head": the logits are sums over positions and grow with resolution) or n^-1/2
("positions").
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear

FORMS = ("v1", "v2")
SCALES = ("head", "positions")


def channel_scores(
    a: Float[Array, "b h n c"], b: Float[Array, "b h n c"], scale: str
) -> Float[Array, "b h c c"]:
    """s a^T b in float32."""
    size = a.shape[-1] if scale == "head" else a.shape[-2]
    return jnp.einsum("bhni,bhnj->bhij", a, b, preferred_element_type=jnp.float32) / math.sqrt(size)


def mix_channels(
    weights: Float[Array, "b h c c"], values: Float[Array, "b h n c"]
) -> Float[Array, "b h n c"]:
    """out[n, i] = sum_j A[i, j] values[n, j]."""
    return jnp.einsum("bhij,bhnj->bhni", weights.astype(values.dtype), values)


class ChannelAttention(TokenMixer):
    """Channel-group attention; the number of heads is the number of groups."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        form: str = "v1",
        scale: str = "head",
        qkv_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        for name, value, known in (("form", form, FORMS), ("scale", scale, SCALES)):
            if value not in known:
                raise UserError(f"{name}={value!r} of channel attention is unknown; choose one of {known}")
        self.num_heads, self.form, self.scale = num_heads, form, scale
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n m"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        self.check_call(context, mask, grid, causal)
        q, k, v = (
            self.tap(name, split_heads(project(x), self.num_heads))
            for name, project in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        asks, answers, values = (k, v, q) if self.form == "v1" else (q, k, v)
        scores = self.tap("scores", channel_scores(asks, answers, self.scale))
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        return self.tap("output", self.out(merge_heads(mix_channels(weights, values))))


MIXER = ChannelAttention
