"""LookupViT's TPU kernels: against XLA's formulas in interpret mode, and compiled for a chip not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.attention.lookup_tpu import (
    GatherParams,
    Options,
    UpdateParams,
    gather_fused,
    lane_groups,
    update_fused,
)
from lookupjax.errors import UserError

FORMS = [  # n, m, dim, heads, dtype, absorbed, reuse, gelu, norms
    (21, 5, 48, 3, jnp.float32, True, "transpose", "tanh", True),
    (21, 5, 48, 3, jnp.float32, False, "renorm", "exact", False),
    (33, 20, 256, 4, jnp.float32, True, "softmax", "exact", True),
    (33, 9, 256, 4, jnp.bfloat16, True, "renorm", "tanh", True),
    (18, 16, 256, 4, jnp.bfloat16, False, "transpose", "exact", True),
]


def arguments(n, m, dim, dtype, norms, make):
    """Images, then parameters, as `make(shape, dtype, scale)` gives them."""
    weight, row = lambda *s: make(s, dtype, s[0] ** -0.5), lambda d: make((d,), jnp.float32, 0.3)
    layer = lambda a, b: (weight(a, b), row(b))  # noqa: E731
    norm = lambda: (row(dim), row(dim))  # noqa: E731
    gather = GatherParams(
        norm() if norms else None, layer(dim, dim), norm() if norms else None, layer(dim, dim)
    )
    update = UpdateParams(layer(dim, dim), norm(), layer(dim, dim // 2), layer(dim // 2, dim))
    z, q, v = (make((2, k, dim), dtype, 1.0) for k in (n, m, m))
    return z, q, v, gather, update


def path(options, z, q, v, gather, update):
    mixed, k = gather_fused(options, z, q, gather)
    return mixed, k, update_fused(options, z, q, k, v, update)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(options, *arrays):
    def loss(*arrays):
        out = path(options, *arrays)
        return sum(jnp.sin(x.astype(jnp.float32)).sum() for x in out), out

    return jax.grad(loss, argnums=tuple(range(len(arrays))), has_aux=True)(*arrays)


@pytest.mark.parametrize("n, m, dim, heads, dtype, absorbed, reuse, gelu, norms", FORMS)
def test_kernels_compute_what_xla_does(n, m, dim, heads, dtype, absorbed, reuse, gelu, norms):
    random = np.random.default_rng(0)
    arrays = arguments(
        n, m, dim, dtype, norms, lambda s, t, scale: jnp.asarray(random.normal(0, scale, s), t)
    )
    options = Options(heads, absorbed, reuse, gelu)
    tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
    with jax.default_matmul_precision("highest"):
        grads, out = value_and_grads(options, *arrays)
        kernel_grads, kernel_out = value_and_grads(options._replace(interpret=True), *arrays)
        # the other order of products is an independent formula for the same numbers
        other_grads, other = value_and_grads(options._replace(absorbed=not absorbed), *arrays)

    def close(a, b):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1.0))

    jax.tree.map(close, kernel_out, out)
    jax.tree.map(close, kernel_out, other)
    jax.tree.map(close, kernel_grads, grads)
    if dtype == jnp.float32:  # in bfloat16, gradients of the two orders differ in more than their rounding
        jax.tree.map(close, kernel_grads, other_grads)


def test_narrow_heads_share_a_register():
    assert lane_groups(768, 12) == 2 and lane_groups(1024, 8) == 1
    assert lane_groups(192, 3) == 3  # three heads of 64 do not pair: all at once


@pytest.mark.parametrize("options", [dict(qk_norm="head"), dict(out_proj=False)])
def test_options_without_a_kernel(options):
    with pytest.raises(UserError, match="no kernel for"):
        create_model("lookupvit_mu", cross_impl="fused", **options)


@pytest.mark.parametrize("absorbed", [True, False])
def test_kernels_compile_for_tpu(absorbed):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install -e '.[tpu]'")
    from lookupjax.aot import tpu_devices

    mesh = jax.sharding.Mesh(tpu_devices("v5e:2x2")[:1], ("chip",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = arguments(
        196, 25, 768, jnp.bfloat16, True, lambda s, t, _: jax.ShapeDtypeStruct(s, t, sharding=place)
    )
    program = jax.jit(path, static_argnums=0).lower(Options(12, absorbed), *shapes).compile()
    text = program.as_text()
    assert "gather_kernel" in text and "update_kernel" in text
