"""Bi-level routing attention (BiFormer, arXiv 2303.08810): regions choose regions, then tokens attend.

    the map is cut into S x S regions; q_r, k_r = means of q and k over each region
    every region r takes the `topk` regions with the largest q_r k_r^T             (one choice for all heads)
    out = softmax(s q K^T) V over the tokens of those regions,  s = (width of q)^-1/2, not of a head
    out += depthwise convolution of the map of v;  projection

The choice carries no gradient unless `soft_routing` multiplies keys and values by softmax(q_r k_r^T).

A map that S does not divide: `pad="before"` adds zeros before the projections, which then take part as
biases everywhere (the released models' operator, its `auto_pad`); `pad="after"` cuts regions of
floor(n / S) tokens, perhaps more than S on a side, averages over the tokens that exist and lets zero keys
take part in the softmax (the refactored operator). On maps that S divides they are the same.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lookupjax.attention.dense import dense_map, token_numbers
from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.mlp import linear
from lookupjax.layers.pool import adaptive_avg_pool, avg_pool, max_pool
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.windows import from_windows, pad_to_multiple, to_windows

PADS = ("before", "after")
KV_POOLS = ("none", "adaptive_avg", "adaptive_max", "avg", "max")
LOCALS = ("none", "input", "values")


def route(
    q: Float[Array, "b r c"], k: Float[Array, "b r c"], topk: int, scale: float
) -> tuple[Int[Array, "b r t"], Float[Array, "b r t"]]:
    """(the `topk` best regions of every region, best first; softmax of their scores), in float32."""
    scores = scale * jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32)
    best, chosen = jax.lax.top_k(scores, topk)
    return chosen, jax.nn.softmax(best, axis=-1)


def gather_regions(x: Float[Array, "b r n c"], chosen: Int[Array, "b r t"]) -> Float[Array, "b r m c"]:
    """The tokens of every region's chosen regions, one after the other: m = t n."""
    taken = jnp.take_along_axis(x[:, None], chosen[..., None, None], axis=2)
    return taken.reshape(*chosen.shape[:2], -1, x.shape[-1])


