"""DaViT, Dual Attention Vision Transformer (arXiv 2204.03645, ECCV 2022).

    image (b, H, W, c) -> 7x7 convolution, stride 4, LN -> (b, H/4, W/4, C_1)
    4 stages at strides 4, 8, 16, 32, each of `depth` pairs of blocks:
      spatial block   x += dw(x);  x += window_attention(LN x);   x += dw(x);  x += mlp(LN x)
      channel block   x += dw(x);  x += channel_attention(LN x);  x += dw(x);  x += mlp(LN x)
      between stages  LN, then a 2x2 convolution of stride 2
    logits = head(LN(mean over positions))

dw is a depthwise 3x3 convolution: the only source of position. Both attentions are linear in the number
of positions, so any input size works; maps are padded at the bottom and right where windows or strides
do not divide them.

References: dingmyu/davit (the defaults) and timm's davit_*, which compute the same function. They differ in
the stochastic-depth rates (`drop_path_by`); timm adds the normalisation before pooling (`pool="norm_mean"`),
the overlapping merge (`merge_kernel=3`, the official `overlapped_patch`) and the second form of channel
attention (`channel_form="v2"`, `channel_scale="positions"`), the last two used by Florence-2's encoders.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention import create_mixer
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import Mlp, gelu
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import drop_path, drop_path_rates
from lookupjax.layers.windows import pad_to_multiple
from lookupjax.models.published import Published

T = dict(depths=(1, 1, 3, 1), dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24))
S = T | dict(depths=(1, 1, 9, 1))
B = S | dict(dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32))
L = S | dict(dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48))
H = S | dict(dims=(256, 512, 1024, 2048), num_heads=(8, 16, 32, 64))
G = dict(depths=(1, 1, 12, 3), dims=(384, 768, 1536, 3072), num_heads=(12, 24, 48, 96))
FLORENCE = dict(window=12, merge_kernel=3, channel_form="v2", channel_scale="positions")
VARIANTS: dict[str, dict] = {
    "mu": dict(depths=(1, 1), dims=(16, 32), num_heads=(2, 4), window=4, mlp_ratio=2.0),
    "t": T,
    "s": S,
    "b": B,
    "l": L,
    "l_384": L | dict(window=12),
    "h": H,
    "g": G,
    "b_fl": B | FLORENCE,
    "h_fl": H | FLORENCE,
}
INPUT_SIZE = {"mu": (32, 32), "l_384": (384, 384), "b_fl": (768, 768), "h_fl": (768, 768)}
OFFICIAL, COUNTED = "dingmyu/davit README", "counted with timm"
HEADLESS = "with a classifier of 1000 classes, the published encoder has none"
PUBLISHED = {
    "t": Published(params=28_360_168, gmacs=4.540, top1=82.8, source=OFFICIAL),
    "s": Published(params=49_745_896, gmacs=8.800, top1=84.2, source=OFFICIAL),
    "b": Published(params=87_954_408, gmacs=15.510, top1=84.6, source=OFFICIAL),
    "l": Published(params=196_811_752, source=COUNTED),
    "l_384": Published(params=196_811_752, gmacs=103, size=(384, 384), source="dingmyu/davit source"),
    "h": Published(params=348_922_856, source=COUNTED),
    "g": Published(params=1_406_470_120, source=COUNTED, note="90.4 % with 1.5 G extra pairs (paper)"),
    "b_fl": Published(params=90_370_048 + 1_025_000, size=(768, 768), source=COUNTED, note=HEADLESS),
    "h_fl": Published(params=360_636_416 + 2_049_000, size=(768, 768), source=COUNTED, note=HEADLESS),
}
POOLS = ("mean_norm", "norm_mean")
DROP_PATH_BY = ("block", "layer")
ATTENTIONS = {"spatial": "window", "channel": "channel"}


class Stem(nnx.Module):
    """7x7 convolution of stride 4 and LayerNorm."""

    def __init__(self, channels: int, dim: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(channels, dim, 7, stride=4, padding=3, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.norm(self.conv(pad_to_multiple(x.astype(self.dtype), (4, 4))[0]))


class Merge(nnx.Module):
    """LayerNorm and a convolution of stride 2, between stages."""

    def __init__(self, d_in: int, d_out: int, kernel: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(d_in, eps=eps, dtype=dtype, rngs=rngs)
        padding = kernel // 2 if kernel % 2 else 0
        self.conv = conv(d_in, d_out, kernel, stride=2, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.conv(pad_to_multiple(self.norm(x), (2, 2))[0])


class PositionConv(nnx.Module):
    """x + dw(x): a conditional position encoding; `act` puts a GELU on dw's output (the dense copies)."""

    def __init__(self, dim: int, act: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(dim, dim, 3, padding=1, groups=dim, dtype=dtype, rngs=rngs)
        self.act = act

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = self.conv(x)
        return x + (gelu("exact")(y) if self.act else y)


class Block(nnx.Module):
    """The frame that spatial and channel blocks share; `mlp_ratio=None` leaves the MLP out."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention: str,
        options: dict,
        *,
        mlp_ratio: float | None,
        cpe_act: bool,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        norm = dict(eps=eps, dtype=dtype, rngs=rngs)
        self.cpe1 = PositionConv(dim, cpe_act, dtype=dtype, rngs=rngs)
        self.attn_norm = LayerNorm(dim, **norm)
        self.attn = create_mixer(attention, dim, num_heads, dtype=dtype, rngs=rngs, **options)
        self.cpe2 = PositionConv(dim, cpe_act, dtype=dtype, rngs=rngs)
        self.mlp_norm = None if mlp_ratio is None else LayerNorm(dim, **norm)
        hidden = int(dim * (mlp_ratio or 0))
        self.mlp = None if mlp_ratio is None else Mlp(dim, hidden, gelu="exact", dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w d"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        x = self.cpe1(x)
        tokens = flatten_grid(self.attn_norm(x))
        mixed = self.attn(tokens, grid=x.shape[1:3], rngs=rngs).reshape(x.shape)
        x = self.cpe2(x + drop_path(mixed, rate, rngs))
        if self.mlp is None:
            return x
        return x + drop_path(self.mlp(self.mlp_norm(x), rngs=rngs), rate, rngs)


class Stage(nnx.Module):
    """Merge (but for the first stage) and `depth` layers, each one block per attention type."""

    def __init__(
        self,
        d_in: int | None,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        merge_kernel: int,
        attentions: tuple[tuple[str, dict], ...],
        mlp_ratio: float | None,
        cpe_act: bool,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(eps=eps, dtype=dtype, rngs=rngs)
        self.merge = None if d_in is None else Merge(d_in, dim, merge_kernel, **common)
        block = dict(mlp_ratio=mlp_ratio, cpe_act=cpe_act, **common)
        self.blocks = nnx.List(
            nnx.List(Block(dim, num_heads, name, options, **block) for name, options in attentions)
            for _ in range(depth)
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        rates: tuple[tuple[float, ...], ...],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h2 w2 d"]:
        """`rates[j][k]` is the stochastic depth of block k in layer j."""
        x = x if self.merge is None else self.merge(x)
        for layer, layer_rates in zip(self.blocks, rates):
            for block, rate in zip(layer, layer_rates):
                x = block(x, rate=rate, rngs=rngs)
        return x


class DaViT(nnx.Module):
    """DaViT classifier over images of any size.

    Args:
      depths: layers of each stage; a layer is one block per entry of `attention_types`.
      attention_types: order of the blocks in a layer, of "spatial" and "channel".
      window: side of the spatial attention's windows, in tokens.
      mlp_ratio: hidden width of the MLPs over `dims`; None leaves them out (official `ffn=False`).
      merge_kernel: 2, or 3 for overlapping merges.
      cpe_act: GELU on the output of the position convolutions.
      channel_form, channel_scale: see `attention.channel`.
      pool: order of the final LayerNorm and the mean over positions.
      drop_path_by: rates of stochastic depth grow from block to block ("block", official) or are shared by
        the blocks of a layer ("layer", timm).
      dtype: compute dtype; parameters, softmax and norms' statistics stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        channels: int = 3,
        dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (1, 1, 3, 1),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        num_classes: int = 1000,
        attention_types: tuple[str, ...] = ("spatial", "channel"),
        window: int = 7,
        mlp_ratio: float | None = 4.0,
        qkv_bias: bool = True,
        merge_kernel: int = 2,
        cpe_act: bool = False,
        channel_form: str = "v1",
        channel_scale: str = "head",
        pool: str = "mean_norm",
        eps: float = 1e-5,
        drop_path: float = 0.0,
        drop_path_by: str = "block",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("pool", pool, POOLS), ("drop_path_by", drop_path_by, DROP_PATH_BY)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        for name in attention_types:
            if name not in ATTENTIONS:
                raise UserError(f"attention type {name!r} is unknown; choose from {tuple(ATTENTIONS)}")
        if not len(dims) == len(depths) == len(num_heads):
            raise UserError(f"dims={dims}, depths={depths}, num_heads={num_heads} need one entry per stage")
        self.depths, self.types, self.pool = tuple(depths), tuple(attention_types), pool
        self.drop_path, self.drop_path_by, self.dtype = drop_path, drop_path_by, dtype
        options = {
            "spatial": dict(window=window, qkv_bias=qkv_bias),
            "channel": dict(form=channel_form, scale=channel_scale, qkv_bias=qkv_bias),
        }
        attentions = tuple((ATTENTIONS[name], options[name]) for name in attention_types)
        stage = dict(attentions=attentions, mlp_ratio=mlp_ratio, cpe_act=cpe_act, merge_kernel=merge_kernel)
        common = dict(eps=eps, dtype=dtype, rngs=rngs)
        self.stem = Stem(channels, dims[0], **common)
        self.stages = nnx.List(
            Stage(dims[i - 1] if i else None, dims[i], depths[i], num_heads[i], **stage, **common)
            for i in range(len(dims))
        )
        self.norm = LayerNorm(dims[-1], **common)
        self.head = nnx.Linear(dims[-1], num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def rates(self) -> list[tuple[tuple[float, ...], ...]]:
        """Stochastic depth of every block: [stage][layer][block]."""
        layers, blocks = sum(self.depths), len(self.types)
        if self.drop_path_by == "block":
            flat = drop_path_rates(self.drop_path, layers * blocks)
        else:
            flat = tuple(rate for rate in drop_path_rates(self.drop_path, layers) for _ in self.types)
        by_layer = [flat[j * blocks : (j + 1) * blocks] for j in range(layers)]
        starts = [sum(self.depths[:i]) for i in range(len(self.depths))]
        return [tuple(by_layer[start : start + n]) for start, n in zip(starts, self.depths)]

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, finest first."""
        x, maps = self.stem(images), []
        for stage, rates in zip(self.stages, self.rates()):
            x = stage(x, rates=rates, rngs=rngs)
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised positions of the last stage: what another module attends to."""
        return flatten_grid(self.norm(self.features(images, rngs=rngs)[-1]))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, d) pooled and normalised, "logits": (b, classes)}."""
        x = self.features(images, rngs=rngs)[-1]
        if self.pool == "mean_norm":
            pooled = self.norm(x.astype(jnp.float32).mean((1, 2))).astype(jnp.float32)
        else:
            pooled = self.norm(x).astype(jnp.float32).mean((1, 2))
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> DaViT:
    """Builds "t", "s", "b", ..., "b_fl"; any constructor argument can be overridden."""
    return DaViT(**(VARIANTS[variant] | overrides))
