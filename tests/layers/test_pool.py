"""Convolution and pooling conventions, against plain NumPy loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax.layers.conv import ConvNorm, conv
from lookupjax.layers.pool import adaptive_avg_pool, avg_pool, max_pool
from lookupjax.layers.rngs import Keys


def windows(size, window, stride, padding, ceil_mode):
    """[(start, end)] per output along an axis, as PyTorch's documentation defines them."""
    rounding = np.ceil if ceil_mode else np.floor
    count = int(rounding((size + 2 * padding - window) / stride)) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return [(i * stride - padding, i * stride - padding + window) for i in range(count)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    "size, window, stride, padding", [(7, 3, 2, 1), (8, 3, 2, 0), (6, 2, 2, 0), (5, 3, 3, 1)]
)
def test_pooling(size, window, stride, padding, include, ceil_mode):
    x = np.random.default_rng(0).normal(size=(1, size, size, 2)).astype(np.float32)
    where = windows(size, window, stride, padding, ceil_mode)
    means, tops = [], []
    for top, bottom in where:
        for left, right in where:
            part = x[:, max(top, 0) : bottom, max(left, 0) : right]
            inside = min(bottom, size + padding) - top, min(right, size + padding) - left
            count = inside[0] * inside[1] if include else part.shape[1] * part.shape[2]
            means.append(part.sum((1, 2)) / count)
            tops.append(part.max((1, 2)))
    shape = (1, len(where), len(where), 2)
    options = dict(stride=stride, padding=padding, ceil_mode=ceil_mode)
    ours = avg_pool(jnp.asarray(x), window, count_include_pad=include, **options)
    np.testing.assert_allclose(ours, np.stack(means, 1).reshape(shape), atol=1e-6)
    np.testing.assert_array_equal(
        max_pool(jnp.asarray(x), window, **options), np.stack(tops, 1).reshape(shape)
    )


@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (1, 1), (9, 4)])
def test_adaptive_pooling(grid):
    x = np.random.default_rng(0).normal(size=(2, 7, 10, 3)).astype(np.float32)
    expected = np.zeros((2, *grid, 3), np.float32)
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = slice(i * 7 // grid[0], -(-(i + 1) * 7 // grid[0]))
            columns = slice(j * 10 // grid[1], -(-(j + 1) * 10 // grid[1]))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(adaptive_avg_pool(jnp.asarray(x), grid), expected, atol=1e-6)


def test_convolution_with_symmetric_padding_and_its_norm():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype(np.float32)
    grouped = conv(4, 6, 3, stride=2, padding=1, groups=2, rngs=Keys(0))
    kernel, padded = np.asarray(grouped.kernel[...]), np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 4, 3, 6), np.float32)
    for g in range(2):
        for i in range(4):
            for j in range(3):
                part = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, 2 * g : 2 * g + 2]
                expected[:, i, j, 3 * g : 3 * g + 3] = np.einsum(
                    "bhwc,hwcd->bd", part, kernel[..., 3 * g : 3 * g + 3]
                )
    np.testing.assert_allclose(grouped(jnp.asarray(x)), expected, atol=1e-5)

    block = ConvNorm(4, 6, 1, activation="relu", dtype=jnp.bfloat16, rngs=Keys(0))
    before = np.asarray(block.norm.mean[...])
    y = block(jnp.asarray(x), train=True)
    assert y.dtype == jnp.bfloat16 and (y >= 0).all()
    assert not np.array_equal(before, block.norm.mean[...])
