"""`cross_impl="fused"`: LookupViT's lookup path by the kernels of the platform it is compiled for.

`lookup_tpu` has them for TPUs, `lookup_gpu` for Nvidia GPUs; elsewhere it is `lookup_path`'s formulas in XLA.
"""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.attention.lookup import Gather, Infuse, absorb
from lookupjax.attention.lookup_gpu import gather_gpu, update_gpu
from lookupjax.attention.lookup_path import (
    Affine,
    GatherParams,
    Memory,
    Options,
    UpdateParams,
    gather_xla,
    update_xla,
)
from lookupjax.attention.lookup_tpu import gather_tpu, update_tpu
from lookupjax.errors import UserError
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm


def check_options(qk_norm: str, out_proj: bool) -> None:
    """Raises UserError for options of LookupViT that there are no kernels for.

    There is no `jax.vmap` over them either, on no platform: they are split by images (`by_images`).
    """
    for name, value, wrong in (("qk_norm", qk_norm, "head"), ("out_proj", out_proj, False)):
        if value == wrong:
            raise UserError(f"cross_impl='fused' has no kernel for {name}={value!r}; use cross_impl='auto'")


def affine(module: nnx.Linear | LayerNorm | None, dtype: Any) -> Affine | None:
    """A layer's arrays as the kernels take them."""
    if module is None:
        return None
    if isinstance(module, LayerNorm):
        return module.scale[...], module.bias[...]
    return module.kernel[...].astype(dtype), module.bias[...]


def options_of(part: Gather | Infuse, z_p: Array, z_l: Array, **more: Any) -> tuple[Options, Options]:
    """For XLA and for a TPU, whose kernels copy nothing and so absorb at other sizes."""
    n, (m, dim), heads = z_l.shape[1], z_p.shape[1:], part.num_heads
    copies = z_l.dtype.itemsize == 2
    xla, tpu = (absorb("auto", n, m, dim, heads, copies=some) for some in (copies, False))
    return Options(heads, xla, **more), Options(heads, tpu, **more)


def gather_tokens(
    gather: Gather, z_p: Float[Array, "b m d"], z_l: Float[Array, "b n d"]
) -> tuple[Float[Array, "b m d"], Float[Array, "b m d"], Memory]:
    """(update of z_p, Q, memory of the keys) of `gather`."""
    q = gather.q(z_p if gather.norm_p is None else gather.norm_p(z_p))
    q = q if gather.q_norm.norm is None else gather.q_norm.norm(q)
    layers = gather.norm_l, gather.k, gather.k_norm.norm, gather.v
    params = GatherParams(*(affine(layer, z_l.dtype) for layer in layers))
    xla, tpu = options_of(gather, z_p, z_l, eps=gather.eps)
    mixed, memory = jax.lax.platform_dependent(
        *(z_l, q, params),
        tpu=functools.partial(gather_tpu, tpu),
        cuda=functools.partial(gather_gpu, xla),
        default=functools.partial(gather_xla, xla),
    )
    return gather.out(mixed), q, memory


def update_tokens(
    gather: Gather,
    infuse: Infuse,
    norm: LayerNorm,
    mlp: Mlp,
    z_p: Float[Array, "b m d"],
    z_l: Float[Array, "b n d"],
    q: Float[Array, "b m d"],
    memory: Memory,
) -> Float[Array, "b n d"]:
    """z_l after infusion and lookup MLP; `q` and `memory` come from `gather_tokens`."""
    v = infuse.v(z_p if infuse.norm_p is None else infuse.norm_p(z_p))
    layers = gather.k_norm.norm, infuse.out, norm, mlp.fc1, mlp.fc2
    params = UpdateParams(*(affine(layer, z_l.dtype) for layer in layers))
    xla, tpu = options_of(infuse, z_p, z_l, reuse=infuse.reuse, gelu=mlp.gelu, eps=norm.eps)
    return jax.lax.platform_dependent(
        *(z_l, q, memory, v, params),
        tpu=functools.partial(update_tpu, tpu),
        cuda=functools.partial(update_gpu, xla),
        default=functools.partial(update_xla, xla),
    )
