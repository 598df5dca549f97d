"""CrossViT (arXiv 2103.14899, ICCV 2021): two branches that exchange their class tokens.

    image -> bicubic to 240 and 224 -> 12-pixel patches, 16-pixel patches
      x_0 (b, 1 + 400, D_0), x_1 (b, 1 + 196, D_1)          class token first, positions added
    3 multi-scale blocks:
      x_i = blocks_i(x_i)                                    few on the fine branch, many on the coarse
      c_i = revert_i(fuse_i(project_i(cls_i), patches_j))    the class token visits the other branch j
      x_i = [c_i, patches_i]                                 it REPLACES the old one; both read the same x
    logits = mean over branches of head_i(LN_i(x_i)[cls])

References: IBM/CrossViT and timm, which agree bit for bit. The dagger forms have a stack of three
convolutions as patch embedding (`conv_stem`), the 384 forms work at 408 and 384 pixels. Any number of
branches is built as the official code would, each visiting the next one. Beyond the references, a fine
branch may be deeper than a coarse one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table
from lookupjax.layers.regularise import Rate, drop_path, drop_path_rates, dropout
from lookupjax.layers.resize import bicubic
from lookupjax.models.published import Published
from lookupjax.models.vit import Block

Sizes = tuple[tuple[int, int], ...]

SMALL, LARGE = ((240, 240), (224, 224)), ((408, 408), (384, 384))
VARIANTS: dict[str, dict] = {
    "mu": dict(
        sizes=((48, 48), (32, 32)), dims=(16, 32), depth=((1, 2, 0), (1, 1, 0)), num_heads=(2, 2)
    ),  # the smallest, for tests
    "ti": dict(dims=(96, 192), depth=((1, 4, 0),) * 3, num_heads=(3, 3)),
    "s": dict(dims=(192, 384), depth=((1, 4, 0),) * 3, num_heads=(6, 6)),
    "b": dict(dims=(384, 768), depth=((1, 4, 0),) * 3, num_heads=(12, 12)),
}
for name, options in {
    "9": dict(dims=(128, 256), depth=((1, 3, 0),) * 3, num_heads=(4, 4)),
    "15": dict(dims=(192, 384), depth=((1, 5, 0),) * 3, num_heads=(6, 6)),
    "18": dict(dims=(224, 448), depth=((1, 6, 0),) * 3, num_heads=(7, 7)),
}.items():
    VARIANTS[name] = options | dict(mlp_ratio=(3.0, 3.0))
    VARIANTS[f"{name}_dagger"] = VARIANTS[name] | dict(conv_stem=True)
    if name != "9":
        VARIANTS[f"{name}_dagger_384"] = VARIANTS[f"{name}_dagger"] | dict(sizes=LARGE)
INPUT_SIZE = {name: options.get("sizes", SMALL)[0] for name, options in VARIANTS.items()}
TIMM = "timm's validation table, parameters measured"
NOT_COUNTED = "the products of queries, keys, weights and values, which the published count leaves out"
PUBLISHED = {
    name: Published(params, gmacs, extra, top1, INPUT_SIZE[name], TIMM, NOT_COUNTED)
    for name, params, gmacs, extra, top1 in (
        ("ti", 7_014_800, 1.299, 0.272, 73.352),
        ("s", 26_856_272, 5.087, 0.544, 81.036),
        ("b", 105_025_232, 20.135, 1.088, 82.212),
        ("9", 8_553_296, 1.547, 0.303, 73.994),
        ("15", 27_528_464, 5.175, 0.633, 81.522),
        ("18", 43_271_408, 8.211, 0.843, 82.390),
        ("9_dagger", 8_776_592, 1.685, 0.303, 76.990),
        ("15_dagger", 28_209_008, 5.497, 0.633, 82.302),
        ("18_dagger", 44_266_976, 8.653, 0.843, 82.494),
        ("15_dagger_384", 28_500_080, None, 0.0, 83.842),
        ("18_dagger_384", 44_606_560, 25.305, 7.172, 84.198),
    )
}
POOLS = ("token", "avg")
STRIDES = {12: (4, 3, 1), 16: (4, 2, 2)}  # of the convolution stem, by patch size
PADDING = {12: (3, 0, 1), 16: (3, 1, 1)}
KERNELS = (7, 3, 3)


def fit(images: Float[Array, "b h w c"], size: tuple[int, int], crop: bool) -> Float[Array, "b h2 w2 c"]:
    """The image at a branch's size: resized or, with `crop` and where it is large enough, its centre."""
    extra = [n - s for n, s in zip(images.shape[1:3], size)]
    if extra == [0, 0]:
        return images
    if crop and min(extra) >= 0:
        top, left = (round(n / 2) for n in extra)
        return images[:, top : top + size[0], left : left + size[1]]
    return bicubic(images, size)


