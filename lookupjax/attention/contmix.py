"""ContMix (OverLoCK, arXiv 2502.20087): every pixel computes its own convolution kernels from the context.

    query (b, h, w, c) -> q (G groups)          context map -> 7 x 7 region means -> k
    affinity (b, G, h w, 49) = q k^T / sqrt(c / G)     of each pixel to each region
    linear 49 -> S^2 + K^2, + relative position bias, softmax over each window: two kernels per pixel
    first half of the value channels: S x S window sums; second half: K x K; concat -> projection

The windows stay inside the map: at a border they are shifted, not cut (neighbourhood attention, arXiv
2204.07143). A map smaller than K is enlarged first and averaged back afterwards.
Taps: "kernel_small" and "kernel_large" (b, groups, h, w, k, k), "map" of both kinds of kernels, all small
ones first (b, 2 groups, h w, h w), "output".
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.dense import dense_map
from lookupjax.attention.mixer import TokenMixer
from lookupjax.errors import UserError
from lookupjax.layers.conv import ConvNorm
from lookupjax.layers.mlp import linear
from lookupjax.layers.pool import adaptive_avg_pool
from lookupjax.layers.position import flatten_grid, resize_grid

REGIONS = (7, 7)
normal = nnx.initializers.normal(0.02)


def window_starts(size: int, kernel: int) -> np.ndarray:
    """First index of the window around each of `size` positions, shifted to lie inside."""
    return np.clip(np.arange(size) - kernel // 2, 0, size - kernel)


def window_bias(
    table: Float[Array, "g r r"], grid: tuple[int, int], kernel: int
) -> Float[Array, "g h w k k"]:
    """The bias of each pixel's window from a table of relative positions (r = 2 kernel - 1).

    Row (start + a) - i + kernel - 1 belongs to window row a of pixel row i; columns likewise.
    """
    rows, columns = (
        (window_starts(n, kernel) - np.arange(n))[:, None] + np.arange(kernel) + kernel - 1 for n in grid
    )
    return table[:, rows[:, None, :, None], columns[None, :, None, :]]


def kernel_map(kernels: Float[Array, "b g h w k k"]) -> Float[Array, "b g n n"]:
    """Every pixel's kernel laid over the whole map."""
    b, g, height, width, size, _ = kernels.shape
    rows, columns = (window_starts(n, size)[:, None] + np.arange(size) for n in (height, width))
    keys = rows[:, None, :, None] * width + columns[None, :, None, :]  # (h, w, k, k)
    keys = 1 + keys.reshape(1, height * width, -1)
    queries = np.arange(1, 1 + height * width)[None, :, None]
    weights = kernels.reshape(b, g, height * width, 1, size * size).swapaxes(1, 2)
    numbers = [jnp.asarray(n, jnp.float32) for n in (queries, keys)]
    return dense_map(weights, numbers[0], numbers[1], (height * width,) * 2)


@jax.checkpoint  # the windows are kernel^2 copies of the map: gather them again in the backward pass
def window_mix(
    weights: Float[Array, "b g h w k k"], values: Float[Array, "b h w g c"]
) -> Float[Array, "b h w g c"]:
    """Weighted sum of the values in each pixel's window."""
    kernel = weights.shape[-1]
    rows, columns = (
        window_starts(n, kernel)[:, None] + np.arange(kernel) for n in values.shape[1:3]
    )  # (h, k), (w, k)
    windows = values[:, rows[:, None, :, None], columns[None, :, None, :]]
    return jnp.einsum("bghwij,bhwijgc->bhwgc", weights, windows)


def enlarged(grid: tuple[int, int], kernel: int) -> tuple[int, int]:
    """`grid`, or where its shorter side is below `kernel`, its proportions at that side."""
    height, width = grid
    if min(grid) >= kernel:
        return grid
    if height < width:
        return kernel, int(kernel / height * width)
    return int(kernel / width * height), kernel


