"""LookupViT's lookup path in two TPU kernels (Pallas, Mosaic), see `lookup_path`.

On an accelerator the lookup tokens' path is bound by memory traffic, not by arithmetic. XLA makes more than
twenty passes over the (b, n, d) tokens in every block; these kernels make five:

    gather   read z       LN, K and its norm, softmax of Q K^T, A V            write K, A V
    update   read z, K    W from Q K^T again, W^T V' W_o, +; LN, MLP, +        write z

One grid step is one image, whose tokens, scores and weights fit in the chip's vector memory (128 MiB), so
nothing is streamed and no log-sum-exp is kept: the softmax of the second kernel is taken again, which is
cheaper than moving A (h m n values) while M is above D / h, and moves nothing but K. Where it costs fewer
products (`attention.lookup.absorb`), value and output projections are folded into the products with A.

A vector register holds 128 channels: heads narrower than that are worked on in groups of 128 channels, with
the others' queries set to zero, which is exact and costs the matrix unit nothing.

The backward pass computes the forward again, in XLA, from the kernels' inputs. The kernels are compiled for
TPU v5e ahead of time by the tests and checked in interpret mode; they have not yet been timed on a TPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lookupjax.attention.kernels import by_images, products, with_xla_gradient
from lookupjax.attention.lookup_path import (
    GatherParams,
    Memory,
    Options,
    UpdateParams,
    gather_xla,
    normalised_keys,
    update_xla,
)
from lookupjax.layers.mlp import gelu

LANES, SUBLANES = 128, 16  # of a vector register, for 16-bit values
VMEM_LIMIT = 100 * 2**20  # of 128 MiB; XLA keeps the rest


def normed(x: Any, affine: Any, eps: float) -> Any:
    """LayerNorm of a float32 tile; scale and bias are rows (1, d)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return centred * scale * affine[0][...] + affine[1][...]


def lane_groups(dim: int, num_heads: int) -> int:
    """Heads that are worked on together: the fewest whose channels fill whole registers, else all."""
    c = dim // num_heads
    fits = (g for g in range(1, num_heads) if num_heads % g == 0 and g * c % LANES == 0)
    return next(fits, num_heads)


def heads_of(dim: int, num_heads: int) -> Iterator[tuple[int, slice, Any]]:
    """(head, the channels of its group, (1, width) mask that is 1 on the head's own)."""
    c, together = dim // num_heads, lane_groups(dim, num_heads)
    width = c * together
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    for head in range(num_heads):
        group, place = divmod(head, together)
        own = (lane >= place * c) & (lane < (place + 1) * c)
        yield head, slice(group * width, (group + 1) * width), own.astype(jnp.float32)


