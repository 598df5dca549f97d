"""LookupViT's lookup path in two TPU kernels (Pallas, Mosaic): `cross_impl="fused"`.

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

On other platforms, and in the backward pass, the same formulas run in XLA (`gather_reference`,
`update_reference`); the backward pass computes the forward again from the kernels' inputs. The kernels are
compiled for TPU v5e ahead of time by the tests and checked in interpret mode; they have not yet been timed
on a TPU. There is no GPU kernel.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lookupjax.attention.lookup import (
    Gather,
    Infuse,
    absorb,
    gather,
    gather_absorbed,
    infuse,
    infuse_absorbed,
    infusion_weights,
)
from lookupjax.attention.softmax import attention_scores, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.mlp import Mlp, gelu
from lookupjax.layers.norm import LayerNorm, layer_norm

LANES, SUBLANES = 128, 16  # of a vector register, for 16-bit values
VMEM_LIMIT = 100 * 2**20  # of 128 MiB; XLA keeps the rest

Affine = tuple[Float[Array, "..."], Float[Array, "_"]]  # (kernel or scale, bias)


class Options(NamedTuple):
    """What is fixed when the kernels are traced."""

    num_heads: int
    absorbed: bool
    reuse: str = "transpose"
    gelu: str = "tanh"
    eps: float = 1e-6
    interpret: bool = False


class GatherParams(NamedTuple):
    """Of `attention.lookup.Gather`; kernels in the compute dtype, norms float32 or None."""

    norm: Affine | None
    k: Affine
    k_norm: Affine | None
    v: Affine


class UpdateParams(NamedTuple):
    """Of `attention.lookup.Infuse` and the block's lookup MLP, as in `GatherParams`."""

    out: Affine
    norm: Affine
    fc1: Affine
    fc2: Affine


def dense(x: Float[Array, "... d"], affine: Affine) -> Float[Array, "... e"]:
    y = jnp.dot(x, affine[0])
    return y + jax.lax.broadcast_in_dim(affine[1].astype(y.dtype), y.shape, (y.ndim - 1,))


def gather_reference(
    options: Options, z: Float[Array, "b n d"], q: Float[Array, "b m d"], params: GatherParams
) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
    """(A V, K): K is normalised; q is normalised already and not yet divided by sqrt(c)."""
    dtype, heads = z.dtype, options.num_heads
    z = z if params.norm is None else layer_norm(z, *params.norm, options.eps).astype(dtype)
    k = dense(z, params.k)
    k = k if params.k_norm is None else layer_norm(k, *params.k_norm, options.eps).astype(dtype)
    weights = jax.nn.softmax(attention_scores(split_heads(q, heads), split_heads(k, heads)), axis=-1)
    if options.absorbed:
        return gather_absorbed(weights, z, *params.v), k
    return merge_heads(gather(weights, split_heads(dense(z, params.v), heads))), k


def update_reference(
    options: Options,
    z: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    k: Float[Array, "b n d"],
    v: Float[Array, "b m d"],
    params: UpdateParams,
) -> Float[Array, "b n d"]:
    """z + W^T V' W_o, then + MLP(LN z); `v` are the values V' of the refined compressed tokens."""
    heads = options.num_heads
    scores = attention_scores(split_heads(q, heads), split_heads(k, heads))
    weights = infusion_weights(scores, jax.nn.softmax(scores, axis=-1), options.reuse)
    if options.absorbed:
        z = z + infuse_absorbed(weights, split_heads(v, heads), *params.out)
    else:
        z = z + dense(merge_heads(infuse(weights, split_heads(v, heads))), params.out)
    y = layer_norm(z, *params.norm, options.eps).astype(z.dtype)
    return z + dense(gelu(options.gelu)(dense(y, params.fc1)), params.fc2)


