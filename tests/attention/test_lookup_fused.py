"""LookupViT's kernels: against XLA's formulas in interpret mode, and compiled for chips that are not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.aot import topology_devices
from lookupjax.attention.lookup_gpu import gather_gpu, update_gpu
from lookupjax.attention.lookup_path import (
    GatherParams,
    Options,
    UpdateParams,
    gather_xla,
    update_xla,
)
from lookupjax.attention.lookup_tpu import gather_tpu, lane_groups, update_tpu
from lookupjax.errors import UserError

FORMS = [  # n, m, dim, heads, absorbed, reuse, gelu, norms
    (21, 5, 48, 3, True, "transpose", "tanh", True),
    (21, 70, 48, 3, False, "transpose", "exact", False),
    (150, 20, 64, 2, False, "renorm", "exact", True),
    (33, 20, 256, 4, True, "softmax", "exact", True),
    (67, 130, 40, 2, False, "softmax", "tanh", True),
]


def arguments(n, m, dim, dtype, norms, make):
    """Images, then parameters, as `make(shape, dtype, scale)` gives them."""
    hidden = 192 if dim == 64 else dim // 2  # more than one tile of a GPU's kernel
    weight, row = lambda *s: make(s, dtype, s[0] ** -0.5), lambda d: make((d,), jnp.float32, 0.3)
    layer = lambda a, b: (weight(a, b), row(b))  # noqa: E731
    norm = lambda: (row(dim), row(dim))  # noqa: E731
    gather = GatherParams(
        norm() if norms else None, layer(dim, dim), norm() if norms else None, layer(dim, dim)
    )
    update = UpdateParams(None, layer(dim, dim), norm(), layer(dim, hidden), layer(hidden, dim))
    z, q, v = (make((2, k, dim), dtype, 1.0) for k in (n, m, m))
    return z, q, v, gather, update


XLA, TPU, GPU = (gather_xla, update_xla), (gather_tpu, update_tpu), (gather_gpu, update_gpu)


def path(functions, options, z, q, v, gather, update):
    mixed, memory = functions[0](options, z, q, gather)
    # the keys are an input of both: their gradient is the sum of two
    return mixed, functions[1](options, z, q, memory, v, update._replace(k_norm=gather.k_norm))


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_grads(functions, options, *arrays):
    def loss(*arrays):
        out = path(functions, options, *arrays)
        return sum(jnp.sin(x.astype(jnp.float32)).sum() for x in out), out

    return jax.grad(loss, argnums=tuple(range(len(arrays))), has_aux=True)(*arrays)


def made(n, m, dim, dtype, norms):
    random = np.random.default_rng(0)
    return arguments(n, m, dim, dtype, norms, lambda s, t, scale: jnp.asarray(random.normal(0, scale, s), t))


@pytest.mark.parametrize("n, m, dim, heads, absorbed, reuse, gelu, norms", FORMS)
def test_kernels_compute_what_xla_does(n, m, dim, heads, absorbed, reuse, gelu, norms):
    arrays, options = made(n, m, dim, jnp.float32, norms), Options(heads, absorbed, reuse, gelu)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1.0))

    with jax.default_matmul_precision("highest"):
        expected = value_and_grads(XLA, options, *arrays)
        # the other order of products is an independent formula for the same numbers
        other = value_and_grads(XLA, options._replace(absorbed=not absorbed), *arrays)
        jax.tree.map(close, other, expected)
        for kernels in (TPU, GPU):
            got = value_and_grads(kernels, options._replace(interpret=True), *arrays)
            jax.tree.map(close, got, expected)


@pytest.mark.parametrize(
    "n, m, absorbed, reuse, gelu", [(33, 9, True, "renorm", "tanh"), (18, 16, False, "transpose", "exact")]
)
def test_kernels_lose_as_little_to_bfloat16_as_xla(n, m, absorbed, reuse, gelu):
    """Values and gradients, by their distance from what float32 makes of the same inputs."""
    arrays, options = made(n, m, 256, jnp.bfloat16, True), Options(4, absorbed, reuse, gelu)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
    with jax.default_matmul_precision("highest"):
        exact = value_and_grads(XLA, options, *exact)
    distance = lambda a, b: np.sqrt(np.mean(np.square(np.asarray(a, np.float32) - b)))  # noqa: E731
    xla = jax.tree.map(distance, value_and_grads(XLA, options, *arrays), exact)
    for kernels in (TPU, GPU):
        got = jax.tree.map(
            distance, value_and_grads(kernels, options._replace(interpret=True), *arrays), exact
        )
        jax.tree.map(lambda kernel, xla: np.testing.assert_array_less(kernel, 4 * xla), got, xla)


def test_narrow_heads_share_a_register():
    assert lane_groups(768, 12) == 2 and lane_groups(1024, 8) == 1
    assert lane_groups(192, 3) == 3  # three heads of 64 do not pair: all at once


@pytest.mark.parametrize("options", [dict(qk_norm="head"), dict(out_proj=False)])
def test_options_without_a_kernel(options):
    with pytest.raises(UserError, match="no kernel for"):
        create_model("lookupvit_mu", cross_impl="fused", **options)


@pytest.mark.parametrize("kernels", [TPU, GPU])
def test_every_device_works_on_its_own_images(kernels):
    """XLA cannot split a kernel: left to itself it gathers all images on every device."""
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(auto, auto))
    n, m, dim = 10, 4, 32
    z, q, v, *params = made(n, m, dim, jnp.float32, True)
    z, q, v = (jnp.concatenate([x, 2.0 * x, -x, 0.5 * x]) for x in (z, q, v))
    options = Options(2, False, interpret=True)
    images = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    split = [jax.device_put(x, images) for x in (z, q, v)]
    compiled = value_and_grads.lower(kernels, options, *split, *params).compile()
    assert "all-gather" not in compiled.as_text()
    got = compiled(*split, *params)
    expected = value_and_grads(XLA, options._replace(interpret=False), z, q, v, *params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.abs(b).max())), got, expected
    )
    assert all(x.sharding.is_equivalent_to(images, x.ndim) for x in (*got[0][:3], *got[1]))


@pytest.mark.parametrize("m, kernels", [(128, True), (129, False)])
def test_more_compressed_tokens_than_fit_on_a_gpu_are_left_to_xla(m, kernels):
    shapes = arguments(150, m, 192, jnp.float32, True, lambda s, t, _: jax.ShapeDtypeStruct(s, t))
    program = str(jax.make_jaxpr(functools.partial(path, GPU, Options(3, False)))(*shapes))
    assert ("attend_kernel" in program) == ("write_back_kernel" in program) == kernels


@pytest.mark.parametrize(
    "images, n, m, dim, heads, dtype, reuse, gelu, norms",
    [
        (128, 196, 25, 768, 12, jnp.bfloat16, "transpose", "tanh", True),
        (2, 196, 256, 192, 3, jnp.bfloat16, "renorm", "exact", True),
        (2, 196, 128, 192, 3, jnp.float32, "softmax", "exact", True),
        (1, 67, 17, 40, 2, jnp.float32, "renorm", "tanh", False),
        (2, 50, 16, 512, 2, jnp.bfloat16, "softmax", "tanh", True),
    ],
)
def test_kernels_and_their_gradients_compile_for_h100(images, n, m, dim, heads, dtype, reuse, gelu, norms):
    """Triton's limits (powers of two, shared memory, bounds known at compile time) show here alone."""
    pytest.importorskip("jax_cuda13_plugin", reason="needs the CUDA plugin: pip install -e '.[cuda]'")
    mesh = jax.sharding.Mesh(topology_devices("h100:1"), ("chip",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def make(shape, dtype, _):
        shape = (images, *shape[1:]) if len(shape) == 3 else shape
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    options = Options(heads, False, reuse, gelu)
    text = value_and_grads.lower(GPU, options, *arguments(n, m, dim, dtype, norms, make)).compile().as_text()
    names = ["attend", "attend_gradient", "write_back", "write_back_gradient", "mlp"]
    assert all(f'name = "{name}_kernel"' in text for name in names)
    assert ('name = "statistics_kernel"' in text) == norms


@pytest.mark.parametrize("absorbed, topology", [(True, "v5e:2x2"), (False, "v5p:2x2x1")])
def test_kernels_compile_for_tpu(absorbed, topology):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install -e '.[tpu]'")
    mesh = jax.sharding.Mesh(topology_devices(topology)[:1], ("chip",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = arguments(
        196, 25, 768, jnp.bfloat16, True, lambda s, t, _: jax.ShapeDtypeStruct(s, t, sharding=place)
    )
    program = jax.jit(path, static_argnums=(0, 1)).lower(TPU, Options(12, absorbed), *shapes).compile()
    text = program.as_text()
    assert "gather_kernel" in text and "update_kernel" in text
