"""TransNeXt's attentions (arXiv 2311.17132) with the gated heads of MoH (arXiv 2410.11842).

Cosine scores scaled by a learned temperature and by the log of the number of visible keys, so that they
keep their entropy at other sizes; the bias between a query and a (pooled) key is an MLP of their log-spaced
offset. `AggregatedAttention`: 3x3 neighbours and a pooled map under one softmax; `CosineAttention`: all
tokens. Every token weights the heads, see `attention.moh`. Reference: SkyworkAI/MoH, folder MoH-ViT.
"""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.dense import dense_map, token_numbers
from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.moh import BALANCE, HeadRouter
from lookupjax.attention.softmax import check_heads, merge_heads, split_heads
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.pool import adaptive_avg_pool, adaptive_matrix
from lookupjax.layers.position import flatten_grid, position_table
from lookupjax.layers.regularise import dropout

TEMPERATURE = math.log(math.exp(1 / 0.24) - 1)  # softplus of it is 1 / 0.24
Grid = tuple[int, int]


def unit(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
    """x / max(|x|, 1e-12) over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)), 1e-12)


def neighbours(x: Float[Array, "b h n c"], grid: Grid, window: int) -> Float[Array, "b h n k c"]:
    """The window around every token of a grid, row-major; zeros beyond the edge."""
    rows, columns = grid
    x, pad = x.reshape(*x.shape[:2], *grid, x.shape[-1]), (window // 2, window // 2)
    x = jnp.pad(x, ((0, 0), (0, 0), pad, pad, (0, 0)))
    shifted = [x[:, :, i : i + rows, j : j + columns] for i in range(window) for j in range(window)]
    x = jnp.stack(shifted, axis=4)
    return x.reshape(*x.shape[:2], rows * columns, window**2, x.shape[-1])


@lru_cache
def visible(grid: Grid, window: int) -> np.ndarray:
    """(n, window^2), True where a neighbour lies on the grid."""
    reach = np.arange(window) - window // 2
    rows, columns = (np.arange(n)[:, None] + reach[None] for n in grid)
    in_row, in_column = (rows >= 0) & (rows < grid[0]), (columns >= 0) & (columns < grid[1])
    return (in_row[:, None, :, None] & in_column[None, :, None, :]).reshape(-1, window**2)


@lru_cache
def offsets(grid: Grid, pooled: Grid, trained: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(table (u, 2), index (n, m)): the distinct offsets (row, column) of a query from a pooled key.

    In units of an eighth of the training grid, log-spaced: sign(o) log2(|o| + 1) / 3.
    """
    distinct, index = [], []
    for n, m, t in zip(grid, pooled, trained):
        keys = adaptive_matrix(n, m).astype(np.float64) @ np.arange(n)
        offset = (np.arange(n)[:, None] - keys[None]) / max(t - 1, 1) * 8
        values, places = np.unique(np.round(offset, 9), return_inverse=True)
        distinct.append(np.sign(values) * np.log2(np.abs(values) + 1) / 3)
        index.append(places.reshape(n, m))
    table = np.stack(np.meshgrid(*distinct, indexing="ij"), axis=-1).reshape(-1, 2)
    pairs = index[0][:, None, :, None] * len(distinct[1]) + index[1][None, :, None, :]
    return table.astype(np.float32), pairs.reshape(grid[0] * grid[1], -1)


class PositionBias(nnx.Module):
    """Continuous position bias: an MLP from the offset of query and key to one number per head."""

    def __init__(self, num_heads: int, trained: Grid, *, rngs: nnx.Rngs):
        self.fc1, self.fc2 = linear(2, 512, rngs=rngs), linear(512, num_heads, rngs=rngs)
        self.trained = trained

    def __call__(self, grid: Grid, pooled: Grid) -> Float[Array, "h n m"]:
        table, index = offsets(grid, pooled, self.trained)
        return self.fc2(jax.nn.relu(self.fc1(jnp.asarray(table)))).T[:, index]


class GatedAttention(TokenMixer):
    """What both attentions share: cosine queries with temperature, position bias, and the heads' gates."""

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        shared: int,
        routed: int,
        trained: Grid,
        qkv_bias: bool,
        dropout: float,
        proj_dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        common = dict(dtype=dtype, rngs=rngs)
        self.num_heads, self.has_aux_loss = num_heads, routed > 0
        self.dropout, self.proj_dropout, self.dtype = dropout, proj_dropout, dtype
        self.router = HeadRouter(dim, num_heads, shared, routed, rngs=rngs)
        self.q = linear(dim, dim, bias=qkv_bias, **common)
        self.k = linear(dim, dim, bias=qkv_bias, **common)
        self.v = linear(dim, dim, bias=qkv_bias, **common)
        self.out = linear(dim, dim, **common)
        self.temperature = nnx.Param(jnp.full((num_heads,), TEMPERATURE))
        self.query_embedding = position_table((num_heads, dim // num_heads), rngs)
        self.position = PositionBias(num_heads, trained, rngs=rngs)

    def heads(self, name: str, x: Float[Array, "b n d"]) -> Float[Array, "b h n c"]:
        return self.tap(name, split_heads(x, self.num_heads))

    def scaled(self, q: Float[Array, "b h n c"], keys: Float[Array, "n"]) -> Float[Array, "b h n c"]:
        """(q + query embedding) * temperature * log(number of keys that the query sees)."""
        temperature = jax.nn.softplus(self.temperature[...])[None, :, None, None]
        scale = temperature * jnp.log(keys)[None, None, :, None]
        return (q + self.query_embedding[...][None, :, None]) * scale

    def gate(
        self, x: Float[Array, "b n d"], heads: Float[Array, "b h n c"], rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        """(output, weighted balance loss)."""
        gates, balance = self.router(x)
        gates = self.tap("gates", gates).swapaxes(1, 2)[..., None]
        heads = self.tap("heads", heads * gates.astype(heads.dtype))
        update = dropout(self.out(merge_heads(heads)), self.proj_dropout, rngs)
        return self.tap("output", update), BALANCE * balance

    def __call__(self, x: Float[Array, "b n d"], context: None = None, **call) -> Float[Array, "b n d"]:
        """The output alone; `call` as of `mix`, which training needs."""
        self.check_aux(call.get("rngs"))
        return self.mix(x, context, **call)[0]


class CosineAttention(GatedAttention):
    """All tokens attend to all tokens (stage 4)."""

    def mix(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        self.check_call(context, mask, grid, causal)
        q, k, v = (self.heads(name, layer(x)) for name, layer in zip("qkv", (self.q, self.k, self.v)))
        n = x.shape[1]
        scores = jnp.einsum("bhmc,bhnc->bhmn", self.scaled(unit(q), jnp.full((n,), float(n))), unit(k))
        scores = self.tap("scores", scores + self.position(grid, grid)[None])
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        return self.gate(x, jnp.einsum("bhmn,bhnc->bhmc", weights, v), rngs)


class AggregatedAttention(GatedAttention):
    """Each token attends to its neighbours and to a pooled map under one softmax (stages 1-3).

    Its taps are "local_weights" (b, heads, n, window^2), their "map" (b, heads, n, n), and "pooled_weights"
    (b, heads, n, pooled).
    """

    def __init__(self, dim: int, num_heads: int, *, sr_ratio: int, window: int, dtype, rngs, **options):
        super().__init__(dim, num_heads, dtype=dtype, rngs=rngs, **options)
        width, k = dim // num_heads, window**2
        self.sr_ratio, self.window = sr_ratio, window
        self.reduce = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.reduce_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.local_bias = position_table((num_heads, k), rngs, 0.0004)
        self.learned_tokens = position_table((num_heads, width, k), rngs)
        self.learned_bias = nnx.Param(jnp.zeros((num_heads, k)))

    def local_map(self, near: Float[Array, "b h n k"], grid: Grid) -> Float[Array, "b h n n"]:
        numbers = flatten_grid(token_numbers(grid))  # (1, n, 1)
        keys = neighbours(numbers[:, None], grid, self.window)[:, 0, :, :, 0]
        return dense_map(near.swapaxes(1, 2)[:, :, :, None], numbers, keys, (numbers.shape[1],) * 2)

    def mix(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        self.check_call(context, mask, grid, causal)
        pooled_grid = tuple(max(n // self.sr_ratio, 1) for n in grid)
        reduced = gelu("exact")(self.reduce(x)).reshape(x.shape[0], *grid, x.shape[-1])
        pooled = self.reduce_norm(flatten_grid(adaptive_avg_pool(reduced, pooled_grid)))

        q, k, v = (self.heads(name, layer(x)) for name, layer in zip("qkv", (self.q, self.k, self.v)))
        q, k, near_v = unit(q), neighbours(unit(k), grid, self.window), neighbours(v, grid, self.window)
        far_k, far_v = (split_heads(layer(pooled), self.num_heads) for layer in (self.k, self.v))
        seen = jnp.asarray(visible(grid, self.window))
        count = seen.sum(-1).astype(jnp.float32) + pooled.shape[1]
        scaled = self.scaled(q, count)

        near = jnp.einsum("bhnc,bhnkc->bhnk", scaled, k) + self.local_bias[...][None, :, None]
        near = jnp.where(seen[None, None], near, jnp.finfo(near.dtype).min)
        far = jnp.einsum("bhnc,bhmc->bhnm", scaled, unit(far_k)) + self.position(grid, pooled_grid)[None]
        weights = jax.nn.softmax(jnp.concatenate([near, far], axis=-1), axis=-1)
        weights = dropout(weights, self.dropout, rngs)
        near = self.tap("local_weights", weights[..., : self.window**2])
        if self.tapped:
            self.tap("map", self.local_map(near, grid))
        far = self.tap("pooled_weights", weights[..., self.window**2 :])
        learned = jnp.einsum("bhnc,hck->bhnk", q, self.learned_tokens[...])  # outside of the softmax
        near = near + learned + self.learned_bias[...][None, :, None]
        mixed = jnp.einsum("bhnk,bhnkc->bhnc", near.astype(v.dtype), near_v)
        mixed = mixed + jnp.einsum("bhnm,bhmc->bhnc", far.astype(v.dtype), far_v)
        return self.gate(x, mixed, rngs)
