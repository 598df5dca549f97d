"""OverLoCK (arXiv 2502.20087, CVPR 2025): a ConvNet that looks over the image before it looks closely.

    image (b, h, w, 3)
      Base-Net     stem /4 -> stage 1 -> /8 stage 2 -> /16 stage 3: x (b, h/16, w/16, C3)
      Overview-Net /32 stage 4: P (b, h/32, w/32, C4) -> 1x1 -> context r (C4/4 channels); aux head on P
      Focus-Net    (x, h = r enlarged) -> dynamic blocks at /16 -> downsample -> dynamic blocks at /32
      concat(x, h) -> 1x1 to 1024, BN, SiLU -> mean -> classes

    RepConvBlock: x = x + dw3(x);  x = scale(x) + GRN-MLP(SE(BN(large depthwise(LN x))))
    FocusBlock  : h = scale(h) + scale(r);  f = [x, h];  f = f + dw3(f);  x' = conv(LN f)
                  f = scale(f) + proj(silu gate(x') * SE(ContMix(LN f, LN f, x') + large depthwise(x')))
                  f = f + dw3(f);  f = scale(f) + GRN-MLP(LN f);  [x, h] = f

Reference: LMMMEng/OverLoCK. The large depthwise kernels are trained as sums of smaller ones;
`lookupjax.layers.reparam.merge_branches(model)` gives the equal model for export (`merged=True` builds it).
`ContMixBlock` is the plug-in form of the Focus block for other networks: one input, projected values.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.contmix import ContMix
from lookupjax.errors import UserError
from lookupjax.layers.channelwise import (
    ChannelAffine,
    GlobalResponseNorm,
    ResidualDepthwise,
    SqueezeExcite,
)
from lookupjax.layers.conv import ConvNorm, conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.norm import BatchNorm, LayerNorm
from lookupjax.layers.position import resize_grid
from lookupjax.layers.regularise import drop_path, drop_path_rates
from lookupjax.layers.reparam import DilatedReparam
from lookupjax.models.published import Published

VARIANTS: dict[str, dict] = {
    "mu": dict(
        depths=(1, 1, 1, 1),
        focus_depths=(1, 1),
        dims=(8, 16, 16, 32),
        kernels=(5, 5, 5, 5),
        focus_heads=(1, 2),
        small_kernel=3,
        projection=32,
    ),  # the smallest, for tests
    "xt": dict(depths=(2, 2, 3, 2), focus_depths=(6, 2), dims=(56, 112, 256, 336), focus_heads=(4, 6)),
    "t": dict(depths=(4, 4, 6, 2), focus_depths=(12, 2), dims=(64, 128, 256, 512), focus_heads=(4, 8)),
    "s": dict(depths=(6, 6, 8, 3), focus_depths=(16, 3), dims=(64, 128, 320, 512), focus_heads=(8, 16)),
    "b": dict(depths=(8, 8, 10, 4), focus_depths=(20, 4), dims=(80, 160, 384, 576), focus_heads=(6, 9)),
}
for name in ("xt", "t", "s", "b"):  # what the README counts: kernels merged, without the training head
    VARIANTS[f"{name}_merged"] = VARIANTS[name] | dict(merged=True, aux_head=False)
INPUT_SIZE = {"mu": (64, 64)}
SOURCE = "measured on LMMMEng/OverLoCK; top-1 of its README"
PUBLISHED = {
    "xt": Published(17_307_272, 2.864, top1=82.7, source=SOURCE),
    "t": Published(34_990_472, 5.997, top1=84.2, source=SOURCE),
    "s": Published(58_309_772, top1=84.8, source=SOURCE),
    "b": Published(98_012_968, top1=85.1, source=SOURCE),
    "xt_merged": Published(16_453_712, 2.688, top1=82.7, source=SOURCE),
    "t_merged": Published(33_467_040, 5.620, top1=84.2, source=SOURCE),
    "s_merged": Published(56_156_452, 9.846, top1=84.8, source=SOURCE),
    "b_merged": Published(94_942_528, 17.025, top1=85.1, source=SOURCE),
}

normal = nnx.initializers.normal(0.02)
norm = partial(LayerNorm, eps=1e-6)
pointwise = partial(conv, kernel=1, kernel_init=normal)


def squeeze_excite(dim: int, rngs: nnx.Rngs) -> SqueezeExcite:
    return SqueezeExcite(dim, max(16, dim // 8), rngs=rngs)


class Mlp(nnx.Module):
    """1x1, GELU, x + depthwise 3x3, global response norm, 1x1."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.fc1 = pointwise(dim, hidden, **common)
        self.depthwise = ResidualDepthwise(hidden, kernel_init=normal, **common)
        self.response = GlobalResponseNorm(hidden)
        self.fc2 = pointwise(hidden, dim, **common)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.fc2(self.response(self.depthwise(gelu("exact")(self.fc1(x)))))


