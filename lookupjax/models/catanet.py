"""CATANet (arXiv 2503.06896, CVPR 2025): super-resolution with content-aware token aggregation.

    image (b, h, w, 3) -> 3x3 convolution -> x0 (b, h, w, C)
      8 x [x = x + conv3(LRSA(TAB(x)))]                       one token per pixel throughout
      x + x0 -> convolution, pixel shuffle (2x, 3x; twice for 4x) -> 3x3 convolution -> (b, s h, s w, 3)
      + bilinear enlargement of the image

    TAB : tokens are assigned to the nearest of M centres and sorted by centre; groups of `group_size`
          sorted tokens attend to their own and the next group, plus (a softmax of its own) to the centres
    LRSA: attention inside overlapping windows, stitched together again

The centres are statistics, not parameters: in training they are refined by a few steps of k-means over the
batch and averaged over time; in evaluation they are fixed. Of a model never trained they are the means of
M consecutive chunks of the tokens.

Reference: EquationWalker/CATANet, whose sort is not stable; ours is. Where it fails we go on: maps narrower
than a window are padded, and few tokens are mirrored more than once. Under data parallelism the centres are
those of the global batch.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lookupjax.attention.dense import token_numbers
from lookupjax.attention.mixer import Tapped
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.resize import bilinear
from lookupjax.models.published import Published

VARIANTS: dict[str, dict] = {
    "mu": dict(
        scale=2,
        dim=16,
        qk_dim=8,
        mlp_dim=24,
        num_heads=2,
        num_tokens=(4,),
        group_sizes=(32,),
        windows=(8,),
        iterations=(2,),
    ),  # the smallest, for tests
    "x2": dict(scale=2),
    "x3": dict(scale=3),
    "x4": dict(scale=4),
}
INPUT_SIZE = {"mu": (16, 16), "x2": (360, 640), "x3": (240, 426), "x4": (180, 320)}  # of 1280 x 720
SOURCE = "measured on EquationWalker/CATANet"
PUBLISHED = {
    "x2": Published(477_435, source=SOURCE),
    "x3": Published(549_635, source=SOURCE),
    "x4": Published(
        535_195,
        42.24,
        gmacs_extra=33.17,
        size=(180, 320),
        source=SOURCE,
        note="extra: the attention products, which fvcore does not count",
    ),
}

like_torch = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of its convolutions


def unit(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
    """x / |x| over the last axis, float32."""
    x = x.astype(jnp.float32)
    square = jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24)
    return x * jax.lax.rsqrt(square)


def nearest_centre(x: Float[Array, "b n c"], centres: Float[Array, "m c"]) -> Int[Array, "b n"]:
    """The centre with the largest dot product."""
    return jnp.einsum("bnc,mc->bnm", x, centres).argmax(-1)


def refine(x: Float[Array, "b n c"], centres: Float[Array, "m c"]) -> Float[Array, "m c"]:
    """A step of spherical k-means over the whole batch; a centre without tokens stays where it is."""
    member = jax.nn.one_hot(nearest_centre(x, centres), centres.shape[0])
    total = jnp.einsum("bnm,bnc->mc", member, x)
    return jnp.where(member.sum((0, 1))[:, None] > 0, unit(total), centres)


def mirrored(size: int, length: int) -> np.ndarray:
    """Indices 0 .. size - 1 and on in reverse, as far as `length`."""
    return np.pad(np.arange(size), (0, length - size), mode="symmetric")


def chunk_means(x: Float[Array, "b n c"], count: int) -> Float[Array, "m c"]:
    """Means of `count` chunks of consecutive tokens over the batch, the tokens mirrored to fill them.

    At least one and up to `count` tokens are appended, as in the reference.
    """
    n = x.shape[1]
    padded = x[:, mirrored(n, n + count - n % count)]
    return padded.reshape(x.shape[0], count, -1, x.shape[2]).mean((0, 2))


class ConvFFN(nnx.Module):
    """fc2(t + GELU(depthwise 5x5 of t)) with t = GELU(fc1(x))."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.fc1 = linear(dim, hidden, **common)
        self.depthwise = conv(hidden, hidden, 5, padding=2, groups=hidden, kernel_init=like_torch, **common)
        self.fc2 = linear(hidden, dim, **common)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        t = gelu("exact")(self.fc1(x))
        return self.fc2(t + gelu("exact")(self.depthwise(t)))


