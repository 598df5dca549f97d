"""LookupViT's lookup path as two functions of arrays: what `lookup_tpu` and `lookup_gpu` have kernels for.

    gather   (z, q)              -> A V and a memory of the keys
    update   (z, q, memory, v')  -> z + W^T V' W_o, then + MLP(LN z)

with the compressed tokens' refinement between the two. Here they are in XLA's operations, for every platform
without kernels and for the gradients of kernels that have none of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lookupjax.attention.lookup import (
    gather,
    gather_absorbed,
    infuse,
    infuse_absorbed,
    infusion_weights,
)
from lookupjax.attention.softmax import attention_scores, merge_heads, split_heads
from lookupjax.layers.mlp import gelu
from lookupjax.layers.norm import layer_norm

Affine = tuple[Float[Array, "..."], Float[Array, "_"]]  # (kernel or scale, bias)


class Options(NamedTuple):
    """What is fixed when the path is traced."""

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
    """Of `attention.lookup.Infuse`, the keys' norm and the block's lookup MLP, as in `GatherParams`."""

    k_norm: Affine | None
    out: Affine
    norm: Affine
    fc1: Affine
    fc2: Affine


class Memory(NamedTuple):
    """What the update needs of the gathering: the keys, normalised already.

    Where `lookup_gpu`'s kernels run they are not: `mean` and `rstd` are the norm's statistics, `lse` the
    softmax's log-sum-exp.
    """

    k: Float[Array, "b n d"]
    mean: Float[Array, "b n"]
    rstd: Float[Array, "b n"]
    lse: Float[Array, "b h m"]


def normalised_keys(options: Options, k: Float[Array, "b n d"], m: int) -> Memory:
    """A memory of which only the keys are ever read."""
    b, n, _ = k.shape
    unused = jnp.zeros((b, n), jnp.float32)
    return Memory(k, unused, unused, jnp.zeros((b, options.num_heads, m), jnp.float32))


def dense(x: Float[Array, "... d"], affine: Affine) -> Float[Array, "... e"]:
    y = jnp.dot(x, affine[0])
    return y + jax.lax.broadcast_in_dim(affine[1].astype(y.dtype), y.shape, (y.ndim - 1,))


def lookup_mlp(
    options: Options, z: Float[Array, "... d"], norm: Affine, fc1: Affine, fc2: Affine
) -> Float[Array, "... d"]:
    """z + fc2(GELU(fc1(LN z)))."""
    y = layer_norm(z, *norm, options.eps).astype(z.dtype)
    return z + dense(gelu(options.gelu)(dense(y, fc1)), fc2)


def gather_xla(
    options: Options, z: Float[Array, "b n d"], q: Float[Array, "b m d"], params: GatherParams
) -> tuple[Float[Array, "b m d"], Memory]:
    """(A V, memory); q is normalised already and not yet divided by sqrt(c)."""
    dtype, heads = z.dtype, options.num_heads
    z = z if params.norm is None else layer_norm(z, *params.norm, options.eps).astype(dtype)
    k = dense(z, params.k)
    k = k if params.k_norm is None else layer_norm(k, *params.k_norm, options.eps).astype(dtype)
    weights = jax.nn.softmax(attention_scores(split_heads(q, heads), split_heads(k, heads)), axis=-1)
    memory = normalised_keys(options, k, q.shape[1])
    if options.absorbed:
        return gather_absorbed(weights, z, *params.v), memory
    return merge_heads(gather(weights, split_heads(dense(z, params.v), heads))), memory


def update_xla(
    options: Options,
    z: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    memory: Memory,
    v: Float[Array, "b m d"],
    params: UpdateParams,
) -> Float[Array, "b n d"]:
    """z + W^T V' W_o, then + MLP(LN z); `v` are the values V' of the refined compressed tokens."""
    heads = options.num_heads
    scores = attention_scores(split_heads(q, heads), split_heads(memory.k, heads))
    weights = infusion_weights(scores, jax.nn.softmax(scores, axis=-1), options.reuse)
    if options.absorbed:
        z = z + infuse_absorbed(weights, split_heads(v, heads), *params.out)
    else:
        z = z + dense(merge_heads(infuse(weights, split_heads(v, heads))), params.out)
    return lookup_mlp(options, z, params.norm, params.fc1, params.fc2)