class Residual(nnx.Module):
    """scale(x) + y, or with `on_branch` x + scale(y): a learned affine per channel, or none."""

    def __init__(self, dim: int, init: float | None, *, on_branch: bool):
        self.affine = None if init is None else ChannelAffine(dim, init)
        self.on_branch = on_branch

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        y: Float[Array, "b h w c"],
        *,
        rate: float,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "b h w c"]:
        if self.affine is not None and self.on_branch:
            y = self.affine(y)
        elif self.affine is not None:
            x = self.affine(x)
        return x + drop_path(y, rate, rngs)


class RepConvBlock(nnx.Module):
    """The block of Base-Net and Overview-Net: large depthwise convolution and MLP in one residual."""

    def __init__(
        self,
        dim: int,
        kernel: int,
        mlp_ratio: float,
        layer_scale: float | None,
        *,
        scale_branch: bool,
        merged: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.position = ResidualDepthwise(dim, kernel_init=normal, **common)
        self.norm = norm(dim, **common)
        self.large = DilatedReparam(dim, kernel, merged=merged, kernel_init=normal, **common)
        self.large_norm = BatchNorm(dim, **common)
        self.excite = squeeze_excite(dim, rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **common)
        self.residual = Residual(dim, layer_scale, on_branch=scale_branch)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        train = rngs is not None
        x = self.position(x)
        y = self.large_norm(self.large(self.norm(x), train=train), train=train)
        return self.residual(x, self.mlp(self.excite(y)), rate=rate, rngs=rngs)


class Fusion(nnx.Module):
    """[x, h] -> x': depthwise 3x3, BN, GELU, 1x1, global response norm."""

    def __init__(self, d_in: int, d_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.depthwise = conv(d_in, d_in, 3, padding=1, groups=d_in, kernel_init=normal, **common)
        self.norm = BatchNorm(d_in, **common)
        self.fc = pointwise(d_in, d_out, **common)
        self.response = GlobalResponseNorm(d_out)

    def __call__(self, f: Float[Array, "b h w e"], *, train: bool) -> Float[Array, "b h w c"]:
        return self.response(self.fc(gelu("exact")(self.norm(self.depthwise(f), train=train))))


class ContMixBlock(nnx.Module):
    """ContMix, gated, beside a large depthwise convolution, then an MLP.

    Args:
      dim: channels that are mixed.
      num_heads: half the number of dynamic kernels (groups).
      context_dim: channels of a context h concatenated behind x; 0 is the plug-in form, in which
        queries, keys and values all come from x and the values have a projection.
      layer_scale: initial scale of the residuals' affine, None for none.
      scale_branch: the affine acts on the branch and not on the skip path.
      merged: see `DilatedReparam`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel: int = 7,
        small_kernel: int = 5,
        mlp_ratio: float = 4.0,
        context_dim: int = 0,
        layer_scale: float | None = None,
        scale_branch: bool = True,
        merged: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        width, plug_in = dim + context_dim, context_dim == 0
        self.dim = dim
        self.position1 = ResidualDepthwise(width, kernel_init=normal, **common)
        self.norm1 = norm(width, **common)
        self.fusion = None if plug_in else Fusion(width, dim, **common)
        self.mixer = ContMix(
            dim,
            2 * num_heads,
            kernel_size=kernel,
            small_kernel=small_kernel,
            key_dim=dim if plug_in else context_dim,
            value_proj=plug_in,
            bias_init=0.02 if plug_in else 0.0,
            **common,
        )
        self.large = DilatedReparam(dim, kernel, merged=merged, kernel_init=normal, **common)
        self.large_norm = BatchNorm(dim, **common)
        self.excite = squeeze_excite(dim, rngs)
        self.gate = ConvNorm(dim, dim, 1, activation="silu", kernel_init=normal, **common)
        self.proj_norm = BatchNorm(dim, **common)
        self.proj = pointwise(dim, width, **common)
        self.residual1 = Residual(width, layer_scale, on_branch=scale_branch)
        self.position2 = ResidualDepthwise(width, kernel_init=normal, **common)
        self.norm2 = norm(width, **common)
        self.mlp = Mlp(width, int(dim * mlp_ratio), **common)
        self.residual2 = Residual(width, layer_scale, on_branch=scale_branch)

    def __call__(
        self, f: Float[Array, "b h w e"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w e"]:
        """f is x, or x and its context side by side."""
        train = rngs is not None
        f = self.position1(f)
        normed = self.norm1(f)
        x, context = normed[..., : self.dim], normed[..., self.dim :]
        value, key = (x, x) if self.fusion is None else (self.fusion(normed, train=train), context)
        y = self.mixer.mix_maps(x, key, value, train=train)
        y = y + self.large_norm(self.large(value, train=train), train=train)
        y = self.excite(y) * self.gate(value, train=train)
        f = self.residual1(f, self.proj(self.proj_norm(y, train=train)), rate=rate, rngs=rngs)
        f = self.position2(f)
        return self.residual2(f, self.mlp(self.norm2(f)), rate=rate, rngs=rngs)


class FocusBlock(nnx.Module):
    """A ContMixBlock over x and the running context h, which takes in the constant prior r before.

    The `first` block has h = r and nothing to take in.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, *, first: bool, **options):
        self.keep = None if first else ChannelAffine(context_dim)
        self.prior = None if first else ChannelAffine(context_dim)
        self.block = ContMixBlock(dim, num_heads, context_dim=context_dim, **options)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b h w e"],
        prior: Float[Array, "b h w e"],
        *,
        rate: float = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w e"]]:
        if self.keep is not None:
            context = self.keep(context) + self.prior(prior)
        f = self.block(jnp.concatenate([x, context], axis=-1), rate=rate, rngs=rngs)
        return f[..., : x.shape[-1]], f[..., x.shape[-1] :]


class Stem(nnx.Module):
    """Four 3x3 convolutions to a quarter of the size, each with BN, GELU between."""

    def __init__(self, channels: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        widths = (channels, dim // 2, dim // 2, dim, dim)
        self.convs = nnx.List(
            ConvNorm(
                widths[i],
                widths[i + 1],
                3,
                stride=2 - i % 2,
                padding=1,
                activation="gelu" if i < 3 else "none",
                kernel_init=normal,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(4)
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        for layer in self.convs:
            x = layer(x, train=train)
        return x


class Head(nnx.Module):
    """1x1 convolution, BN, SiLU, mean over the map, classes."""

    def __init__(self, d_in: int, dim: int, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj = ConvNorm(d_in, dim, 1, activation="silu", kernel_init=normal, dtype=dtype, rngs=rngs)
        self.fc = linear(dim, num_classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        pooled = self.proj(x, train=train).astype(jnp.float32).mean((1, 2))
        return pooled, self.fc(pooled)


class AuxHead(nnx.Module):
    """BN, mean over the map, classes: the Overview-Net's own loss in training."""

    def __init__(self, dim: int, num_classes: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(dim, rngs=rngs)
        self.fc = linear(dim, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        return self.fc(self.norm(x, train=train).mean((1, 2)))


class OverLoCK(nnx.Module):
    """OverLoCK classifier over images of any size.

    Args:
      depths: blocks of the Base-Net's three stages and of the Overview-Net.
      focus_depths, focus_heads, focus_mlp_ratios: of the Focus-Net's two stages.
      dims, kernels, mlp_ratios, layer_scale: per stage; the Focus-Net takes those of stages 3 and 4.
      small_kernel: the smaller of ContMix's two kernels.
      scale_branch: learned scales on the branches instead of the skip paths (the code's res_scale=False).
      projection: channels before the mean over the map.
      aux_head: a classifier on the Overview-Net's map, output "logits_aux", trained with weight 0.4.
      merged: the large kernels are single convolutions, for inference.
      dtype: compute dtype; parameters, statistics, softmax and resizing stay float32.
    """

    loss_heads: tuple[str, ...] = ("logits", "logits_aux")
    loss_weights: tuple[float, ...] = (1.0, 0.4)

    def __init__(
        self,
        *,
        channels: int = 3,
        depths: tuple[int, ...] = (4, 4, 6, 2),
        focus_depths: tuple[int, int] = (12, 2),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        kernels: tuple[int, ...] = (17, 15, 13, 7),
        num_classes: int = 1000,
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0),
        focus_heads: tuple[int, int] = (4, 8),
        focus_mlp_ratios: tuple[float, float] = (3.0, 3.0),
        small_kernel: int = 5,
        layer_scale: tuple[float | None, ...] = (None, None, 1.0, 1.0),
        scale_branch: bool = False,
        projection: int = 1024,
        aux_head: bool = True,
        merged: bool = False,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not len(depths) == len(dims) == len(kernels) == len(mlp_ratios) == len(layer_scale) == 4:
            raise UserError("depths, dims, kernels, mlp_ratios and layer_scale need four entries each")
        if focus_depths[0] < 1 or focus_depths[1] < 1:
            raise UserError(f"focus_depths={focus_depths}: both Focus stages need a block")
        common = dict(dtype=dtype, rngs=rngs)
        self.depths, self.focus_depths = tuple(depths), tuple(focus_depths)
        self.drop_path, self.dtype = drop_path, dtype
        context_dim = dims[3] // 4
        self.stem = Stem(channels, dims[0], **common)
        down = partial(ConvNorm, kernel=3, stride=2, padding=1, kernel_init=normal, **common)
        self.down = nnx.List(down(a, b) for a, b in itertools.pairwise(dims))
        block = dict(scale_branch=scale_branch, merged=merged) | common
        self.stages = nnx.List(
            nnx.List(RepConvBlock(*options, **block) for _ in range(depth))
            for depth, *options in zip(depths, dims, kernels, mlp_ratios, layer_scale)
        )
        self.context = pointwise(dims[3], context_dim, **common)
        self.focus_down, self.context_down = down(dims[2], dims[3]), down(context_dim, context_dim)
        self.focus = nnx.List(
            nnx.List(
                FocusBlock(
                    dims[2 + i],
                    context_dim,
                    focus_heads[i],
                    first=i == j == 0,
                    kernel=kernels[2 + i],
                    small_kernel=small_kernel,
                    mlp_ratio=focus_mlp_ratios[i],
                    layer_scale=layer_scale[2 + i],
                    **block,
                )
                for j in range(depth)
            )
            for i, depth in enumerate(focus_depths)
        )
        self.head = Head(dims[3] + context_dim, projection, num_classes, **common)
        self.aux = AuxHead(dims[3], num_classes, rngs=rngs) if aux_head else None
        if not aux_head:
            self.loss_heads, self.loss_weights = ("logits",), (1.0,)
        normal_linears(self, rngs)

    def rates(self) -> list[tuple[float, ...]]:
        """Stochastic depth of every block: four lists of Base- and Overview-Net, two of Focus-Net."""
        lengths = (*self.depths, *self.focus_depths)
        rates: Iterator[float] = iter(drop_path_rates(self.drop_path, sum(lengths)))
        return [tuple(next(rates) for _ in range(n)) for n in lengths]

    def overview(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The maps of the Base-Net's three stages and of the Overview-Net: strides 4, 8, 16, 32."""
        x = self.stem(images.astype(self.dtype), train=rngs is not None)
        maps = []
        for i, (stage, rates) in enumerate(zip(self.stages, self.rates())):
            if i:
                x = self.down[i - 1](x, train=rngs is not None)
            for block, rate in zip(stage, rates):
                x = block(x, rate=rate, rngs=rngs)
            maps.append(x)
        return maps

    def focus_maps(
        self,
        x: Float[Array, "b h w c"],
        overview: Float[Array, "b h2 w2 e"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> list[Float[Array, "b _ _ _"]]:
        """x and context side by side after each Focus stage (strides 16 and 32)."""
        train = rngs is not None
        prior = self.context(overview)
        rates = self.rates()[4:]
        context = enlarged = resize_grid(prior, x.shape[1:3], antialias=False)
        for block, rate in zip(self.focus[0], rates[0]):
            x, context = block(x, context, enlarged, rate=rate, rngs=rngs)
        middle = jnp.concatenate([x, context], axis=-1)
        x, context = self.focus_down(x, train=train), self.context_down(context, train=train)
        for block, rate in zip(self.focus[1], rates[1]):
            x, context = block(x, context, prior, rate=rate, rngs=rngs)
        return [middle, jnp.concatenate([x, context], axis=-1)]

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """Maps of strides 4, 8 (Base-Net), 16 and 32 (Focus-Net)."""
        maps = self.overview(images, rngs=rngs)
        return maps[:2] + self.focus_maps(maps[2], maps[3], rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, projection), "logits", "logits_aux" with `aux_head`}."""
        train = rngs is not None
        maps = self.overview(images, rngs=rngs)
        pooled, logits = self.head(self.focus_maps(maps[2], maps[3], rngs=rngs)[1], train=train)
        out = {"features": pooled, "logits": logits}
        return out if self.aux is None else out | {"logits_aux": self.aux(maps[3], train=train)}


def create(variant: str, **overrides) -> OverLoCK:
    """Builds "xt", "t_merged", ...; any constructor argument can be overridden."""
    return OverLoCK(**(VARIANTS[variant] | overrides))