class Attention(Tapped):
    """Softmax attention within groups of tokens, whose weights are tapped."""

    def attend(
        self,
        q: Float[Array, "b h m c"],
        k: Float[Array, "b h n c"],
        v: Float[Array, "b h n e"],
        name: str = "",
    ) -> Float[Array, "b h m e"]:
        weights = self.tap(f"{name}weights", jax.nn.softmax(attention_scores(q, k), axis=-1))
        return jnp.einsum("bhmn,bhnc->bhmc", weights.astype(v.dtype), v)


class GroupAttention(Attention):
    """IASA: tokens in groups by content attend to two groups and, separately, to the centres.

    The taps see every group as an example of its own: "weights" and, to the centres, "centre_weights".
    "query_places" and "key_places" (b, groups, _) say which tokens these are, see `attention.dense`.
    """

    def __init__(
        self, dim: int, qk_dim: int, num_heads: int, group_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        common = dict(bias=False, dtype=dtype, rngs=rngs)
        self.num_heads, self.group_size = num_heads, group_size
        self.q = linear(dim, qk_dim, **common)
        self.k = linear(dim, qk_dim, **common)
        self.v = linear(dim, dim, **common)
        self.out = linear(dim, dim, **common)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        order: Int[Array, "b n"],
        centre_k: Float[Array, "m q"],
        centre_v: Float[Array, "m c"],
    ) -> Float[Array, "b n c"]:
        """`order` sorts the tokens; the result is in their own order again."""
        b, n, _ = x.shape
        size = min(n, self.group_size)
        groups = -(-n // size)
        line = mirrored(n, (groups + 1) * size)
        own = line[: groups * size].reshape(groups, size)
        both = np.concatenate([own, line[size:].reshape(groups, size)], axis=1)

        def grouped(tokens: Array, index: np.ndarray) -> Array:
            tokens = jnp.take_along_axis(tokens, order[:, :, None], axis=1)[:, index]
            return split_heads(tokens.reshape(b * groups, index.shape[1], -1), self.num_heads)

        def shared(tokens: Array) -> Array:
            tokens = split_heads(tokens[None], self.num_heads)
            return jnp.broadcast_to(tokens, (b * groups, *tokens.shape[1:]))

        if self.tapped:
            real = np.arange(groups * size).reshape(groups, size) < n
            numbers = order.astype(jnp.float32) + 1.0
            self.tap("query_places", jnp.where(real[None], numbers[:, own], 0.0))
            self.tap("key_places", numbers[:, both])
        q = grouped(self.q(x), own)
        mixed = self.attend(q, grouped(self.k(x), both), grouped(self.v(x), both))
        mixed = merge_heads(mixed + self.attend(q, shared(centre_k), shared(centre_v), "centre_"))
        mixed = mixed.reshape(b, groups * size, -1)[:, :n]
        back = jnp.argsort(order, axis=1)
        return self.out(jnp.take_along_axis(mixed, back[:, :, None], axis=1))


class TokenAggregation(nnx.Module):
    """TAB: attention among tokens of like content, and to the centres of that content, then a ConvFFN.

    Args:
      num_tokens: centres.
      iterations: steps of k-means in training, from the averaged centres.
      ema_decay: weight of the old centres in their average.
    """

    def __init__(
        self,
        dim: int,
        *,
        qk_dim: int,
        mlp_dim: int,
        num_heads: int,
        iterations: int,
        num_tokens: int,
        group_size: int,
        ema_decay: float = 0.999,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.iterations, self.num_tokens, self.ema_decay = iterations, num_tokens, ema_decay
        self.dtype = dtype
        self.norm = LayerNorm(dim, eps=1e-5, **common)
        self.centre_k = linear(dim, qk_dim, bias=False, **common)
        self.centre_v = linear(dim, dim, bias=False, **common)
        self.attn = GroupAttention(dim, qk_dim, num_heads, group_size, **common)
        self.proj = linear(dim, dim, bias=False, **common)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, **common)
        self.mlp = ConvFFN(dim, mlp_dim, **common)
        self.means = nnx.BatchStat(jnp.zeros((num_tokens, dim)))
        self.started = nnx.BatchStat(jnp.zeros((), bool))

    def centres(self, x: Float[Array, "b n c"], *, train: bool) -> Float[Array, "m c"]:
        """The centres to use for these (normalised) tokens; in training their average is updated."""
        x = jax.lax.stop_gradient(x.astype(jnp.float32))
        centres = jnp.where(self.started[...], self.means[...], chunk_means(x, self.num_tokens))
        if not train:
            return centres
        for _ in range(self.iterations):
            centres = refine(unit(x), unit(centres))
        average = self.ema_decay * self.means[...] + (1 - self.ema_decay) * centres
        self.means[...] = jnp.where(self.started[...], average, centres)
        self.started[...] = jnp.ones((), bool)
        return centres

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        tokens = flatten_grid(self.norm(x))
        centres = self.centres(tokens, train=train)
        order = jnp.argsort(nearest_centre(unit(tokens), unit(centres)), axis=1)
        centres = centres.astype(self.dtype)
        mixed = self.attn(tokens, order, self.centre_k(centres), self.centre_v(centres))
        x = x + self.proj(mixed).reshape(x.shape)
        return x + self.mlp(self.mlp_norm(x))


def window_starts(size: int, window: int) -> np.ndarray:
    """First positions of windows that overlap by two; the last one is shifted to the border."""
    step = window - 2
    return np.minimum(np.arange(0, size + step - window, step), size - window)


def stitching(size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(size, k) indices into the windows' positions laid end to end, and (size, k) weights.

    The reference's rule, an average only where at most two windows meet: after summation, the positions
    from each later window's start to the end of its regular overlap are halved.
    """
    step = window - 2
    starts = window_starts(size, window)
    cover = [[w * window + p - s for w, s in enumerate(starts) if s <= p < s + window] for p in range(size)]
    share = np.ones(size)
    for w, start in enumerate(starts[1:], start=1):
        share[start : w * step + 2] /= 2
    most = max(map(len, cover))
    index = np.array([c + [0] * (most - len(c)) for c in cover])
    weight = np.array([[1.0] * len(c) + [0.0] * (most - len(c)) for c in cover]) * share[:, None]
    return index, weight.astype(np.float32)


class LocalAttention(Attention):
    """LRSA: attention inside overlapping windows, then a ConvFFN on the whole map.

    The taps see every window as an example of its own; "places" (1, windows, window^2) are its tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        qk_dim: int,
        mlp_dim: int,
        num_heads: int,
        window: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.num_heads, self.window = num_heads, window
        self.norm = LayerNorm(dim, eps=1e-5, **common)
        self.q = linear(dim, qk_dim, bias=False, **common)
        self.k = linear(dim, qk_dim, bias=False, **common)
        self.v = linear(dim, dim, bias=False, **common)
        self.out = linear(dim, dim, bias=False, **common)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, **common)
        self.mlp = ConvFFN(dim, mlp_dim, **common)

    def mix(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """The tokens of each window after attention."""
        y = self.norm(x)
        q, k, v = (split_heads(layer(y), self.num_heads) for layer in (self.q, self.k, self.v))
        return x + self.out(merge_heads(self.attend(q, k, v)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if self.tapped:
            self.tap("places", cut_windows(token_numbers(x.shape[1:3]), self.window)[0][None, :, :, 0])
        x = over_windows(x, self.window, self.mix)
        return x + self.mlp(self.mlp_norm(x))


def cut_windows(
    x: Float[Array, "b h w c"], window: int
) -> tuple[Float[Array, "k n c"], tuple[int, int], tuple[int, int]]:
    """(tokens of all overlapping windows, windows down and across, size of the map they cover).

    A side shorter than the window is mirrored to its length first.
    """
    height, width = x.shape[1:3]
    grid = max(height, window), max(width, window)
    x = x[:, mirrored(height, grid[0])][:, :, mirrored(width, grid[1])]
    rows, columns = (window_starts(n, window)[:, None] + np.arange(window) for n in grid)
    y = x[:, rows[:, None, :, None], columns[None, :, None, :]]  # (b, rows, columns, window, window, c)
    return y.reshape(-1, window * window, x.shape[-1]), (len(rows), len(columns)), grid


def over_windows(x: Float[Array, "b h w c"], window: int, fn) -> Float[Array, "b h w c"]:
    """Applies `fn` to the tokens (n, window^2, c) of all overlapping windows and stitches them together."""
    b, height, width, c = x.shape
    tokens, (rows, columns), grid = cut_windows(x, window)
    y = fn(tokens).reshape(b, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(b, rows * window, columns * window, c)
    for axis, n in enumerate(grid, start=1):
        index, weight = stitching(n, window)
        shape = [n if i == axis else 1 for i in range(4)]
        taps = [
            jnp.take(y, index[:, k], axis=axis) * jnp.asarray(weight[:, k].reshape(shape), y.dtype)
            for k in range(index.shape[1])
        ]
        y = functools.reduce(operator.add, taps)
    return y[:, :height, :width]


def pixel_shuffle(x: Float[Array, "b h w e"], scale: int) -> Float[Array, "b h2 w2 c"]:
    """Channel (c s + i) s + j of a pixel becomes channel c of its sub-pixel (i, j)."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, -1, scale, scale).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * scale, w * scale, -1)


class CATANet(nnx.Module):
    """CATANet over images of any size, whose values it keeps in their range.

    Args:
      scale: enlargement, 2, 3 or 4.
      num_tokens, group_sizes, windows, iterations: of each block's TAB and LRSA.
      qk_dim: joint width of the heads' queries and keys.
      ema_decay: weight of the old centres in their average.
      dtype: compute dtype; parameters, centres, softmax and the enlarged image stay float32.
    """

    loss_heads = ("image",)

    def __init__(
        self,
        *,
        scale: int = 4,
        channels: int = 3,
        dim: int = 40,
        qk_dim: int = 36,
        mlp_dim: int = 96,
        num_heads: int = 4,
        num_tokens: tuple[int, ...] = (16, 32, 64, 128) * 2,
        group_sizes: tuple[int, ...] = (256, 128, 64, 32) * 2,
        windows: tuple[int, ...] = (16, 20, 24, 28) * 2,
        iterations: tuple[int, ...] = (5,) * 8,
        ema_decay: float = 0.999,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if scale not in (2, 3, 4):
            raise UserError(f"scale={scale} is not 2, 3 or 4")
        if not len(num_tokens) == len(group_sizes) == len(windows) == len(iterations):
            raise UserError("num_tokens, group_sizes, windows and iterations need one entry for each block")
        if min(windows) < 3:
            raise UserError(f"windows={windows}: a window needs three pixels, as two of them overlap")
        check_heads(dim, num_heads)
        check_heads(qk_dim, num_heads)
        self.scale, self.dtype = scale, dtype
        common = dict(dtype=dtype, rngs=rngs)
        map_conv = dict(kernel=3, padding=1, kernel_init=like_torch) | common
        part = dict(qk_dim=qk_dim, mlp_dim=mlp_dim, num_heads=num_heads) | common
        self.first = conv(channels, dim, **map_conv)
        self.aggregate = nnx.List(
            TokenAggregation(dim, iterations=i, num_tokens=m, group_size=g, ema_decay=ema_decay, **part)
            for i, m, g in zip(iterations, num_tokens, group_sizes)
        )
        self.local = nnx.List(LocalAttention(dim, window=window, **part) for window in windows)
        self.middle = nnx.List(conv(dim, dim, **map_conv) for _ in windows)
        self.steps = (2, 2) if scale == 4 else (scale,)
        self.up = nnx.List(conv(dim, dim * step**2, **map_conv) for step in self.steps)
        self.last = conv(dim, channels, **map_conv)
        normal_linears(self, rngs)

    def deep_features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        """The map that is enlarged."""
        x = first = self.first(images.astype(self.dtype))
        for aggregate, local, middle in zip(self.aggregate, self.local, self.middle):
            x = x + middle(local(aggregate(x, train=rngs is not None)))
        return x + first

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b h w d"]]:
        """One map, at the image's own size."""
        return [self.deep_features(images, rngs=rngs)]

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b h2 w2 c"]]:
        """Returns {"image": the enlarged image, float32}."""
        x = self.deep_features(images, rngs=rngs)
        for up, step in zip(self.up, self.steps):
            x = jax.nn.leaky_relu(pixel_shuffle(up(x), step), 0.1)
        size = (images.shape[1] * self.scale, images.shape[2] * self.scale)
        return {"image": self.last(x).astype(jnp.float32) + bilinear(images, size)}


def create(variant: str, **overrides) -> CATANet:
    """Builds "x2", "x3" or "x4"; any constructor argument can be overridden."""
    return CATANet(**(VARIANTS[variant] | overrides))