class ContMix(TokenMixer):
    """Context-mixing dynamic convolution with `num_heads` groups.

    Args:
      kernel_size, small_kernel: K and S, odd.
      key_dim: width of the map that `mix_maps` takes its regions from; default `dim`.
      value_proj: project the values (False in OverLoCK's Focus blocks).
      bias_init: standard deviation of the initial position bias.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int = 7,
        small_kernel: int = 5,
        key_dim: int | None = None,
        value_proj: bool = True,
        bias_init: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % (2 * num_heads):
            raise UserError(f"half of dim={dim} cannot be split into num_heads={num_heads} equal groups")
        if kernel_size % 2 == 0 or small_kernel % 2 == 0 or small_kernel > kernel_size:
            raise UserError(
                f"kernel_size={kernel_size} and small_kernel={small_kernel} must be odd, "
                "and the second at most the first"
            )
        self.num_heads, self.kernel_size, self.small_kernel = num_heads, kernel_size, small_kernel
        self.scale = (dim // num_heads) ** -0.5
        options = dict(kernel_init=normal, dtype=dtype, rngs=rngs)
        self.q = ConvNorm(dim, dim // 2, 1, **options)
        self.k = ConvNorm(dim if key_dim is None else key_dim, dim // 2, 1, **options)
        self.v = ConvNorm(dim, dim, 1, **options) if value_proj else None
        regions = REGIONS[0] * REGIONS[1]
        self.kernels = linear(regions, small_kernel**2 + kernel_size**2, dtype=dtype, rngs=rngs)
        bias = nnx.initializers.normal(bias_init)
        self.small_table = nnx.Param(bias(rngs.params(), (num_heads, *(2 * small_kernel - 1,) * 2)))
        self.table = nnx.Param(bias(rngs.params(), (num_heads, *(2 * kernel_size - 1,) * 2)))
        self.out = ConvNorm(dim, dim, 1, **options)

    def groups(self, x: Float[Array, "b *s d"]) -> Float[Array, "b *s g c"]:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def dynamic_kernels(
        self, q: Float[Array, "b h w g c"], k: Float[Array, "b l g c"]
    ) -> tuple[Float[Array, "b g h w s s"], Float[Array, "b g h w k k"]]:
        """The softmax-normalised small and large kernel of every pixel, float32."""
        affinity = jnp.einsum("bhwgc,blgc->bghwl", q, k, preferred_element_type=jnp.float32)
        scores = self.kernels(affinity.astype(q.dtype)).astype(jnp.float32)
        cut, grid = self.small_kernel**2, (q.shape[1], q.shape[2])
        windows = []
        for name, part, table, size in (
            ("kernel_small", scores[..., :cut], self.small_table, self.small_kernel),
            ("kernel_large", scores[..., cut:], self.table, self.kernel_size),
        ):
            bias = window_bias(table[...], grid, size).reshape(self.num_heads, *grid, size * size)
            weights = jax.nn.softmax(part + bias[None], axis=-1)
            windows.append(self.tap(name, weights.reshape(*part.shape[:-1], size, size)))
        return windows[0], windows[1]

    def mix_maps(
        self,
        query: Float[Array, "b h w d"],
        key: Float[Array, "b h w e"],
        value: Float[Array, "b h w d"],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """Window sums of `value` with the kernels that `query` and the regions of `key` give."""
        grid = (query.shape[1], query.shape[2])
        size = enlarged(grid, self.kernel_size)
        query, key, value = (resize_grid(x, size, antialias=False) for x in (query, key, value))
        q = self.groups(self.q(query, train=train) * self.scale)
        k = self.k(adaptive_avg_pool(key, REGIONS), train=train)
        v = value if self.v is None else self.v(value, train=train)
        halves = jnp.split(v, 2, axis=-1)
        kernels = self.dynamic_kernels(q, self.groups(flatten_grid(k)))
        if self.tapped:
            self.tap("map", jnp.concatenate([kernel_map(k) for k in kernels], axis=1))
        parts = [
            window_mix(weights.astype(half.dtype), self.groups(half)).reshape(half.shape)
            for weights, half in zip(kernels, halves)
        ]
        mixed = jnp.concatenate(parts, axis=-1)
        out = self.out(adaptive_avg_pool(mixed, grid), train=train)
        return self.tap("output", flatten_grid(out)).reshape(out.shape)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b _ d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """Mixes the row-major tokens of the two-dimensional `grid`."""
        self.check_call(context, mask, grid, causal)
        if len(grid) != 2:
            raise UserError(f"ContMix works on grids of two axes, not {grid}")
        maps = x.reshape(x.shape[0], *grid, x.shape[-1])
        return flatten_grid(self.mix_maps(maps, maps, maps, train=rngs is not None))


MIXER = ContMix
