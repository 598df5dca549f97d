"""Agent Attention (ECCV 2024, arXiv 2312.08874): two softmax attentions through a few agent tokens.

    q, k, v (b, n, d)      agents A = pooled q, on a g x g grid (b, a, d)
    aggregation  V_A = softmax_n(A k^T / sqrt(c) + bias over tokens) v         (a, c) per head
    broadcast    out = softmax_a(q A^T / sqrt(c) + bias over agents) V_A       (n, c)
    out += depthwise 3x3 convolution of v on the token grid;  projection

The cost is linear in n. Reference: LeapLabTHU/Agent-Attention; the class token (`prefix`) is DeiT's, keys
and values of a reduced map (`sr_ratio`) are PVT's. Grids other than `window`, also non-square ones, resize
the bias tables bilinearly.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.pool import adaptive_avg_pool
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import dropout

COARSE = (7, 7)  # grid of the tables that depend on both coordinates


def resize_tables(table: Float[Array, "h a *old"], size: tuple[int, ...]) -> Float[Array, "h a *new"]:
    """Bilinear, without antialias also where it shrinks, as in the reference."""
    return resize_grid(table[..., None], size, antialias=False)[..., 0]


class AgentBias(nnx.Module):
    """Additive bias of every agent and token, (heads, agents, prefix + h w), as a sum of small tables.

    A coarse table over both coordinates, one over rows, one over columns; one of its own for every token
    before the grid.
    """

    def __init__(self, num_heads: int, agents: int, window: tuple[int, int], prefix: int, rngs: nnx.Rngs):
        head = (num_heads, agents)
        self.coarse = position_table((*head, *COARSE), rngs)
        self.rows = position_table((*head, window[0]), rngs)
        self.columns = position_table((*head, window[1]), rngs)
        self.prefix = position_table((*head, prefix), rngs) if prefix else None

    def __call__(self, grid: tuple[int, int]) -> Float[Array, "h a n"]:
        coarse = resize_tables(self.coarse[...], grid)
        rows = resize_tables(self.rows[...], grid[:1])
        columns = resize_tables(self.columns[...], grid[1:])
        bias = coarse + (rows[..., :, None] + columns[..., None, :])
        bias = bias.reshape(*bias.shape[:2], -1)
        return bias if self.prefix is None else jnp.concatenate([self.prefix[...], bias], axis=-1)


class AgentAttention(TokenMixer):
    """Agent attention over a token grid, with or without tokens before it.

    The taps "agent_weights" (b, heads, agents, tokens) and "broadcast_weights" (b, heads, tokens, agents)
    are its two maps, "weights" is their product; the convolution's part does not pass through it.

    Args:
      agents: number of agent tokens, a square.
      window: token grid that the bias tables are made for.
      prefix: tokens before the grid (class token): no agents come from them, and no convolution for them.
      sr_ratio: keys and values come from a map this many times smaller (a convolution and a LayerNorm).
      dropout: of both attention maps.
      proj_dropout: after the output projection.
    """

    needs_grid = supports_prefix = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        agents: int = 49,
        window: tuple[int, int] = (14, 14),
        prefix: int = 0,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        side = math.isqrt(agents)
        if side < 1 or side * side != agents:
            raise UserError(f"agents={agents} is no square; they lie on a square grid: 9, 16, 49, ...")
        if prefix and sr_ratio > 1:
            raise UserError("sr_ratio needs a grid without a class token or other tokens before it")
        self.num_heads, self.side, self.prefix, self.sr_ratio = num_heads, side, prefix, sr_ratio
        self.dropout, self.proj_dropout = dropout, proj_dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.local = conv(dim, dim, 3, padding=1, groups=dim, dtype=dtype, rngs=rngs)
        if sr_ratio > 1:
            self.reduce = conv(dim, dim, sr_ratio, stride=sr_ratio, dtype=dtype, rngs=rngs)
            self.reduce_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        sources = (window[0] // sr_ratio, window[1] // sr_ratio)
        self.source_bias = AgentBias(num_heads, agents, sources, prefix, rngs)
        self.query_bias = AgentBias(num_heads, agents, window, prefix, rngs)

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
        """Mixes x, `prefix` tokens and then those of `grid`, row-major."""
        self.check_call(context, mask, grid, causal)
        if len(grid) != 2 or x.shape[1] != self.prefix + math.prod(grid):
            raise UserError(
                f"AgentAttention works on {self.prefix} tokens and a (height, width) grid, "
                f"not on {x.shape[1]} tokens with grid={grid}"
            )
        b, _, d = x.shape
        source, source_grid = x, tuple(grid)
        if self.sr_ratio > 1:
            reduced = self.reduce(x.reshape(b, *grid, d))
            source, source_grid = self.reduce_norm(flatten_grid(reduced)), tuple(reduced.shape[1:3])
        queries, values = self.q(x), self.v(source)
        plane = queries[:, self.prefix :].reshape(b, *grid, d)
        pooled = adaptive_avg_pool(plane, (self.side, self.side))
        q = self.tap("q", split_heads(queries, self.num_heads))
        k = self.tap("k", split_heads(self.k(source), self.num_heads))
        v = self.tap("v", split_heads(values, self.num_heads))
        agents = self.tap("agents", split_heads(flatten_grid(pooled), self.num_heads))

        scores = attention_scores(agents, k) + self.source_bias(source_grid)[None]
        scores = self.tap("agent_scores", scores)
        gathered = self.tap("agent_weights", jax.nn.softmax(scores, axis=-1))
        gathered = dropout(gathered, self.dropout, rngs).astype(v.dtype)
        scores = attention_scores(q, agents) + self.query_bias(grid).swapaxes(-1, -2)[None]
        scores = self.tap("broadcast_scores", scores)
        spread = self.tap("broadcast_weights", jax.nn.softmax(scores, axis=-1))
        spread = dropout(spread, self.dropout, rngs).astype(v.dtype)
        if self.tapped:
            weights = self.tap("weights", jnp.einsum("bhna,bham->bhnm", spread, gathered))
            mixed = jnp.einsum("bhnm,bhmc->bhnc", weights, v)
        else:
            mixed = jnp.einsum("bhna,bhac->bhnc", spread, jnp.einsum("bham,bhmc->bhac", gathered, v))
        mixed = merge_heads(mixed)

        plane = merge_heads(v)[:, self.prefix :].reshape(b, *source_grid, d)
        local = flatten_grid(self.local(resize_grid(plane, grid, antialias=False)))
        mixed = mixed + jnp.pad(local, ((0, 0), (self.prefix, 0), (0, 0)))
        return self.tap("output", dropout(self.out(mixed), self.proj_dropout, rngs))


MIXER = AgentAttention
