"""BiFormer (arXiv 2303.08810, CVPR 2023): a pyramid with bi-level routing attention.

    image (b, H, W, c) -> 3x3 /2, BN, GELU, 3x3 /2, BN -> (b, H/4, W/4, C_1)
    4 stages at strides 4, 8, 16, 32 (3x3 /2, BN between them):
      x += dw3x3(x);  x += attention(LN x);  x += mlp(LN x)
      attention: the top 1, 4, 16 of 7 x 7 regions in stages 1-3, all tokens in stage 4
    logits = head(mean(BN x))

Reference: rayleizhu/BiFormer. `layout="swin"` is its ablation model with Swin-T's layout ("stl": 4x4 patches,
2x2 merges with the norm before, no dw3x3), whose refactored form is "stl_nchw" (`pad="after"`, the local
term of stage 4 on the values). In the released models stage 4 has 8 heads whatever the width, no bias of
q, k, v, and its local term on the input. `topk` is the reference's: -2 all tokens with local term, -1
without, 0 convolutions instead. Sizes that the regions do not divide are padded always (its `auto_pad`).
"""

from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.bra import BiLevelRoutingAttention, EnhancedAttention
from lookupjax.attention.mixer import TokenMixer
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.norm import BatchNorm, LayerNorm
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import drop_path, drop_path_rates
from lookupjax.models.published import Published

SMALL = dict(depths=(4, 4, 18, 4))
SWIN = dict(
    depths=(2, 2, 6, 2), dims=(96, 192, 384, 768), mlp_ratios=(4.0,) * 4, layout="swin", position_kernel=0
)
VARIANTS: dict[str, dict] = {
    "mu": dict(
        depths=(1, 1, 1), dims=(16, 16, 32), topk=(1, 2, -2), head_dim=8, regions=2, mlp_ratios=(2.0,) * 3
    ),  # the smallest, for tests
    "t": dict(depths=(2, 2, 8, 2)),
    "s": SMALL,
    "b": SMALL | dict(dims=(96, 192, 384, 768)),
    "stl": SWIN,
    "stl_nchw": SWIN | dict(pad="after", local="values"),
}
INPUT_SIZE = {"mu": (32, 32)}
README = "rayleizhu/BiFormer README"
PUBLISHED = {
    "t": Published(params=13_142_760, gmacs=2.228, top1=81.4, source=README),
    "s": Published(params=25_536_232, gmacs=4.487, top1=83.8, source=README),
    "b": Published(params=56_804_968, gmacs=9.795, top1=84.3, source=README),
    "stl": Published(params=28_372_552, gmacs=4.590, top1=82.7, source=README),
    "stl_nchw": Published(params=28_372_552, gmacs=4.593, top1=82.7, source=README),
}
LAYOUTS = ("biformer", "swin")
NORMS = ("batch", "layer")


def norm_layer(kind: str, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> BatchNorm | LayerNorm:
    """The normalisation outside of the blocks."""
    if kind == "batch":
        return BatchNorm(dim, dtype=dtype, rngs=rngs)
    return LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)


def apply_norm(
    layer: BatchNorm | LayerNorm, x: Float[Array, "b h w c"], train: bool
) -> Float[Array, "b h w c"]:
    return layer(x, train=train) if isinstance(layer, BatchNorm) else layer(x)