def products(a: Any, b: Any, contract: tuple[int, int] = (1, 0)) -> Any:
    """A matrix product of two tiles over axes `contract`, accumulated in float32."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


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
) -> tuple[Array, ...]:
    """Runs `kernel` on one image after another, its parameters staying in vector memory.

    The cost that XLA is told is the kernel's traffic: tokens once in and once out, parameters once.
    """
    dtype = tokens[0].dtype
    rows = jax.tree.map(lambda p: p[None] if p.ndim == 1 else p, params)
    flat, tree = jax.tree.flatten(rows)
    counts = len(tokens), len(tokens) + len(flat)

    def body(*refs):
        kernel(options, *refs[: counts[0]], tree.unflatten(refs[counts[0] : counts[1]]), *refs[counts[1] :])

    def one_image(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape[1:]), lambda i: (i, 0, 0))

    moved = (*tokens, *flat)
    written = sum(math.prod(shape) for shape in outputs) * dtype.itemsize
    run = pl.pallas_call(
        body,
        grid=(tokens[0].shape[0],),
        in_specs=[one_image(x.shape) for x in tokens]
        + [pl.BlockSpec(p.shape, lambda i: (0, 0)) for p in flat],
        out_specs=[one_image(shape) for shape in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape in outputs],
        scratch_shapes=[pltpu.VMEM(shape, dtype) for shape in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            bytes_accessed=written + sum(x.size * x.dtype.itemsize for x in moved),
            transcendentals=exponentials,
        ),
        interpret=options.interpret,
        name=kernel.__name__,
    )
    return tuple(run(*tokens, *flat))


def gather_pallas(
    options: Options, z: Float[Array, "b n d"], q: Float[Array, "b m d"], params: GatherParams
) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
    """`gather_reference` as one kernel."""
    (b, n, dim), m, heads = z.shape, q.shape[1], options.num_heads
    values = m * dim * (heads * n + dim) if options.absorbed else n * dim * (dim + m)
    flops = 2 * b * (n * dim * (dim + m) + values)
    scratch = [(heads * padded(m), n)] if options.absorbed else [(SUBLANES, LANES)]
    mixed, k = call(
        gather_kernel, options, (z, q), params, [q.shape, z.shape], scratch, flops, b * heads * m * n
    )
    return mixed, k


def update_pallas(
    options: Options,
    z: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    k: Float[Array, "b n d"],
    v: Float[Array, "b m d"],
    params: UpdateParams,
) -> Float[Array, "b n d"]:
    """`update_reference` as one kernel."""
    (b, n, dim), m, heads = z.shape, q.shape[1], options.num_heads
    hidden = params.fc1[0].shape[1]
    values = m * dim * (heads * n + dim) if options.absorbed else n * dim * (dim + m)
    flops = 2 * b * (n * m * dim + values + 2 * n * dim * hidden)
    rows = heads * padded(m)
    scratch = [(rows, n), (rows, dim)] if options.absorbed else [(SUBLANES, LANES), (n, dim)]
    exponentials = b * n * (heads * m + hidden)
    (z,) = call(update_kernel, options, (z, q, k, v), params, [z.shape], scratch, flops, exponentials)
    return z


def with_reference_gradient(reference: Callable, kernel: Callable) -> Callable:
    """f(options, *arrays): `kernel` on TPUs, `reference` elsewhere, and the reference's gradient."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def fused(options: Options, *arrays: Any) -> Any:
        if options.interpret:
            return kernel(options, *arrays)
        on_tpu, elsewhere = (functools.partial(f, options) for f in (kernel, reference))
        return jax.lax.platform_dependent(*arrays, tpu=on_tpu, default=elsewhere)

    def forward(options: Options, *arrays: Any) -> tuple[Any, Any]:
        return fused(options, *arrays), arrays

    def backward(options: Options, arrays: Any, cotangents: Any) -> Any:
        return jax.vjp(functools.partial(reference, options), *arrays)[1](cotangents)

    fused.defvjp(forward, backward)
    return fused


gather_fused = with_reference_gradient(gather_reference, gather_pallas)
update_fused = with_reference_gradient(update_reference, update_pallas)


def check_options(qk_norm: str, out_proj: bool) -> None:
    """Raises UserError for options of LookupViT that there are no kernels for."""
    for name, value, wrong in (("qk_norm", qk_norm, "head"), ("out_proj", out_proj, False)):
        if value == wrong:
            raise UserError(f"cross_impl='fused' has no kernel for {name}={value!r}; use cross_impl='auto'")


def affine(module: nnx.Linear | LayerNorm, dtype: Any) -> Affine:
    """A layer's arrays as the kernels take them."""
    if isinstance(module, LayerNorm):
        return module.scale[...], module.bias[...]
    return module.kernel[...].astype(dtype), module.bias[...]


def gather_tokens(
    gather: Gather, z_p: Float[Array, "b m d"], z_l: Float[Array, "b n d"]
) -> tuple[Float[Array, "b m d"], Float[Array, "b m d"], Float[Array, "b n d"]]:
    """(update of z_p, Q, K) of `gather`, by the first kernel."""
    (m, dim), n, dtype, heads = z_p.shape[1:], z_l.shape[1], z_l.dtype, gather.num_heads
    q = gather.q(z_p if gather.norm_p is None else gather.norm_p(z_p))
    q = q if gather.q_norm.norm is None else gather.q_norm.norm(q)
    norms = (None if norm is None else affine(norm, dtype) for norm in (gather.norm_l, gather.k_norm.norm))
    norm, k_norm = norms
    params = GatherParams(norm, affine(gather.k, dtype), k_norm, affine(gather.v, dtype))
    options = Options(heads, absorb(gather.impl, n, m, dim, heads), eps=gather.eps)
    mixed, k = gather_fused(options, z_l, q, params)
    return gather.out(mixed), q, k


def update_tokens(
    infuse: Infuse,
    norm: LayerNorm,
    mlp: Mlp,
    z_p: Float[Array, "b m d"],
    z_l: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    k: Float[Array, "b n d"],
) -> Float[Array, "b n d"]:
    """z_l after infusion and lookup MLP, by the second kernel; `q` and `k` come from `gather_tokens`."""
    (m, dim), n, dtype, heads = z_p.shape[1:], z_l.shape[1], z_l.dtype, infuse.num_heads
    v = infuse.v(z_p if infuse.norm_p is None else infuse.norm_p(z_p))
    params = UpdateParams(*(affine(layer, dtype) for layer in (infuse.out, norm, mlp.fc1, mlp.fc2)))
    absorbed = absorb(infuse.impl, n, m, dim, heads)
    return update_fused(Options(heads, absorbed, infuse.reuse, mlp.gelu, norm.eps), z_l, q, k, v, params)
