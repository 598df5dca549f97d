"""LookupViT's lookup path in GPU kernels (Pallas, Triton), see `lookup_path`.

A GPU's on-chip memory does not hold an image's tokens, so these kernels stream them in tiles, and the large
projections stay cuBLAS's. What the kernels save is traffic over the (b, n, d) lookup tokens and over A:

    statistics   K -> mean, 1 / std         all that is kept of the keys' norm
    attend       Q, K, V -> A V             K normalised on the fly, online softmax; its log-sum-exp is kept
    write_back   Q, K, V' -> W^T V'         A again from the log-sum-exp, never in memory
    mlp          z -> z + MLP(LN z)         hidden values never in memory

`attend` and `write_back` have kernels for their gradients as well, which compute A again from the
log-sum-exp; those of the other two are XLA's.

There is no absorbed form here: cuBLAS wants sizes that 8 divides and heads in front, and the copies that this
takes move more than the values and outputs they save (docs/benchmarks.md).

Compiled for H100 ahead of time by the tests and checked in interpret mode; not yet timed on a GPU.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from lookupjax.attention.kernels import (
    Span,
    by_images,
    inside,
    largest,
    load,
    power_of_two,
    products,
    row_statistics,
    span,
    store,
    with_xla_gradient,
)
from lookupjax.attention.lookup_path import (
    Affine,
    GatherParams,
    Memory,
    Options,
    UpdateParams,
    dense,
    gather_xla,
    lookup_mlp,
    update_xla,
)
from lookupjax.layers.mlp import gelu
from lookupjax.layers.norm import layer_norm

COMPRESSED_BYTES = 2**15  # of one head's channels of all compressed tokens: one tile
STATISTICS_TILE, STATISTICS_CHUNK = 32, 128  # tokens, channels at a time
MLP_HIDDEN, MLP_MAX_HIDDEN = 128, 512  # values of the hidden layer in one tile, and in all
MLP_MANY_TOKENS = 2**14  # from which on large tiles keep a GPU's processors busy


class Keys(NamedTuple):
    """Projected keys with what normalises them; all but `k` are None without a norm."""

    k: Float[Array, "b n d"]
    mean: Float[Array, "b n"] | None
    rstd: Float[Array, "b n"] | None
    scale: Float[Array, "d"] | None
    bias: Float[Array, "d"] | None


def keys_of(
    k: Float[Array, "b n d"], mean: Float[Array, "b n"], rstd: Float[Array, "b n"], norm: Affine | None
) -> Keys:
    return Keys(k, *((None,) * 4 if norm is None else (mean, rstd, *norm)))


def normalised(keys: Keys) -> Float[Array, "b n d"]:
    """The keys after their norm."""
    if keys.mean is None:
        return keys.k
    centred = keys.k.astype(jnp.float32) - keys.mean[..., None]
    scale, bias = (x[None, None] for x in (keys.scale, keys.bias))
    return (centred * keys.rstd[..., None] * scale + bias).astype(keys.k.dtype)


def lookup_tile(m: int) -> tuple[int, int]:
    """(lookup tokens in a tile, warps that work on it) beside m compressed tokens: what registers hold."""
    if m <= 64:
        return 64, 4
    return (64 if m <= 128 else 32), 8


class Head(NamedTuple):
    """What a program works on: one head, all compressed tokens, lookup tokens tile by tile."""

    number: Any
    channels: Span
    compressed: Span
    lookups: int
    tile: int
    scale: float  # 1 / sqrt(c)

    def lookup(self, i: Any) -> Span:
        return span(i, self.tile, self.lookups)

    def for_tiles(self, body: Callable, start: Any) -> Any:
        """`start` after `body(lookup tokens, it)` for tile after tile."""
        steps = -(-self.lookups // self.tile)
        return jax.lax.fori_loop(0, steps, lambda i, carry: body(self.lookup(i), carry), start)

    def zeros(self, *more: int) -> Any:
        return jnp.zeros((self.compressed.size, *more), jnp.float32)


def this_head(options: Options, q_ref: Any, k_ref: Any) -> Head:
    (m, dim), n = q_ref.shape, k_ref.shape[0]
    number, c = pl.program_id(1), dim // options.num_heads
    channels, compressed = Span(number * c, power_of_two(c), c), Span(0, power_of_two(m), m)
    return Head(number, channels, compressed, n, lookup_tile(m)[0], c**-0.5)


def load_keys(keys: Any, rows: Span, channels: Span) -> Any:
    """A tile of normalised keys, as `normalised` makes them."""
    k = load(keys.k, rows, channels)
    if keys.mean is None:
        return k
    mean, rstd = load(keys.mean, rows), load(keys.rstd, rows)
    scale, bias = load(keys.scale, channels), load(keys.bias, channels)
    normed = (k.astype(jnp.float32) - mean[:, None]) * rstd[:, None]
    return (normed * scale[None, :] + bias[None, :]).astype(k.dtype)


def tile_scores(head: Head, q: Any, k: Any, lookup: Span) -> Any:
    """Scores (m, n) of a tile, float32, -inf outside."""
    return jnp.where(inside([head.compressed, lookup]), products(q, k, (1, 1)) * head.scale, -jnp.inf)


def call(
    kernel: Callable,
    options: Options,
    grid: tuple[int, ...],
    inputs: Any,
    outputs: Sequence[tuple[tuple[int, ...], Any]],
) -> Sequence[Array]:
    """Runs `kernel(options, inputs, *outputs)` for every image and point of `grid`, the program's other axes.

    The first of the inputs is Q; `outputs` are shapes and dtypes. Arrays of two and more axes are seen
    without their first, the image's; those of one are parameters, seen whole.
    """
    flat, tree = jax.tree.flatten(inputs)

    def body(*refs):
        kernel(options, tree.unflatten(refs[: len(flat)]), *refs[len(flat) :])

    def block(shape: tuple[int, ...]) -> pl.BlockSpec:
        if len(shape) == 1:
            return pl.BlockSpec(shape, lambda *_: (0,))
        return pl.BlockSpec((None, *shape[1:]), lambda i, *_: (i, *(0 for _ in shape[1:])))

    def run(*arrays: Array) -> Sequence[Array]:
        images = len(arrays[0])
        return pl.pallas_call(
            body,
            grid=(images, *grid),
            in_specs=[block(x.shape) for x in arrays],
            out_specs=[block(shape) for shape, _ in outputs],
            out_shape=[jax.ShapeDtypeStruct((images, *shape[1:]), dtype) for shape, dtype in outputs],
            compiler_params=plgpu.CompilerParams(num_warps=lookup_tile(arrays[0].shape[1])[1], num_stages=2),
            interpret=options.interpret,
            name=kernel.__name__,
        )(*arrays)

    return by_images(run, flat, [x.ndim > 1 for x in flat])


# The keys' norm


def statistics_xla(
    options: Options, k: Float[Array, "b n d"]
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    k = k.astype(jnp.float32)
    mean = k.mean(-1)
    return mean, jax.lax.rsqrt(jnp.square(k - mean[..., None]).mean(-1) + options.eps)


def statistics_kernel(options: Options, k_ref: Any, mean_ref: Any, rstd_ref: Any) -> None:
    rows = span(pl.program_id(0), STATISTICS_TILE, k_ref.shape[0])
    mean, rstd = row_statistics(k_ref, rows, STATISTICS_CHUNK, options.eps)
    store(mean_ref, mean, rows)
    store(rstd_ref, rstd, rows)


@with_xla_gradient(statistics_xla)
def statistics(options: Options, k: Float[Array, "b n d"]) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """(mean, 1 / std) of every token's keys: XLA would read them from memory twice."""

    def run(k: Array) -> Sequence[Array]:
        tokens = k.reshape(-1, k.shape[-1])
        found = pl.pallas_call(
            functools.partial(statistics_kernel, options),
            grid=(-(-len(tokens) // STATISTICS_TILE),),
            out_shape=[jax.ShapeDtypeStruct((len(tokens),), jnp.float32)] * 2,
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
            interpret=options.interpret,
            name="statistics_kernel",
        )(tokens)
        return [x.reshape(k.shape[:2]) for x in found]

    mean, rstd = by_images(run, [k], [True])
    return mean, rstd


# Gathering: A V


def attend_kernel(options: Options, inputs: Any, mixed_ref: Any, lse_ref: Any) -> None:
    q_ref, keys, v_ref = inputs
    head = this_head(options, q_ref, v_ref)
    q = load(q_ref, head.compressed, head.channels)

    def body(lookup: Span, carry: Any) -> Any:
        mixed, top, total = carry
        scores = tile_scores(head, q, load_keys(keys, lookup, head.channels), lookup)
        new = jnp.maximum(top, largest(scores, 1, head.compressed))
        e, shrunk = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        v = load(v_ref, lookup, head.channels)
        mixed = mixed * shrunk[:, None] + products(e.astype(v.dtype), v)
        return mixed, new, total * shrunk + jnp.sum(e, axis=1)

    start = head.zeros(head.channels.size), head.zeros() - jnp.inf, head.zeros()
    mixed, top, total = head.for_tiles(body, start)
    total = jnp.where(inside([head.compressed]), total, 1.0)
    store(mixed_ref, mixed / total[:, None], head.compressed, head.channels)
    store(lse_ref, top + jnp.log(total), head.number, head.compressed)


def attend_gradient_kernel(options: Options, inputs: Any, dq_ref: Any, dk_ref: Any, dv_ref: Any) -> None:
    q_ref, keys, v_ref, lse_ref, g_ref, rowsum_ref = inputs
    head = this_head(options, q_ref, v_ref)
    q, g = (load(ref, head.compressed, head.channels).astype(v_ref.dtype) for ref in (q_ref, g_ref))
    lse, rowsum = (load(ref, head.number, head.compressed) for ref in (lse_ref, rowsum_ref))

    def body(lookup: Span, dq: Any) -> Any:
        k, v = load_keys(keys, lookup, head.channels), load(v_ref, lookup, head.channels)
        a = jnp.exp(tile_scores(head, q, k, lookup) - lse[:, None])
        ds = (a * (products(g, v, (1, 1)) - rowsum[:, None]) * head.scale).astype(q.dtype)
        store(dk_ref, products(ds, q, (0, 0)), lookup, head.channels)
        store(dv_ref, products(a.astype(g.dtype), g, (0, 0)), lookup, head.channels)
        return dq + products(ds, k)

    store(dq_ref, head.for_tiles(body, head.zeros(head.channels.size)), head.compressed, head.channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    options: Options, q: Float[Array, "b m d"], keys: Keys, v: Float[Array, "b n d"]
) -> tuple[Float[Array, "b m d"], Float[Array, "b h m"]]:
    """(A V, log-sum-exp of the scores), both float32; the latter is for `write_back` and has no gradient."""
    outputs = [(q.shape, jnp.float32), ((*q.shape[:1], options.num_heads, q.shape[1]), jnp.float32)]
    mixed, lse = call(attend_kernel, options, (options.num_heads,), (q, keys, v), outputs)
    return mixed, lse


def attend_forward(options: Options, *inputs: Any) -> tuple[Any, Any]:
    mixed, lse = attend(options, *inputs)
    return (mixed, lse), (*inputs, mixed, lse)


def attend_backward(options: Options, residuals: Any, cotangents: Any) -> Any:
    (q, keys, v, mixed, lse), (g, _) = residuals, cotangents
    by_head = (*q.shape[:2], options.num_heads, -1)
    both = (mixed * g).reshape(by_head)
    rowsum = both.sum(-1).swapaxes(1, 2)
    inputs, outputs = (q, keys, v, lse, g, rowsum), [(x.shape, x.dtype) for x in (q, v, v)]
    dq, dk, dv = call(attend_gradient_kernel, options, (options.num_heads,), inputs, outputs)
    return dq, *jax.vjp(normalised, keys)[1](dk), dv


attend.defvjp(attend_forward, attend_backward)


# Infusion: W^T V'


def infusion_tile(reuse: str, head: Head, q: Any, k: Any, lse: Any, lookup: Span) -> tuple[Any, Any]:
    """(A, W), both (m, n), of a tile, float32, 0 outside; see `attention.lookup.infusion_weights`."""
    scores = tile_scores(head, q, k, lookup)
    a = jnp.exp(scores - lse[:, None])
    if reuse == "transpose":
        return a, a
    if reuse == "renorm":
        return a, a / (jnp.sum(a, axis=0) + 1e-6)[None, :]
    e = jnp.exp(scores - largest(scores, 0, lookup)[None, :])
    return a, e / jnp.where(inside([lookup]), jnp.sum(e, axis=0), 1.0)[None, :]


def write_back_kernel(options: Options, inputs: Any, mixed_ref: Any) -> None:
    q_ref, keys, lse_ref, v_ref = inputs
    head = this_head(options, q_ref, keys.k)
    lookup = head.lookup(pl.program_id(2))
    q, v = (load(ref, head.compressed, head.channels) for ref in (q_ref, v_ref))
    k, lse = load_keys(keys, lookup, head.channels), load(lse_ref, head.number, head.compressed)
    _, w = infusion_tile(options.reuse, head, q, k, lse, lookup)
    store(mixed_ref, products(w.astype(v.dtype), v, (0, 0)), lookup, head.channels)


def write_back_gradient_kernel(options: Options, inputs: Any, dq_ref: Any, dk_ref: Any, dv_ref: Any) -> None:
    q_ref, keys, lse_ref, v_ref, g_ref = inputs
    head = this_head(options, q_ref, keys.k)
    q, v = (load(ref, head.compressed, head.channels) for ref in (q_ref, v_ref))
    lse = load(lse_ref, head.number, head.compressed)

    def tile(lookup: Span) -> Any:
        """Keys, upstream gradient, A, W and W's gradient times W."""
        k, g = load_keys(keys, lookup, head.channels), load(g_ref, lookup, head.channels)
        a, w = infusion_tile(options.reuse, head, q, k, lse, lookup)
        dw = products(v, g, (1, 1))
        if options.reuse != "transpose":  # W was divided by its sum over the compressed tokens
            dw = dw - jnp.sum(w * dw, axis=0)[None, :]
        return k, g, a, w, w * dw

    rowsum = head.zeros()
    if options.reuse != "softmax":  # A was divided by its sum over the lookup tokens
        rowsum = head.for_tiles(lambda lookup, total: total + jnp.sum(tile(lookup)[-1], axis=1), rowsum)

    def body(lookup: Span, carry: Any) -> Any:
        dq, dv = carry
        k, g, a, w, ds = tile(lookup)
        ds = ((ds - a * rowsum[:, None]) * head.scale).astype(q.dtype)
        store(dk_ref, products(ds, q, (0, 0)), lookup, head.channels)
        return dq + products(ds, k), dv + products(w.astype(g.dtype), g)

    zeros = head.zeros(head.channels.size)
    dq, dv = head.for_tiles(body, (zeros, zeros))
    store(dq_ref, dq, head.compressed, head.channels)
    store(dv_ref, dv, head.compressed, head.channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def write_back(
    options: Options,
    q: Float[Array, "b m d"],
    keys: Keys,
    lse: Float[Array, "b h m"],
    v: Float[Array, "b m d"],
) -> Float[Array, "b n d"]:
    """W^T V', its heads merged; `lse` is that of the scores of `q` and `keys` and gets no gradient."""
    tiles = -(-keys.k.shape[1] // lookup_tile(q.shape[1])[0])
    grid = options.num_heads, tiles
    outputs = [(keys.k.shape, v.dtype)]
    (mixed,) = call(write_back_kernel, options, grid, (q, keys, lse, v), outputs)
    return mixed


def write_back_forward(options: Options, *inputs: Any) -> tuple[Any, Any]:
    return write_back(options, *inputs), inputs


def write_back_backward(options: Options, residuals: Any, g: Any) -> Any:
    q, keys, lse, v = residuals
    outputs = [(x.shape, x.dtype) for x in (q, keys.k, v)]
    grid = (options.num_heads,)
    dq, dk, dv = call(write_back_gradient_kernel, options, grid, (*residuals, g), outputs)
    return dq, *jax.vjp(normalised, keys)[1](dk), jnp.zeros_like(lse), dv


write_back.defvjp(write_back_forward, write_back_backward)


# The lookup MLP


class MlpTiling(NamedTuple):
    """Tokens in a tile, warps that work on it, channels and hidden values at a time: what registers hold."""

    tokens: int
    warps: int
    channels: int
    hidden: int


def mlp_tiling(tokens: int, hidden: int, side: int, dtype: Any) -> MlpTiling:
    """For so many tokens of a device. Weights are read once a tile: large ones pay where there are many."""
    if jnp.dtype(dtype).itemsize == 4:
        return MlpTiling(32, 8, 32, side)
    if tokens < MLP_MANY_TOKENS:
        return MlpTiling(32, 8, 64, side)
    return MlpTiling(128 if hidden <= 384 else 64, 16, 32, side)


def tile_gelu(form: str, x: Any) -> Any:
    """GELU of a float32 tile. Triton has no erf: Abramowitz and Stegun's 7.1.26, absolute error 1.5e-7."""
    if form == "tanh":
        return gelu(form)(x)
    y = jnp.abs(x) * math.sqrt(0.5)
    t = 1.0 / (1.0 + 0.3275911 * y)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * jnp.exp(-y * y)  # of the normal distribution, beyond |x|
    return x * jnp.where(x < 0, tail, 1.0 - tail)


def mlp_kernel(options: Options, tiling: MlpTiling, inputs: Any, out_ref: Any) -> None:
    z_ref, scale_ref, bias_ref, fc1_ref, b1_ref, fc2_ref, b2_ref = inputs
    (tokens, dim), hidden, dtype = z_ref.shape, fc1_ref.shape[1], z_ref.dtype
    rows, chunks = span(pl.program_id(0), tiling.tokens, tokens), -(-dim // tiling.channels)
    hiddens = [span(i, tiling.hidden, hidden) for i in range(-(-hidden // tiling.hidden))]

    def chunk(i: Any) -> tuple[Any, Span]:
        columns = span(i, tiling.channels, dim)
        return load(z_ref, rows, columns).astype(jnp.float32), columns

    mean, rstd = row_statistics(z_ref, rows, tiling.channels, options.eps)

    def first(i: Any, sums: Any) -> Any:
        z, columns = chunk(i)
        y = (z - mean[:, None]) * rstd[:, None] * load(scale_ref, columns)[None, :]
        y = (y + load(bias_ref, columns)[None, :]).astype(dtype)
        return tuple(s + products(y, load(fc1_ref, columns, h)) for s, h in zip(sums, hiddens, strict=True))

    zeros = tuple(jnp.zeros((tiling.tokens, tiling.hidden), jnp.float32) for _ in hiddens)
    sums = jax.lax.fori_loop(0, chunks, first, zeros)
    inner = [
        tile_gelu(options.gelu, s + load(b1_ref, h).astype(jnp.float32)[None, :]).astype(dtype)
        for s, h in zip(sums, hiddens, strict=True)
    ]

    def second(i: Any, _: Any) -> Any:
        z, columns = chunk(i)
        z = z + load(b2_ref, columns).astype(jnp.float32)[None, :]
        for x, h in zip(inner, hiddens, strict=True):
            z = z + products(x, load(fc2_ref, h, columns))
        store(out_ref, z, rows, columns)

    jax.lax.fori_loop(0, chunks, second, None)


@with_xla_gradient(lookup_mlp)
def mlp(
    options: Options, z: Float[Array, "b n d"], norm: Affine, fc1: Affine, fc2: Affine
) -> Float[Array, "b n d"]:
    """`lookup_mlp` as one kernel, or in XLA where that has no tiling."""
    hidden = fc1[0].shape[1]
    side = power_of_two(hidden) if hidden <= MLP_HIDDEN else math.gcd(hidden, MLP_HIDDEN)
    if hidden > MLP_MAX_HIDDEN or side < 16:
        return lookup_mlp(options, z, norm, fc1, fc2)

    def run(z: Array, *params: Array) -> Array:
        tokens = z.reshape(-1, z.shape[-1])
        tiling = mlp_tiling(len(tokens), hidden, side, z.dtype)
        return pl.pallas_call(
            lambda *refs: mlp_kernel(options, tiling, refs[:-1], refs[-1]),
            grid=(-(-len(tokens) // tiling.tokens),),
            out_shape=jax.ShapeDtypeStruct(tokens.shape, z.dtype),
            compiler_params=plgpu.CompilerParams(num_warps=tiling.warps, num_stages=2),
            interpret=options.interpret,
            name="mlp_kernel",
        )(tokens, *params).reshape(z.shape)

    return by_images(run, (z, *norm, *fc1, *fc2), [True] + [False] * 6)


# The path


def kernels_serve(options: Options, q: Float[Array, "b m d"]) -> bool:
    """Whether the compressed tokens fit on the chip."""
    _, m, dim = q.shape
    values = power_of_two(m) * power_of_two(dim // options.num_heads)
    return values * q.dtype.itemsize <= COMPRESSED_BYTES


def gather_gpu(
    options: Options, z: Float[Array, "b n d"], q: Float[Array, "b m d"], params: GatherParams
) -> tuple[Float[Array, "b m d"], Memory]:
    """`gather_xla` with `statistics` and `attend`."""
    if not kernels_serve(options, q):
        return gather_xla(options, z, q, params)
    z = z if params.norm is None else layer_norm(z, *params.norm, options.eps).astype(z.dtype)
    k = dense(z, params.k)
    mean, rstd = statistics(options, k)
    mixed, lse = attend(options, q, keys_of(k, mean, rstd, params.k_norm), dense(z, params.v))
    return mixed.astype(z.dtype), Memory(k, mean, rstd, lse)


def update_gpu(
    options: Options,
    z: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    memory: Memory,
    v: Float[Array, "b m d"],
    params: UpdateParams,
) -> Float[Array, "b n d"]:
    """`update_xla` with `write_back` and `mlp`."""
    if not kernels_serve(options, q):
        return update_xla(options, z, q, memory, v, params)
    keys = keys_of(memory.k, memory.mean, memory.rstd, params.k_norm)
    z = z + dense(write_back(options, q, keys, memory.lse, v), params.out)
    return mlp(options, z, params.norm, params.fc1, params.fc2)