class Stem(nnx.Module):
    """Image to first map: two 3x3 convolutions of stride 2, or one 4x4 of stride 4 ("swin")."""

    def __init__(self, channels: int, dim: int, layout: str, kind: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        swin = layout == "swin"
        widths = [channels, dim] if swin else [channels, dim // 2, dim]
        window = dict(kernel=4, stride=4) if swin else dict(kernel=3, stride=2, padding=1)
        self.convs = nnx.List(conv(a, b, **window, **common) for a, b in pairwise(widths))
        self.norms = nnx.List(norm_layer(kind, b, **common) for b in widths[1:])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        for i, (layer, after) in enumerate(zip(self.convs, self.norms)):
            x = apply_norm(after, layer(x if i == 0 else gelu("exact")(x)), train)
        return x


class Merge(nnx.Module):
    """Half the map: 3x3 convolution, then norm, or norm, then 2x2 convolution ("swin")."""

    def __init__(self, d_in: int, d_out: int, layout: str, kind: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm_first = layout == "swin"
        window = dict(kernel=2, stride=2) if self.norm_first else dict(kernel=3, stride=2, padding=1)
        self.conv = conv(d_in, d_out, **window, dtype=dtype, rngs=rngs)
        self.norm = norm_layer(kind, d_in if self.norm_first else d_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        if self.norm_first:
            return self.conv(apply_norm(self.norm, x, train))
        return apply_norm(self.norm, self.conv(x), train)


class ConvMixer(TokenMixer):
    """1x1, depthwise 5x5, 1x1: what `topk=0` puts in place of attention."""

    needs_grid = True

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv1 = conv(dim, dim, 1, dtype=dtype, rngs=rngs)
        self.conv2 = conv(dim, dim, 5, padding=2, groups=dim, dtype=dtype, rngs=rngs)
        self.conv3 = conv(dim, dim, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: tuple[int, ...], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        x = x.reshape(x.shape[0], *grid, -1)
        return self.tap("output", flatten_grid(self.conv3(self.conv2(self.conv1(x)))))


class LocalMlp(nnx.Module):
    """fc2(GELU(fc1 x)) on a map, with a depthwise 3x3 convolution after fc1 if `local`."""

    def __init__(self, dim: int, hidden: int, local: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.fc1 = linear(dim, hidden, **common)
        self.local = conv(hidden, hidden, 3, padding=1, groups=hidden, **common) if local else None
        self.fc2 = linear(hidden, dim, **common)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        hidden = self.fc1(x)
        hidden = hidden if self.local is None else self.local(hidden)
        return self.fc2(gelu("exact")(hidden))


class Block(nnx.Module):
    """Position convolution, attention, MLP; norms before the branches or (not `pre_norm`) after the sums."""

    def __init__(
        self,
        dim: int,
        *,
        topk: int,
        routing: dict,
        enhanced: dict,
        hidden: int,
        mlp_local: bool,
        position_kernel: int,
        pre_norm: bool,
        layer_scale: float | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.position = (
            conv(dim, dim, position_kernel, padding=position_kernel // 2, groups=dim, **common)
            if position_kernel
            else None
        )
        self.attn_norm = LayerNorm(dim, eps=1e-6, **common)
        self.attn: nnx.Module
        if topk > 0:
            self.attn = BiLevelRoutingAttention(dim, topk=topk, **routing, **common)
        elif topk == 0:
            self.attn = ConvMixer(dim, **common)
        else:
            local = enhanced if topk == -2 else dict(local="none")
            self.attn = EnhancedAttention(dim, 8, **local, **common)
        self.mlp_norm = LayerNorm(dim, eps=1e-6, **common)
        self.mlp = LocalMlp(dim, hidden, mlp_local, **common)
        self.gamma1 = None if layer_scale is None else nnx.Param(jnp.full((dim,), layer_scale))
        self.gamma2 = None if layer_scale is None else nnx.Param(jnp.full((dim,), layer_scale))
        self.pre_norm = pre_norm

    def __call__(
        self, x: Float[Array, "b h w d"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        def attend(y: Array) -> Array:
            return self.attn(flatten_grid(y), grid=y.shape[1:3], rngs=rngs).reshape(y.shape)

        x = x if self.position is None else x + self.position(x)
        for normalise, branch, gamma in (
            (self.attn_norm, attend, self.gamma1),
            (self.mlp_norm, self.mlp, self.gamma2),
        ):
            update = branch(normalise(x) if self.pre_norm else x)
            update = update if gamma is None else update * gamma[...].astype(update.dtype)[None, None, None]
            x = x + drop_path(update, rate, rngs)
            x = x if self.pre_norm else normalise(x)
        return x


class BiFormer(nnx.Module):
    """BiFormer classifier over images of any size.

    Args:
      topk: regions that each region of a stage attends to, or 0, -1, -2 (see the file's head).
      regions: S, the regions on a side, of all stages or of each.
      head_dim: channels of a head of the routed attention's queries.
      qk_dims: widths of queries and keys of the stages, default `dims`.
      pad, local_kernel, kv_pool, kv_sizes, soft_routing, routing_gradient, routing_proj, out_proj: see
        `attention.bra`; `kv_sizes` has one entry per stage.
      local, full_kernel: what stage 4's local term sees, "input" or "values"; its kernel, default
        `local_kernel`.
      mlp_local: depthwise convolutions inside the MLPs.
      position_kernel: of the depthwise convolution before attention, 0 for none.
      pre_norm, layer_scale: norm before the branches; initial value of learned scales on them.
      layout, norm: "biformer" or "swin"; "batch" or "layer" outside of the blocks.
      dtype: compute dtype; parameters, softmax, routing and norms' statistics stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        channels: int = 3,
        dims: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 8, 2),
        topk: tuple[int, ...] = (1, 4, 16, -2),
        num_classes: int = 1000,
        regions: int | tuple[int, ...] = 7,
        head_dim: int = 32,
        qk_dims: tuple[int, ...] | None = None,
        mlp_ratios: tuple[float, ...] = (3.0, 3.0, 3.0, 3.0),
        mlp_local: bool = False,
        local: str = "input",
        local_kernel: int = 5,
        full_kernel: int | None = None,
        position_kernel: int = 3,
        pad: str = "before",
        kv_pool: str = "none",
        kv_sizes: tuple[int, ...] | None = None,
        soft_routing: bool = False,
        routing_gradient: bool = False,
        routing_proj: bool = False,
        out_proj: bool = True,
        pre_norm: bool = True,
        layer_scale: float | None = None,
        layout: str = "biformer",
        norm: str = "batch",
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("layout", layout, LAYOUTS), ("norm", norm, NORMS)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        if not len(dims) == len(depths) == len(topk) == len(mlp_ratios):
            raise UserError(
                f"dims={dims}, depths={depths}, topk={topk}, mlp_ratios={mlp_ratios} need one entry per stage"
            )
        n = len(dims)
        regions = (regions,) * n if isinstance(regions, int) else regions
        qk_dims, kv_sizes = qk_dims or dims, kv_sizes or (4,) * n
        self.drop_path, self.dtype = drop_path, dtype
        common = dict(dtype=dtype, rngs=rngs)
        routing: dict[str, Any] = dict(
            pad=pad,
            local_kernel=local_kernel,
            kv_pool=kv_pool,
            soft_routing=soft_routing,
            routing_gradient=routing_gradient,
            routing_proj=routing_proj,
            out_proj=out_proj,
        )
        block: dict[str, Any] = dict(
            enhanced=dict(local=local, local_kernel=local_kernel if full_kernel is None else full_kernel),
            mlp_local=mlp_local,
            position_kernel=position_kernel,
            pre_norm=pre_norm,
            layer_scale=layer_scale,
        )

        def stage(i: int) -> nnx.List:
            own = dict(num_heads=qk_dims[i] // head_dim, qk_dim=qk_dims[i], regions=regions[i])
            options = block | dict(routing=routing | own | dict(kv_size=kv_sizes[i]), topk=topk[i])
            hidden = int(dims[i] * mlp_ratios[i])
            return nnx.List(Block(dims[i], hidden=hidden, **options, **common) for _ in range(depths[i]))

        self.stem = Stem(channels, dims[0], layout, norm, **common)
        self.merges = nnx.List(Merge(a, b, layout, norm, **common) for a, b in pairwise(dims))
        self.stages = nnx.List(stage(i) for i in range(n))
        self.norm = norm_layer(norm, dims[-1], **common)
        self.head = nnx.Linear(dims[-1], num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, finest first."""
        rates = iter(drop_path_rates(self.drop_path, sum(len(blocks) for blocks in self.stages)))
        train, maps = rngs is not None, []
        x = self.stem(images.astype(self.dtype), train=train)
        for i, blocks in enumerate(self.stages):
            x = x if i == 0 else self.merges[i - 1](x, train=train)
            for block in blocks:
                x = block(x, rate=next(rates), rngs=rngs)
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens of the last stage: what another module attends to."""
        x = self.features(images, rngs=rngs)[-1]
        return flatten_grid(apply_norm(self.norm, x, rngs is not None))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, d) mean of the normalised tokens, "logits": (b, classes)}."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> BiFormer:
    """Builds "t", "s", "b", "stl", "stl_nchw"; any constructor argument can be overridden."""
    return BiFormer(**(VARIANTS[variant] | overrides))
