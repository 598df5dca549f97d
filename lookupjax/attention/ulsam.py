"""ULSAM, ultra-lightweight subspace attention (arXiv 2006.15102): one map of weights per group of channels.

    x (b, h, w, m) in g contiguous groups of channels, for each of them
      s = ReLU(BN(p . maxpool3x3(ReLU(BN(a x + c)))))   (b, h, w)   a, c: per channel; p: to one channel
      out = x + x softmax(s)                                        over all positions of the map

5 m + 3 g parameters. There are no queries and keys: the weights of a position come from its neighbourhood.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import check_heads
from lookupjax.layers.norm import BatchNorm
from lookupjax.layers.pool import max_pool


def boost(x: Float[Array, "b n m"], weights: Float[Array, "b g n"]) -> Float[Array, "b n m"]:
    """x + x a: every position of group i of the channels times 1 + weights[:, i]; float32 inside."""
    b, n, m = x.shape
    grouped = x.astype(jnp.float32).reshape(b, n, weights.shape[1], -1)
    return (grouped * (1.0 + weights.transpose(0, 2, 1)[..., None])).reshape(b, n, m).astype(x.dtype)


class SubspaceAttention(TokenMixer):
    """ULSAM; `num_heads` is the number of groups ("subspaces")."""

    needs_grid = True

    def __init__(self, dim: int, num_heads: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_heads(dim, num_heads)
        group = dim // num_heads
        draw = nnx.initializers.uniform

        def symmetric(shape: tuple[int, ...], bound: float) -> nnx.Param:  # PyTorch's default
            return nnx.Param(draw(2 * bound)(rngs.params(), shape) - bound)

        self.scale = symmetric((dim,), 1.0)
        self.shift = symmetric((dim,), 1.0)
        self.norm = BatchNorm(dim, momentum=0.1, dtype=dtype, rngs=rngs)
        self.point = symmetric((num_heads, group), group**-0.5)
        self.point_bias = symmetric((num_heads,), group**-0.5)
        self.point_norm = BatchNorm(num_heads, momentum=0.1, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def scores(self, x: Float[Array, "b h w m"], *, train: bool) -> Float[Array, "b h w g"]:
        """What the softmax over positions reads."""
        groups, group = self.point.shape
        scale, shift = (v[...].astype(self.dtype)[None, None, None] for v in (self.scale, self.shift))
        u = jax.nn.relu(self.norm(x * scale + shift, train=train))
        u = max_pool(u, 3, stride=1, padding=1)
        u = u.reshape(*u.shape[:3], groups, group)
        s = jnp.einsum("bhwgc,gc->bhwg", u, self.point[...].astype(self.dtype))
        s = s + self.point_bias[...].astype(self.dtype)[None, None, None]
        return jax.nn.relu(self.point_norm(s, train=train))

    def attend(self, x: Float[Array, "b h w m"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w m"]:
        """The same on a map."""
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return self(tokens, grid=x.shape[1:3], rngs=rngs).reshape(x.shape)

    def __call__(
        self,
        x: Float[Array, "b n m"],
        context: Float[Array, "b k m"] | None = None,
        *,
        mask: Bool[Array, "#b #h n k"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n m"]:
        self.check_call(context, mask, grid, causal)
        b, n, m = x.shape
        scores = self.scores(x.reshape(b, *grid, m), train=rngs is not None)
        scores = self.tap("scores", scores.reshape(b, n, -1).transpose(0, 2, 1))
        weights = self.tap("weights", jax.nn.softmax(scores.astype(jnp.float32), axis=-1))
        return self.tap("output", boost(x, weights))


MIXER = SubspaceAttention
