"""Long-short distance attention with a dynamic position bias (CrossFormer, arXiv 2108.00154).

Softmax attention within groups of G x G tokens of a map:

    short distance (SDA): neighbours;                  positions  r G + g
    long distance (LDA): every I-th row and column;    positions  r G I + g I + i,  one group for each i

    logits = q k^T / sqrt(c) + bias[yq - yk, xq - xk],  bias = DPB(offset), an MLP of the offset in the group

The map is padded with zeros before the projections, and padded keys are hidden. A map no longer than G in
one direction is one group (or a row of square ones), whatever the kind.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lookupjax.attention.dense import token_numbers
from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import dropout
from lookupjax.layers.windows import pad_to_multiple

KINDS = ("short", "long")
SMALL_MAPS = ("min", "max")
PADS = ("end", "centre")


def to_groups(x: Float[Array, "b h w c"], group: int, interval: int) -> Float[Array, "b k n c"]:
    """(b, h, w, c) -> (b, groups, group^2, c); group * interval must divide h and w. interval 1 is SDA."""
    b, h, w, c = x.shape
    g, i = group, interval
    x = x.reshape(b, h // (g * i), g, i, w // (g * i), g, i, c).transpose(0, 1, 4, 3, 6, 2, 5, 7)
    return x.reshape(b, h * w // g**2, g**2, c)


def from_groups(
    x: Float[Array, "b k n c"], group: int, interval: int, size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """The inverse of `to_groups` for a map of `size`."""
    (b, _, _, c), (h, w), g, i = x.shape, size, group, interval
    x = x.reshape(b, h // (g * i), w // (g * i), i, i, g, g, c).transpose(0, 1, 5, 3, 2, 6, 4, 7)
    return x.reshape(b, h, w, c)


class DynamicPositionBias(nnx.Module):
    """Linear(2 -> P), then three times LN, ReLU, Linear (P -> P -> P -> heads), of integer offsets; float32.

    `residual` adds the input of the first two of the three. P is `width`.
    """

    def __init__(self, width: int, num_heads: int, *, residual: bool = False, rngs: nnx.Rngs):
        self.project = linear(2, width, rngs=rngs)
        self.norms = nnx.List(LayerNorm(width, eps=1e-5, rngs=rngs) for _ in range(3))
        self.layers = nnx.List(linear(width, n, rngs=rngs) for n in (width, width, num_heads))
        self.residual = residual

    def __call__(self, offsets: Float[Array, "p 2"]) -> Float[Array, "p h"]:
        x = self.project(offsets)
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers)):
            y = layer(jax.nn.relu(norm(x)))
            x = x + y if self.residual and i < 2 else y
        return x

    def of_group(self, group: int) -> Float[Array, "h n n"]:
        """The bias of every pair (query, key) in a group."""
        offsets, index = pair_offsets(group)
        return self(jnp.asarray(offsets))[index].transpose(2, 0, 1)


def pair_offsets(group: int) -> tuple[Float[np.ndarray, "p 2"], Int[np.ndarray, "n n"]]:
    """((2 G - 1)^2 offsets (dy, dx), dy slow;  for every pair (query, key) which of them is theirs)."""
    line = np.arange(1 - group, group)
    offsets = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    at = np.stack(np.meshgrid(np.arange(group), np.arange(group), indexing="ij"), -1).reshape(-1, 2)
    apart = at[:, None] - at[None] + group - 1
    return offsets, apart[..., 0] * (2 * group - 1) + apart[..., 1]


class LongShortAttention(TokenMixer):
    """SDA or LDA on a token grid of any size.

    Args:
      kind: "short" or "long".
      group, interval: G and I in tokens; `interval=None` takes the longer side over G, rounded up.
      small_map: group of a map with a side of at most G: its shorter side ("min", the classifiers) or its
        longer one ("max", the dense backbones).
      pad: zeros at the "end" or on both sides ("centre").
      mask_padding: False lets the padded keys, which are the biases, take part.
      position_bias: without, the tokens of a group are a set.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kind: str = "short",
        group: int = 7,
        interval: int | None = None,
        small_map: str = "min",
        pad: str = "end",
        mask_padding: bool = True,
        position_bias: bool = True,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        for name, value, known in (
            ("kind", kind, KINDS),
            ("small_map", small_map, SMALL_MAPS),
            ("pad", pad, PADS),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} of attention 'lsda' is unknown; choose one of {known}")
        self.num_heads, self.kind, self.group, self.interval = num_heads, kind, group, interval
        self.small_map, self.pad, self.mask_padding, self.dropout = small_map, pad, mask_padding, dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        width = max(dim // 16, 1)
        self.bias = DynamicPositionBias(width, num_heads, rngs=rngs) if position_bias else None
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)

    def grouping(self, grid: tuple[int, ...]) -> tuple[int, int]:
        """(G, I) on a map of size `grid`; I = 1 means neighbours."""
        if min(grid) <= self.group:
            return (min(grid) if self.small_map == "min" else max(grid)), 1
        if self.kind == "short":
            return self.group, 1
        return self.group, self.interval or math.ceil(max(grid) / self.group)

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
        b, _, d = x.shape
        group, interval = self.grouping(grid)
        step = (group * interval,) * 2
        padded, (top, left) = pad_to_multiple(x.reshape(b, *grid, d), step, centre=self.pad == "centre")
        tokens = to_groups(padded, group, interval)
        groups = tokens.shape[1]
        if self.tapped:
            numbers, _ = pad_to_multiple(token_numbers(grid), step, centre=self.pad == "centre")
            self.tap("places", to_groups(numbers, group, interval)[..., 0])
        tokens = tokens.reshape(b * groups, group**2, d)
        q, k, v = (
            self.tap(name, split_heads(project(tokens), self.num_heads))
            for name, project in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        scores = attention_scores(q, k)
        if self.bias is not None:
            scores = scores + self.bias.of_group(group)[None]
        if self.mask_padding and padded.shape[1:3] != tuple(grid):
            ends = [(at, m - n - at) for at, m, n in zip((top, left), padded.shape[1:3], grid)]
            inside = jnp.pad(jnp.ones((1, *grid, 1)), ((0, 0), *ends, (0, 0)))
            visible = to_groups(inside, group, interval)[0, :, None, None, :, 0] > 0
            visible = jnp.tile(visible, (b, 1, 1, 1))
            scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        scores = self.tap("scores", scores)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        mixed = self.out(merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v)))
        mixed = self.tap("output", mixed).reshape(b, groups, group**2, d)
        full = from_groups(mixed, group, interval, padded.shape[1:3])
        return flatten_grid(full[:, top : top + grid[0], left : left + grid[1]])


MIXER = LongShortAttention
