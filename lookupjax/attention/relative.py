"""Softmax attention over a whole map with relative position logits (BoTNet, arXiv 2101.11605, as in timm).

    logits[(i, j), (y, x)] = q k^T / sqrt(c) + q . R_h[y - i + H - 1] + q . R_w[x - j + W - 1]

The tables are shared by the heads; `scale_position` divides their logits by sqrt(c), too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.conv import pair
from lookupjax.layers.mlp import linear
from lookupjax.layers.position import position_table


def make_divisible(width: float, divisor: int = 8, limit: float = 0.9) -> int:
    """`width` to the nearest multiple of `divisor`, never below `limit` of it (MobileNet's rule)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * width else rounded


def relative_logits(
    q: Float[Array, "*b i j c"],
    rows: Float[Array, "r c"],
    columns: Float[Array, "s c"],
    window: tuple[int, int],
) -> Float[Array, "*b i j y x"]:
    """q . R_h[y - i + (r - 1) / 2] + q . R_w[x - j + (s - 1) / 2] for all keys (y, x), in float32.

    Queries and keys are counted from their own first row and column.
    """
    logits = []
    for table, n, m, equation in (
        (rows, q.shape[-3], window[0], "...ijc,iyc->...ijy"),
        (columns, q.shape[-2], window[1], "...ijc,jxc->...ijx"),
    ):
        offset = np.arange(m)[None] - np.arange(n)[:, None] + (table.shape[0] - 1) // 2
        looked_up = table.astype(q.dtype)[offset]
        logits.append(jnp.einsum(equation, q, looked_up, preferred_element_type=jnp.float32))
    return logits[0][..., :, None] + logits[1][..., None, :]


class RelativeAttention(TokenMixer):
    """Attention over maps of up to `size` tokens, whose offsets the tables hold.

    Args:
      dim_out: width of the values, default `dim`.
      head_dim: width of a head's queries and keys, default that of its values.
      scale_position: whether 1 / sqrt(c) applies to the position logits.
      out_proj: an output projection to `dim` (the ResNet blocks have a convolution behind instead).
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        size: int | tuple[int, int] = 14,
        dim_out: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        scale_position: bool = False,
        out_proj: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dim_out = dim_out or dim
        check_heads(dim_out, num_heads)
        head_dim = head_dim or dim_out // num_heads
        self.num_heads, self.size, self.scale_position = num_heads, pair(size), scale_position
        project = dict(bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.q = linear(dim, num_heads * head_dim, **project)
        self.k = linear(dim, num_heads * head_dim, **project)
        self.v = linear(dim, dim_out, **project)
        self.rows, self.columns = (
            position_table((2 * n - 1, head_dim), rngs, head_dim**-0.5) for n in self.size
        )
        self.out = linear(dim_out, dim, dtype=dtype, rngs=rngs) if out_proj else None

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n m"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n e"]:
        """Raises UserError for maps larger than `size`."""
        self.check_call(context, mask, grid, causal)
        if grid[0] > self.size[0] or grid[1] > self.size[1]:
            raise UserError(f"relative attention was built for maps up to {self.size}, the map is {grid}")
        q, k, v = (
            self.tap(name, split_heads(project(x), self.num_heads))
            for name, project in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        on_grid = q.reshape(*q.shape[:2], *grid, q.shape[-1])
        position = relative_logits(on_grid, self.rows[...], self.columns[...], grid)
        position = position.reshape(*q.shape[:3], -1)
        if self.scale_position:
            position = position / math.sqrt(q.shape[-1])
        scores = self.tap("scores", attention_scores(q, k) + position)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1)).astype(v.dtype)
        mixed = merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))
        return self.tap("output", mixed if self.out is None else self.out(mixed))


MIXER = RelativeAttention