class ConvStem(nnx.Module):
    """Patch embedding of the dagger forms: 7x7, 3x3 and 3x3 convolutions with ReLU between."""

    def __init__(self, patch: int, channels: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if patch not in STRIDES:
            raise UserError(f"conv_stem is defined for patches of {list(STRIDES)} pixels, not {patch}")
        widths = (channels, dim // 4, dim // 2, dim)
        self.patch, self.dtype = patch, dtype
        self.convs = nnx.List(
            nnx.Conv(
                widths[i],
                widths[i + 1],
                (KERNELS[i],) * 2,
                strides=STRIDES[patch][i],
                padding=((PADDING[patch][i],) * 2,) * 2,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(3)
        )

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        for kernel, stride, pad in zip(KERNELS, STRIDES[self.patch], PADDING[self.patch]):
            size = tuple((n + 2 * pad - kernel) // stride + 1 for n in size)
        return size

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = self.convs[0](x.astype(self.dtype))
        return self.convs[2](jax.nn.relu(self.convs[1](jax.nn.relu(x))))


class Project(nnx.Module):
    """Linear(GELU(LN(c))): a class token into the width of another branch."""

    def __init__(self, d_in: int, d_out: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(d_in, eps=eps, dtype=dtype, rngs=rngs)
        self.linear = linear(d_in, d_out, dtype=dtype, rngs=rngs)

    def __call__(self, c: Float[Array, "b 1 d"]) -> Float[Array, "b 1 e"]:
        return self.linear(gelu("exact")(self.norm(c)))


class Fusion(nnx.Module):
    """Cross-attention of the first token to all of them, without an MLP."""

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool, eps: float, dropout: float, dtype, rngs: nnx.Rngs
    ):
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self, t: Float[Array, "b n d"], *, rate: Rate = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b 1 d"]:
        normed = self.norm(t)
        update = dropout(self.attn(normed[:, :1], normed, rngs=rngs), self.dropout, rngs)
        return t[:, :1] + drop_path(update, rate, rngs)


class MultiScaleBlock(nnx.Module):
    """Self-attention blocks within each branch, then the exchange of class tokens.

    `depth` has the number of blocks of each branch and, last, of fusions per branch (0 means 1).
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        depth: tuple[int, ...],
        num_heads: tuple[int, ...],
        mlp_ratio: tuple[float, ...],
        *,
        qkv_bias: bool,
        eps: float,
        dropout: float,
        attention: str,
        attention_options: dict,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(eps=eps, dtype=dtype, rngs=rngs)
        to = [(i + 1) % len(dims) for i in range(len(dims))]
        block = dict(gelu="exact", dropout=dropout, attention=attention, layer_scale=None)
        block["attention_options"] = attention_options
        self.branches = nnx.List(
            nnx.List(Block(dim, heads, mlp_ratio=ratio, **block, **common) for _ in range(n))
            for dim, heads, ratio, n in zip(dims, num_heads, mlp_ratio, depth)
        )
        self.project = nnx.List(Project(dims[i], dims[j], **common) for i, j in enumerate(to))
        fusion = dict(qkv_bias=qkv_bias, dropout=dropout, **common)
        self.fusion = nnx.List(
            nnx.List(Fusion(dims[j], num_heads[j], **fusion) for _ in range(max(1, depth[-1]))) for j in to
        )
        self.revert = nnx.List(Project(dims[j], dims[i], **common) for i, j in enumerate(to))

    def attend(
        self,
        xs: list[Float[Array, "b _ _"]],
        *,
        rates: tuple[float, ...],
        rngs: nnx.Rngs | None = None,
    ) -> list[Float[Array, "b _ _"]]:
        """Each branch through its own blocks; the j-th of any branch has stochastic depth `rates[j]`."""
        out = []
        for x, blocks in zip(xs, self.branches):
            for block, rate in zip(blocks, rates):
                x = block(x, drop_path=rate, rngs=rngs)
            out.append(x)
        return out

    def visit(
        self,
        xs: list[Float[Array, "b _ _"]],
        i: int,
        *,
        rate: float = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b 1 _"]:
        """The class token of branch i, in the next branch's width, after attending to its patches."""
        other = xs[(i + 1) % len(xs)]
        t = jnp.concatenate([self.project[i](xs[i][:, :1]), other[:, 1:]], axis=1)
        for fusion in self.fusion[i]:
            t = fusion(t, rate=rate, rngs=rngs)
        return t

    def __call__(
        self,
        xs: list[Float[Array, "b _ _"]],
        *,
        rates: tuple[float, ...],
        rngs: nnx.Rngs | None = None,
    ) -> list[Float[Array, "b _ _"]]:
        xs = self.attend(xs, rates=rates, rngs=rngs)
        tokens = [self.revert[i](self.visit(xs, i, rate=rates[-1], rngs=rngs)) for i in range(len(xs))]
        return [jnp.concatenate([c, x[:, 1:]], axis=1) for c, x in zip(tokens, xs)]


class CrossViT(nnx.Module):
    """CrossViT classifier over images of any size: every branch resizes them to its own.

    Args:
      sizes: working size (height, width) of each branch.
      patches: patch side of each branch.
      depth: for each multi-scale block, the number of blocks per branch and of fusions.
      conv_stem: three convolutions instead of one as patch embedding (the dagger forms).
      crop: a branch smaller than the image takes its centre instead of resizing (timm's crop_scale).
      pool: "token" classifies the class tokens, "avg" the mean over patch tokens (timm).
      attention, attention_options: token mixer inside the branches, and its own options.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        sizes: Sizes = SMALL,
        patches: tuple[int, ...] = (12, 16),
        channels: int = 3,
        dims: tuple[int, ...] = (192, 384),
        depth: tuple[tuple[int, ...], ...] = ((1, 4, 0),) * 3,
        num_heads: tuple[int, ...] = (6, 6),
        num_classes: int = 1000,
        mlp_ratio: tuple[float, ...] = (4.0, 4.0),
        conv_stem: bool = False,
        crop: bool = False,
        pool: str = "token",
        qkv_bias: bool = True,
        eps: float = 1e-6,
        attention: str = "softmax",
        attention_options: dict | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if pool not in POOLS:
            raise UserError(f"pool={pool!r} is unknown; choose one of {POOLS}")
        check_branches(sizes, patches, dims, num_heads, mlp_ratio, depth)
        if attention == "softmax":
            attention_options = dict(qkv_bias=qkv_bias) | dict(attention_options or {})
        self.sizes = tuple(tuple(size) for size in sizes)
        self.depth = tuple(tuple(d) for d in depth)
        self.crop, self.pool, self.dropout, self.drop_path, self.dtype = crop, pool, dropout, drop_path, dtype
        stem = dict(dtype=dtype, rngs=rngs)
        self.embed = nnx.List(
            ConvStem(p, channels, dim, **stem) if conv_stem else PatchEmbed((p, p), channels, dim, **stem)
            for p, dim in zip(patches, dims)
        )
        self.grids = tuple(
            embed.grid(size) if conv_stem else token_grid(size, embed.patch)
            for embed, size in zip(self.embed, self.sizes)
        )
        self.cls = nnx.List(position_table((dim,), rngs) for dim in dims)
        self.pos = nnx.List(
            position_table((1 + grid[0] * grid[1], dim), rngs) for grid, dim in zip(self.grids, dims)
        )
        self.blocks = nnx.List(
            MultiScaleBlock(
                tuple(dims),
                d,
                tuple(num_heads),
                tuple(mlp_ratio),
                qkv_bias=qkv_bias,
                eps=eps,
                dropout=dropout,
                attention=attention,
                attention_options=dict(attention_options or {}),
                dtype=dtype,
                rngs=rngs,
            )
            for d in self.depth
        )
        self.norm = nnx.List(LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) for dim in dims)
        self.head = nnx.List(nnx.Linear(dim, num_classes, rngs=rngs) for dim in dims)
        normal_linears(self, rngs)

    def patch_tokens(self, images: Float[Array, "b h w c"]) -> list[Float[Array, "b _ _"]]:
        """The embedded patches of every branch, before class tokens and positions."""
        fitted = (fit(images, size, self.crop) for size in self.sizes)
        return [flatten_grid(embed(x)) for embed, x in zip(self.embed, fitted)]

    def tokenize(self, images: Float[Array, "b h w c"]) -> list[Float[Array, "b _ _"]]:
        """The tokens of every branch, class token first, with positions."""
        out = []
        for x, cls, pos in zip(self.patch_tokens(images), self.cls, self.pos):
            first = jnp.broadcast_to(cls[...].astype(self.dtype)[None, None], (x.shape[0], 1, x.shape[2]))
            out.append(jnp.concatenate([first, x], axis=1) + pos[...].astype(self.dtype)[None])
        return out

    def rates(self) -> list[tuple[float, ...]]:
        """Stochastic depth of every multi-scale block: one rate per layer, the last also of its fusion."""
        lengths = [max(d[:-1]) + d[-1] for d in self.depth]
        rates = drop_path_rates(self.drop_path, sum(lengths))
        ends = np.cumsum(lengths)
        return [rates[end - n : end] for n, end in zip(lengths, ends)]

    def tokens(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _"]]:
        """Normalised tokens of every branch after the last block, class token first."""
        xs = [dropout(x, self.dropout, rngs) for x in self.tokenize(images)]
        for block, rates in zip(self.blocks, self.rates()):
            xs = block(xs, rates=rates, rngs=rngs)
        return [norm(x) for norm, x in zip(self.norm, xs)]

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The patch tokens of every branch on its grid, finest first."""
        xs = self.tokens(images, rngs=rngs)
        return [x[:, 1:].reshape(x.shape[0], *grid, x.shape[2]) for x, grid in zip(xs, self.grids)]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Patch tokens of the last (widest) branch: what another module attends to."""
        return self.tokens(images, rngs=rngs)[-1][:, 1:]

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": the branches' pooled tokens side by side (b, sum of dims), "logits"}."""
        xs = [x.astype(jnp.float32) for x in self.tokens(images, rngs=rngs)]
        pooled = [x[:, 0] if self.pool == "token" else x[:, 1:].mean(1) for x in xs]
        logits = jnp.stack([head(p) for head, p in zip(self.head, pooled)]).mean(0)
        return {"features": jnp.concatenate(pooled, axis=-1), "logits": logits}


def check_branches(sizes, patches, dims, num_heads, mlp_ratio, depth) -> None:
    """Raises UserError unless every option describes the same number of branches."""
    lengths = {
        "sizes": len(sizes),
        "patches": len(patches),
        "dims": len(dims),
        "num_heads": len(num_heads),
        "mlp_ratio": len(mlp_ratio),
    }
    if len(set(lengths.values())) > 1:
        raise UserError(f"each branch needs one entry in every option, but their lengths are {lengths}")
    if any(len(d) != len(dims) + 1 or min(d[:-1]) < 1 for d in depth):
        raise UserError(
            f"each entry of depth needs {len(dims)} positive numbers of blocks and one of fusions: {depth}"
        )


def create(variant: str, **overrides) -> CrossViT:
    """Builds "15", "18_dagger", "18_dagger_384", ...; any constructor argument can be overridden."""
    return CrossViT(**(VARIANTS[variant] | overrides))
