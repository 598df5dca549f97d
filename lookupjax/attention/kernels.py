"""What Pallas kernels share: splitting by images, XLA's gradient, tiles with masked borders (Triton)."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plgpu
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def with_xla_gradient(xla: Callable) -> Callable:
    """Decorates a kernel's caller f(options, *arrays) with the gradient of `xla`, the same function."""

    def decorate(kernel: Callable) -> Callable:
        fused = jax.custom_vjp(kernel, nondiff_argnums=(0,))

        def forward(options: Any, *arrays: Any) -> tuple[Any, Any]:
            return kernel(options, *arrays), arrays

        def backward(options: Any, arrays: Any, cotangents: Any) -> Any:
            return jax.vjp(functools.partial(xla, options), *arrays)[1](cotangents)

        fused.defvjp(forward, backward)
        return fused

    return decorate


def by_images(run: Callable, arrays: Sequence[Array], of_images: Sequence[bool]) -> Any:
    """`run(*arrays)`, a kernel, on the images that each device of a mesh has.

    XLA cannot split a kernel and would gather all images on every device. Over a mesh's other axes, such as
    tensor parallelism's, the work is repeated. `jax.vmap` cannot look inside either.

    Args:
      of_images: which of the arrays have the images as their first axis; results all have.
    """
    names, precision = itertools.count(), jax.config.jax_default_matmul_precision

    def split_run(*arrays: Array) -> Any:  # traced again when XLA splits, outside the caller's settings
        with jax.default_matmul_precision(precision):
            return run(*arrays)

    def factors(x: Any, images: bool) -> str:
        return " ".join("images" if images and axis == 0 else f"x{next(names)}" for axis in range(x.ndim))

    def partition(mesh: Any, given: Any, result: Any) -> Any:
        specs = [x.sharding.spec for x, images in zip(given, of_images, strict=True) if images]
        split = next((spec[0] for spec in specs if spec and spec[0] is not None), None)
        images, every = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (split, None))
        shardings = tuple(images if own else every for own in of_images)
        return mesh, split_run, jax.tree.map(lambda _: images, result), shardings

    results = jax.tree.leaves(jax.eval_shape(run, *arrays))
    left = ", ".join(factors(x, images) for x, images in zip(arrays, of_images, strict=True))
    rule = f"{left} -> {', '.join(factors(x, True) for x in results)}"
    partitioned = custom_partitioning(split_run)
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    return partitioned(*arrays)


def products(a: Any, b: Any, contract: tuple[int, int] = (1, 0)) -> Any:
    """In a kernel: a matrix product of two tiles over axes `contract`, accumulated in float32."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


# Tiles of a GPU: sides are powers of two, what lies beyond the arrays is masked


def power_of_two(size: int) -> int:
    """The side of a tile for `size` values: at least 16, as tensor cores want it."""
    return max(16, 1 << (size - 1).bit_length())


class Span(NamedTuple):
    """`count` entries of an axis from `start` on, in a tile's side of `size`."""

    start: Any
    size: int
    count: Any


def span(i: Any, size: int, total: int) -> Span:
    """The i-th tile side of `size` along an axis of `total` entries."""
    return Span(i * size, size, total - i * size)


def load(ref: Any, *where: Any) -> Any:
    """The entries of `ref` at `where`, indices and one or two spans, with zeros beyond the spans."""
    return plgpu.load(ref.at[*indices(where)], mask=inside(where), other=0.0)


def store(ref: Any, value: Any, *where: Any) -> None:
    """Puts `value` to where `load` would find it."""
    plgpu.store(ref.at[*indices(where)], value.astype(ref.dtype), mask=inside(where))


def indices(where: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(pl.ds(x.start, x.size) if isinstance(x, Span) else x for x in where)


def inside(where: Sequence[Any]) -> Any:
    """Mask of a tile: what lies within its spans."""
    masks = [jnp.arange(x.size) < x.count for x in where if isinstance(x, Span)]
    return masks[0] if len(masks) == 1 else masks[0][:, None] & masks[1][None, :]


def largest(scores: Any, axis: int, kept: Span) -> Any:
    """Maximum over `axis`, 0 for what lies outside `kept` along the other."""
    return jnp.where(inside([kept]), jnp.max(scores, axis=axis), 0.0)


def row_statistics(x_ref: Any, rows: Span, width: int, eps: float) -> tuple[Any, Any]:
    """(mean, 1 / std) over the channels of rows, read twice, `width` channels at a time."""
    dim = x_ref.shape[1]
    none = jnp.zeros((rows.size,), jnp.float32)

    def over_chunks(values: Callable) -> Any:
        def add(i: Any, total: Any) -> Any:
            columns = span(i, width, dim)
            x = values(load(x_ref, rows, columns).astype(jnp.float32))
            return total + jnp.sum(jnp.where(inside([columns])[None, :], x, 0.0), axis=1)

        return jax.lax.fori_loop(0, -(-dim // width), add, none) / dim

    mean = over_chunks(lambda x: x)
    return mean, jax.lax.rsqrt(over_chunks(lambda x: jnp.square(x - mean[:, None])) + eps)