def padded(m: int) -> int:
    return -(-m // SUBLANES) * SUBLANES


def head_scores(q_ref: Any, k_ref: Any, channels: slice, own: Any, c: int) -> Any:
    """Scores (m, n) of one head, float32."""
    k = k_ref[0, :, channels]
    q = (q_ref[0, :, channels].astype(jnp.float32) * own).astype(k.dtype)
    return products(q, k, (1, 1)) * (1.0 / math.sqrt(c))


def softmax(scores: Any, axis: int = 1) -> Any:
    e = jnp.exp(scores - jnp.max(scores, axis=axis, keepdims=True))
    return e / jnp.sum(e, axis=axis, keepdims=True)


def tile_gelu(form: str, x: Any) -> Any:
    """GELU of a float32 tile; JAX's own exact form needs erfc, which Mosaic does not have."""
    return gelu(form)(x) if form == "tanh" else 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def gather_kernel(options: Options, z_ref, q_ref, params: Any, mixed_ref, k_ref, a_ref) -> None:
    m, dim = q_ref.shape[1:]
    heads, dtype, rows = options.num_heads, z_ref.dtype, padded(m)
    z = z_ref[0]
    if params.norm is not None:
        z = normed(z.astype(jnp.float32), params.norm, options.eps).astype(dtype)
    k = products(z, params.k[0][...]) + params.k[1][...]
    k_ref[0] = (k if params.k_norm is None else normed(k, params.k_norm, options.eps)).astype(dtype)
    if not options.absorbed:
        v = (products(z, params.v[0][...]) + params.v[1][...]).astype(dtype)
    mixed: dict[int, Any] = {}
    for head, channels, own in heads_of(dim, heads):
        a = softmax(head_scores(q_ref, k_ref, channels, own, dim // heads)).astype(dtype)
        if options.absorbed:
            a_ref[head * rows : head * rows + m, :] = a
        else:
            mixed[channels.start] = mixed.get(channels.start, 0.0) + products(a, v[:, channels]) * own
            mixed_ref[0, :, channels] = mixed[channels.start].astype(dtype)
    if not options.absorbed:
        return
    az = products(a_ref[...], z).astype(dtype)  # rows between the heads are never read
    for head, channels, own in heads_of(dim, heads):
        part = products(az[head * rows : head * rows + m], params.v[0][:, channels]) * own
        mixed[channels.start] = mixed.get(channels.start, params.v[1][:, channels]) + part
        mixed_ref[0, :, channels] = mixed[channels.start].astype(dtype)


def update_kernel(options: Options, z_ref, q_ref, k_ref, v_ref, params: Any, out_ref, a_ref, p_ref) -> None:
    m, dim = q_ref.shape[1:]
    heads, dtype, rows = options.num_heads, z_ref.dtype, padded(m)
    mixed: dict[int, Any] = {}
    for head, channels, own in heads_of(dim, heads):
        scores = head_scores(q_ref, k_ref, channels, own, dim // heads)
        w = softmax(scores, 0 if options.reuse == "softmax" else 1)
        if options.reuse == "renorm":
            w = w / (jnp.sum(w, axis=0, keepdims=True) + 1e-6)
        v = (v_ref[0, :, channels].astype(jnp.float32) * own).astype(dtype)
        if options.absorbed:
            a_ref[head * rows : (head + 1) * rows, :] = jnp.zeros((rows, w.shape[1]), dtype)
            p_ref[head * rows : (head + 1) * rows, :] = jnp.zeros((rows, dim), dtype)
            a_ref[head * rows : head * rows + m, :] = w.astype(dtype)
            p_ref[head * rows : head * rows + m, :] = products(v, params.out[0][channels, :]).astype(dtype)
        else:
            mixed[channels.start] = mixed.get(channels.start, 0.0) + products(w.astype(dtype), v, (0, 0))
            p_ref[:, channels] = mixed[channels.start].astype(dtype)
    if options.absorbed:
        update = products(a_ref[...], p_ref[...], (0, 0))
    else:
        update = products(p_ref[...], params.out[0][...])
    z = z_ref[0].astype(jnp.float32) + update + params.out[1][...]
    y = normed(z, params.norm, options.eps).astype(dtype)
    hidden = tile_gelu(options.gelu, products(y, params.fc1[0][...]) + params.fc1[1][...]).astype(dtype)
    out_ref[0] = (z + products(hidden, params.fc2[0][...]) + params.fc2[1][...]).astype(dtype)


def call(
    kernel: Callable,
    options: Options,
    tokens: tuple[Array, ...],
    params: Any,
    outputs: list[tuple[int, ...]],
    scratch: list[tuple[int, int]],
    flops: int,
    exponentials: int,
) -> Sequence[Array]:
    """Runs `kernel` on one image after another, its parameters staying in vector memory.

    `outputs` are shapes of one image's, `flops` and `exponentials` are of one image too. The cost that XLA is
    told is the kernel's traffic: tokens once in and once out, parameters once.
    """
    dtype = tokens[0].dtype
    rows = jax.tree.map(lambda p: p[None] if p.ndim == 1 else p, params)
    flat, tree = jax.tree.flatten(rows)
    counts = len(tokens), len(tokens) + len(flat)

    def body(*refs):
        kernel(options, *refs[: counts[0]], tree.unflatten(refs[counts[0] : counts[1]]), *refs[counts[1] :])

    def one_image(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape[1:]), lambda i: (i, 0, 0))

    def run(*arrays: Array) -> Sequence[Array]:
        images = len(arrays[0])
        written = images * sum(math.prod(shape) for shape in outputs) * dtype.itemsize
        return pl.pallas_call(
            body,
            grid=(images,),
            in_specs=[one_image(x.shape) for x in tokens]
            + [pl.BlockSpec(p.shape, lambda i: (0, 0)) for p in flat],
            out_specs=[one_image((images, *shape)) for shape in outputs],
            out_shape=[jax.ShapeDtypeStruct((images, *shape), dtype) for shape in outputs],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT
            ),
            cost_estimate=pl.CostEstimate(
                flops=images * flops,
                bytes_accessed=written + sum(x.size * x.dtype.itemsize for x in arrays),
                transcendentals=images * exponentials,
            ),
            interpret=options.interpret,
            name=kernel.__name__,
        )(*arrays)

    of_images = [True] * len(tokens) + [False] * len(flat)
    return by_images(run, (*tokens, *flat), of_images)


@with_xla_gradient(gather_xla)
def gather_tpu(
    options: Options, z: Float[Array, "b n d"], q: Float[Array, "b m d"], params: GatherParams
) -> tuple[Float[Array, "b m d"], Memory]:
    """`gather_xla` as one kernel."""
    (n, dim), m, heads = z.shape[1:], q.shape[1], options.num_heads
    values = m * dim * (heads * n + dim) if options.absorbed else n * dim * (dim + m)
    flops = 2 * (n * dim * (dim + m) + values)
    scratch = [(heads * padded(m), n)] if options.absorbed else [(SUBLANES, LANES)]
    outputs = [q.shape[1:], z.shape[1:]]
    mixed, k = call(gather_kernel, options, (z, q), params, outputs, scratch, flops, heads * m * n)
    return mixed, normalised_keys(options, k, m)


@with_xla_gradient(update_xla)
def update_tpu(
    options: Options,
    z: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    memory: Memory,
    v: Float[Array, "b m d"],
    params: UpdateParams,
) -> Float[Array, "b n d"]:
    """`update_xla` as one kernel."""
    (n, dim), m, heads = z.shape[1:], q.shape[1], options.num_heads
    hidden = params.fc1[0].shape[1]
    values = m * dim * (heads * n + dim) if options.absorbed else n * dim * (dim + m)
    flops = 2 * (n * m * dim + values + 2 * n * dim * hidden)
    rows = heads * padded(m)
    scratch = [(rows, n), (rows, dim)] if options.absorbed else [(SUBLANES, LANES), (n, dim)]
    exponentials = n * (heads * m + hidden)
    tokens, params = (z, q, memory.k, v), params._replace(k_norm=None)  # the keys are normalised
    (z,) = call(update_kernel, options, tokens, params, [z.shape[1:]], scratch, flops, exponentials)
    return z
