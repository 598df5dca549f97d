"""Blocked local attention with halos (HaloNet, arXiv 2103.12731, section 3.2).

    queries: non-overlapping blocks of b x b;  keys, values: the block and h pixels around it, W = b + 2 h
    logits = q k^T / sqrt(c) + q . R_h[y - i + W - 1] + q . R_w[x - j + W - 1]

(i, j) counts queries from the block's corner, (y, x) keys from the window's corner: as in timm the halo is
not subtracted, so rows 0 .. 2 h - 1 of the tables are never read. The zeros around the map are keys like
any other (timm) unless `mask_padding` (lucidrains/halonet-pytorch, with its mask the right way round).

With `stride=2` a block keeps its window but only the queries at even pixels, counted in their own units
(timm); blocks of odd size, or `average`, mix at full resolution and average 2 x 2 outputs.
Maps that the block does not divide are extended at the bottom and right and the extension is masked: ours.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.dense import dense_map, token_numbers
from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.relative import make_divisible, relative_logits
from lookupjax.attention.softmax import check_heads
from lookupjax.layers.mlp import linear
from lookupjax.layers.pool import avg_pool
from lookupjax.layers.position import flatten_grid, position_table
from lookupjax.layers.windows import from_windows, pad_to_multiple, to_windows


def halo_windows(x: Float[Array, "b h w c"], block: int, halo: int) -> Float[Array, "b k m c"]:
    """Windows of side block + 2 halo around every block, row-major, zeros outside the map."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (halo, halo), (halo, halo), (0, 0)))
    rows, columns = (np.arange(0, n, block)[:, None] + np.arange(block + 2 * halo) for n in (h, w))
    x = x[:, rows][:, :, :, columns].transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows.shape[0] * columns.shape[0], -1, c)


def visible_keys(
    size: tuple[int, int], padded: tuple[int, int], block: int, halo: int, mask_padding: bool
) -> np.ndarray | None:
    """(k, m) booleans, False for keys to hide; None when none is hidden.

    `size` of the map is hidden beyond its end where `padded` is longer; with `mask_padding` all around.
    """
    inside = []
    for n, m in zip(size, padded):
        at = np.arange(-halo, m + halo)
        hidden = (at >= n) if m > n else np.zeros(at.shape, bool)
        inside.append((at >= 0) & (at < n) if mask_padding else ~hidden)
    if all(axis.all() for axis in inside):
        return None
    both = inside[0][:, None] & inside[1][None]
    rows, columns = (np.arange(0, m, block)[:, None] + np.arange(block + 2 * halo) for m in padded)
    windows = both[rows][:, :, columns].transpose(0, 2, 1, 3)
    return windows.reshape(rows.shape[0] * columns.shape[0], -1)


class HaloAttention(TokenMixer):
    """Blocked local attention on a token grid or, by `over_map`, on a map.

    Args:
      block, halo: b and h in tokens.
      dim_out: width of the values, default `dim`.
      head_dim: width of a head's queries and keys; default `qk_ratio * dim_out`, to a multiple of 8, over
        the number of heads.
      scale_position: whether 1 / sqrt(c) applies to the position logits, too.
      out_proj: an output projection to `dim` (the ResNet blocks have a convolution behind instead).
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        block: int = 8,
        halo: int = 3,
        stride: int = 1,
        average: bool = False,
        dim_out: int | None = None,
        head_dim: int | None = None,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        scale_position: bool = False,
        mask_padding: bool = False,
        out_proj: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dim_out = dim_out or dim
        check_heads(dim_out, num_heads)
        head_dim = head_dim or make_divisible(dim_out * qk_ratio) // num_heads
        self.num_heads, self.block, self.halo, self.stride = num_heads, block, halo, stride
        self.average = stride > 1 and (average or block % stride > 0)
        self.scale_position, self.mask_padding = scale_position, mask_padding
        project = dict(bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.q = linear(dim, num_heads * head_dim, **project)
        self.k = linear(dim, num_heads * head_dim, **project)
        self.v = linear(dim, dim_out, **project)
        table = (2 * (block + 2 * halo) - 1, head_dim)
        self.rows = position_table(table, rngs, head_dim**-0.5)
        self.columns = position_table(table, rngs, head_dim**-0.5)
        self.out = linear(dim_out, dim, dtype=dtype, rngs=rngs) if out_proj else None

    def split(self, x: Float[Array, "b k n d"]) -> Float[Array, "b k h n c"]:
        return x.reshape(*x.shape[:3], self.num_heads, -1).swapaxes(2, 3)

    def over_map(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 e"]:
        """Attention over the map x; axes shrink to ceil(n / stride)."""
        size = x.shape[1:3]
        x, _ = pad_to_multiple(x, (self.block, self.block))
        step = 1 if self.average else self.stride
        side, window = self.block // step, self.block + 2 * self.halo
        queries = self.q(x[:, ::step, ::step])
        q = self.tap("q", self.split(to_windows(queries, (side, side))))
        k = self.tap("k", self.split(halo_windows(self.k(x), self.block, self.halo)))
        v = self.tap("v", self.split(halo_windows(self.v(x), self.block, self.halo)))
        scale = 1.0 / math.sqrt(q.shape[-1])
        on_grid = q.reshape(*q.shape[:3], side, side, q.shape[-1])
        position = relative_logits(on_grid, self.rows[...], self.columns[...], (window, window))
        position = position.reshape(*q.shape[:4], window * window)
        scores = scale * jnp.einsum("bkhnc,bkhmc->bkhnm", q, k, preferred_element_type=jnp.float32)
        scores = scores + (scale * position if self.scale_position else position)
        visible = visible_keys(size, x.shape[1:3], self.block, self.halo, self.mask_padding)
        if visible is not None:
            scores = jnp.where(visible[None, :, None, None], scores, jnp.finfo(scores.dtype).min)
        scores = self.tap("scores", scores)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1)).astype(v.dtype)
        if self.tapped:
            self.tap("map", self.whole_map(weights, size, step))
        mixed = jnp.einsum("bkhnm,bkhmc->bknhc", weights, v)
        mixed = from_windows(mixed.reshape(*mixed.shape[:3], -1), (side, side), queries.shape[1:3])
        mixed = mixed[:, : -(-size[0] // step), : -(-size[1] // step)]
        if self.average:
            mixed = avg_pool(mixed, self.stride, ceil_mode=True)
        return self.tap("output", mixed if self.out is None else self.out(mixed))

    def whole_map(
        self, weights: Float[Array, "b k h n m"], size: tuple[int, int], step: int
    ) -> Float[Array, "b h q p"]:
        """From every position that asks, each `step`-th of the map, to every position of the map."""
        side, asking = self.block // step, tuple(-(-n // step) for n in size)
        queries, _ = pad_to_multiple(token_numbers(asking), (side, side))
        keys, _ = pad_to_multiple(token_numbers(size), (self.block, self.block))
        places = to_windows(queries, (side, side)), halo_windows(keys, self.block, self.halo)
        whole = math.prod(asking), math.prod(size)
        return dense_map(weights, places[0][..., 0], places[1][..., 0], whole)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n m"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n2 e"]:
        self.check_call(context, mask, grid, causal)
        return flatten_grid(self.over_map(x.reshape(x.shape[0], *grid, x.shape[-1])))


MIXER = HaloAttention