def adaptive_max_pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b p p c"]:
    """Largest value of each of side x side bins, cut as in `adaptive_avg_pool`."""
    for axis in (1, 2):
        n = x.shape[axis]
        bins = [(i * n // side, -(-(i + 1) * n // side)) for i in range(side)]
        parts = [jax.lax.slice_in_dim(x, a, b, axis=axis).max(axis, keepdims=True) for a, b in bins]
        x = jnp.concatenate(parts, axis=axis)
    return x


class BiLevelRoutingAttention(TokenMixer):
    """Attention to the tokens of the `topk` best of `regions` x `regions` regions.

    Args:
      qk_dim: width of queries and keys, default `dim`.
      local_kernel: side of the depthwise convolution on v, 0 for none.
      pad: see the file's head.
      kv_pool: pooling of the keys and values inside each region, of `KV_POOLS`; the means that route are
        not pooled. `kv_size` is the side of the result ("adaptive_...") or of the pooling window.
      soft_routing: multiply the chosen keys and values by the routing weights.
      routing_gradient: let gradients through the region means (only with `soft_routing`).
      routing_proj: one more linear map of both region means (only with `routing_gradient`).
      out_proj: the output projection.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        regions: int = 7,
        topk: int = 4,
        qk_dim: int | None = None,
        qkv_bias: bool = True,
        local_kernel: int = 5,
        pad: str = "before",
        kv_pool: str = "none",
        kv_size: int = 4,
        soft_routing: bool = False,
        routing_gradient: bool = False,
        routing_proj: bool = False,
        out_proj: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        qk_dim = qk_dim or dim
        check_heads(dim, num_heads)
        check_heads(qk_dim, num_heads)
        for name, value, known in (("pad", pad, PADS), ("kv_pool", kv_pool, KV_POOLS)):
            if value not in known:
                raise UserError(f"{name}={value!r} of attention 'bra' is unknown; choose one of {known}")
        if (routing_gradient and not soft_routing) or (routing_proj and not routing_gradient):
            raise UserError("routing_gradient needs soft_routing, and routing_proj needs routing_gradient")
        self.num_heads, self.regions, self.topk, self.qk_dim, self.pad = num_heads, regions, topk, qk_dim, pad
        self.kv_pool, self.kv_size = kv_pool, kv_size
        self.soft_routing, self.routing_gradient = soft_routing, routing_gradient
        common = dict(dtype=dtype, rngs=rngs)
        self.q = linear(dim, qk_dim, bias=qkv_bias, **common)
        self.k = linear(dim, qk_dim, bias=qkv_bias, **common)
        self.v = linear(dim, dim, bias=qkv_bias, **common)
        self.route = linear(qk_dim, qk_dim, rngs=rngs) if routing_proj else None
        side = dict(padding=local_kernel // 2, groups=dim)
        self.local = conv(dim, dim, local_kernel, **side, **common) if local_kernel else None
        self.out = linear(dim, dim, **common) if out_proj else None

    def means(
        self, x: Float[Array, "b r n c"], size: tuple[int, ...], window: tuple[int, int]
    ) -> Float[Array, "b r c"]:
        """Float32 means of the regions, over the tokens inside a map of `size` when padded after."""
        x = x.astype(jnp.float32)
        if self.pad == "before":
            means = x.mean(2)
        else:
            rows, columns = (
                np.minimum(w, n - np.arange(0, n, w)).astype(np.float32) for n, w in zip(size, window)
            )
            means = x.sum(2) / np.outer(rows, columns).reshape(1, -1, 1)
        means = means if self.routing_gradient else jax.lax.stop_gradient(means)
        return means if self.route is None else self.route(means)

    def pooled(self, x: Float[Array, "b r n c"], window: tuple[int, int]) -> Float[Array, "b r m c"]:
        """Keys or values of each region after `kv_pool`."""
        if self.kv_pool == "none":
            return x
        y = x.reshape(-1, *window, x.shape[-1])
        if self.kv_pool.startswith("adaptive"):
            n = self.kv_size
            y = adaptive_avg_pool(y, (n, n)) if self.kv_pool == "adaptive_avg" else adaptive_max_pool(y, n)
        else:
            y = (avg_pool if self.kv_pool == "avg" else max_pool)(y, self.kv_size)
        return y.reshape(*x.shape[:2], -1, x.shape[-1])

    def whole_map(
        self,
        weights: Float[Array, "w h n m"],
        chosen: Int[Array, "b r t"],
        grid: tuple[int, ...],
        window: tuple[int, int],
        padded: tuple[int, ...],
    ) -> Float[Array, "b h q p"]:
        """From every token of `grid` to every token or, with `kv_pool`, every cell of the pooled map."""
        ends = ((0, 0), *((0, n - m) for n, m in zip(padded, grid)), (0, 0))
        queries = to_windows(jnp.pad(token_numbers(grid), ends), window)
        keys, cells = queries, tuple(grid)
        if self.kv_pool != "none":
            adaptive = self.kv_pool.startswith("adaptive")
            side = tuple(self.kv_size if adaptive else n // self.kv_size for n in window)
            cells = tuple(n // w * s for n, w, s in zip(padded, window, side))
            keys = to_windows(token_numbers(cells), side)
        keys = gather_regions(jnp.broadcast_to(keys, (chosen.shape[0], *keys.shape[1:])), chosen)
        return dense_map(weights, queries[..., 0], keys[..., 0], (math.prod(grid), math.prod(cells)))

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
        """The taps "routes" (b, regions, topk) and "route_weights" show the choice."""
        self.check_call(context, mask, grid, causal)
        b, _, d = x.shape
        x = x.reshape(b, *grid, d)
        if self.pad == "before":
            x, _ = pad_to_multiple(x, (self.regions, self.regions))
        size = x.shape[1:3]
        window = tuple(max(n // self.regions, 1) for n in size)
        maps = [project(x) for project in (self.q, self.k, self.v)]
        local = None if self.local is None else self.local(maps[2])
        maps = [pad_to_multiple(y, window)[0] for y in maps]
        padded = maps[0].shape[1:3]
        q, k, v = (to_windows(y, window) for y in maps)
        scale = 1.0 / math.sqrt(self.qk_dim)
        topk = min(self.topk, q.shape[1])
        chosen, weights = route(self.means(q, size, window), self.means(k, size, window), topk, scale)
        chosen = self.tap("routes", chosen)
        weights = self.tap("route_weights", weights)
        k, v = (gather_regions(self.pooled(y, window), chosen) for y in (k, v))
        if self.soft_routing:
            soft = jnp.repeat(weights, k.shape[2] // topk, axis=2)[..., None].astype(k.dtype)
            k, v = soft * k, soft * v
        q, k, v = (
            self.tap(name, split_heads(y.reshape(-1, *y.shape[2:]), self.num_heads))
            for name, y in (("q", q), ("k", k), ("v", v))
        )
        scores = scale * jnp.einsum("bhmc,bhnc->bhmn", q, k, preferred_element_type=jnp.float32)
        scores = self.tap("scores", scores)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1)).astype(v.dtype)
        if self.tapped:
            self.tap("map", self.whole_map(weights, chosen, grid, window, padded))
        mixed = merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))
        mixed = from_windows(mixed.reshape(b, -1, *mixed.shape[1:]), window, padded)
        mixed = mixed[:, : grid[0], : grid[1]]
        if local is not None:
            mixed = mixed + local[:, : grid[0], : grid[1]]
        mixed = flatten_grid(mixed)
        return self.tap("output", mixed if self.out is None else self.out(mixed))


class EnhancedAttention(TokenMixer):
    """Attention between all tokens plus a depthwise convolution of its input or of its values (or "none")."""

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        local: str = "input",
        local_kernel: int = 5,
        qkv_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        if local not in LOCALS:
            raise UserError(f"local={local!r} is unknown; choose one of {LOCALS}")
        self.num_heads, self.where = num_heads, local
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        side = dict(padding=local_kernel // 2, groups=dim, dtype=dtype, rngs=rngs)
        enhance = local != "none" and local_kernel > 0
        self.local = conv(dim, dim, local_kernel, **side) if enhance else None
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
        values = self.v(x)
        q, k, v = (
            self.tap(name, split_heads(y, self.num_heads))
            for name, y in (("q", self.q(x)), ("k", self.k(x)), ("v", values))
        )
        scores = self.tap("scores", attention_scores(q, k))
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1)).astype(v.dtype)
        mixed = merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))
        if self.local is not None:
            source = x if self.where == "input" else values
            mixed = mixed + flatten_grid(self.local(source.reshape(x.shape[0], *grid, -1)))
        return self.tap("output", self.out(mixed))


MIXER = BiLevelRoutingAttention
