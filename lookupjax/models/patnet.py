"""PATNet / PartialNet (arXiv 2503.03148, 2502.01303): partial convolution meets visual attention.

    image (b, h, w, 3) -> 4x4 patches, BN: (b, h/4, w/4, C)
    stage 1, 2, 3    x = x + mlp(PAT_ch(x))                    2x2 merging, BN between stages: C -> 2 C
    stage 4          x = x + PAT_sf(x);  x = x + mlp(x)
    mean over the map -> linear to 1280 -> activation -> classes

    PAT_ch, PAT_sf: the first C/4 channels go through a 3x3 convolution; the others through a channel
                    gate (PAT_ch, mean and spread of each channel) or self-attention (PAT_sf)
    mlp           : 1x1 to 2 C, BN, activation, 1x1 to C [, PAT_sp]
    PAT_sp        : the first C/2 channels times a spatial gate, the others through a 1x1 convolution

Reference: haiduo/PartialNet. The paper draws PAT_sp everywhere and a BN after the second 1x1; the released
configs have PAT_sp in T1 only and the code no such BN: `spatial_gate` and the variants follow the code.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.irpe import DistanceAttention
from lookupjax.errors import UserError
from lookupjax.layers.conv import ACTIVATIONS, ConvNorm, conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import BatchNorm, LayerNorm
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import drop_path, drop_path_rates
from lookupjax.models.published import Published

GELU, RELU = dict(activation="gelu"), dict(activation="relu")
SIZES: dict[str, dict] = {
    "mu": dict(dim=16, depths=(1, 1, 1, 1), feature_dim=32) | GELU,  # the smallest, for tests
    "t0": dict(dim=32, depths=(1, 2, 8, 2)) | GELU,
    "t1": dict(dim=48, depths=(1, 2, 8, 2)) | GELU,
    "t2": dict(dim=64, depths=(2, 2, 6, 4)) | RELU,
    "s": dict(dim=96, depths=(2, 2, 9, 4)) | RELU,
    "m": dict(dim=128, depths=(2, 3, 16, 4)) | RELU,
    "l": dict(dim=160, depths=(2, 3, 20, 4)) | RELU,
}
# "<size>" has the released config's spatial_gate, "<size>_sp" and "<size>_nosp" the other one
VARIANTS = {size: options | dict(spatial_gate=size in ("mu", "t1")) for size, options in SIZES.items()}
VARIANTS |= {
    f"{size}_{'nosp' if size == 't1' else 'sp'}": options | dict(spatial_gate=size != "t1")
    for size, options in SIZES.items()
    if size != "mu"
}
INPUT_SIZE = {"mu": (64, 64)}
SOURCE = "measured on haiduo/PartialNet; top-1 read off its plot"
PUBLISHED = {
    "t0": Published(3_486_160, 0.235, top1=73.9, source=SOURCE),
    "t0_sp": Published(3_558_240, 0.247, source=SOURCE),
    "t1": Published(6_144_552, 0.546, top1=78.1, source=SOURCE),
    "t1_nosp": Published(5_985_552, 0.521, source=SOURCE),
    "t2": Published(12_269_816, 1.039, top1=80.2, source=SOURCE),
    "t2_sp": Published(12_650_424, 1.087, source=SOURCE),
    "s": Published(28_013_304, 2.716, top1=82.1, source=SOURCE),
    "s_sp": Published(28_975_704, 2.843, source=SOURCE),
    "m": Published(59_179_000, 6.693, top1=83.1, source=SOURCE),
    "m_sp": Published(61_366_776, 7.022, source=SOURCE),
    "l": Published(100_641_336, 11.909, top1=83.9, source=SOURCE),
    "l_sp": Published(104_465_336, 12.502, source=SOURCE),
}

normal = nnx.initializers.normal(0.02)


def hard_sigmoid(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """min(max(x + 3, 0), 6) / 6."""
    return jax.nn.relu6(x + 3.0) / 6.0


def mean_and_spread(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*c"]:
    """Mean and unbiased standard deviation of every channel over the map, side by side, float32.

    Raises:
      UserError: for a map of one position, whose spread is undefined.
    """
    positions = x.shape[1] * x.shape[2]
    if positions < 2:
        raise UserError("PAT_ch needs maps of at least two positions; use a larger image")
    x = x.astype(jnp.float32)
    mean = x.mean((1, 2))
    variance = jnp.square(x - mean[:, None, None]).sum((1, 2)) / (positions - 1)
    varies = variance > 0  # the root has no gradient at zero
    spread = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    return jnp.concatenate([mean, spread], axis=-1)


class ChannelGate(nnx.Module):
    """x * hard_sigmoid(BN(W [mean, spread])), one gate per channel (SRM, arXiv 1903.10829, made dense)."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc = linear(2 * dim, dim, bias=False, rngs=rngs)
        self.norm = BatchNorm(dim, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        gate = hard_sigmoid(self.norm(self.fc(mean_and_spread(x)), train=train))
        return x * gate.astype(self.dtype)[:, None, None]


class PartialMixing(nnx.Module):
    """A 3x3 convolution of the first 1/n_div of the channels; what the others do is `attend`'s matter."""

    def __init__(self, dim: int, n_div: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if not 1 <= n_div <= dim:
            raise UserError(f"n_div={n_div} must lie between 1 and the width {dim}")
        self.width = dim // n_div
        self.conv = conv(
            self.width, self.width, 3, padding=1, bias=False, kernel_init=normal, dtype=dtype, rngs=rngs
        )

    def attend(self, x: Float[Array, "b h w u"], *, rngs: nnx.Rngs | None) -> Float[Array, "b h w u"]:
        """The untouched channels of FasterNet's partial convolution (arXiv 2303.03667)."""
        return x

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        touched, others = x[..., : self.width], x[..., self.width :]
        return jnp.concatenate([self.conv(touched), self.attend(others, rngs=rngs)], axis=-1)


class ChannelMixing(PartialMixing):
    """PAT_ch: the untouched channels are gated one by one, then normalised."""

    def __init__(self, dim: int, n_div: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(dim, n_div, dtype=dtype, rngs=rngs)
        self.attn = ChannelGate(dim - self.width, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(dim - self.width, dtype=dtype, rngs=rngs)

    def attend(self, x: Float[Array, "b h w u"], *, rngs: nnx.Rngs | None) -> Float[Array, "b h w u"]:
        return self.norm(self.attn(x, train=rngs is not None), train=rngs is not None)


class SelfMixing(PartialMixing):
    """PAT_sf: self-attention among the untouched channels, normalised before."""

    def __init__(
        self,
        dim: int,
        n_div: int,
        *,
        num_heads: int = 4,
        dropout: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, n_div, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim - self.width, eps=1e-6, dtype=dtype, rngs=rngs)
        self.attn = DistanceAttention(dim - self.width, num_heads, dropout=dropout, dtype=dtype, rngs=rngs)

    def attend(self, x: Float[Array, "b h w u"], *, rngs: nnx.Rngs | None) -> Float[Array, "b h w u"]:
        return self.attn(flatten_grid(self.norm(x)), grid=x.shape[1:3], rngs=rngs).reshape(x.shape)


class SpatialGate(nnx.Module):
    """PAT_sp: BN(a * hard_sigmoid(w a)) of the first half a, a 1x1 convolution of BN(b) of the second b."""

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        half = dim // 2
        self.width = dim - half
        self.gate = linear(self.width, 1, bias=False, dtype=dtype, rngs=rngs)
        self.gate_norm = BatchNorm(self.width, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(half, dtype=dtype, rngs=rngs)
        self.fc = linear(half, half, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        a, b = x[..., : self.width], x[..., self.width :]
        a = self.gate_norm(a * hard_sigmoid(self.gate(a)), train=train)
        return jnp.concatenate([a, self.fc(self.norm(b, train=train))], axis=-1)


class Mlp(nnx.Module):
    """1x1, BN, activation, 1x1 [, PAT_sp] [, a learned scale per channel]."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: str,
        spatial_gate: bool,
        layer_scale: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.fc1 = linear(dim, hidden, bias=False, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, dim, bias=False, dtype=dtype, rngs=rngs)
        self.gate = SpatialGate(dim, dtype=dtype, rngs=rngs) if spatial_gate else None
        self.scale = nnx.Param(jnp.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.activation = activation

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        x = self.fc2(ACTIVATIONS[self.activation](self.norm(self.fc1(x), train=train)))
        if self.gate is not None:
            x = self.gate(x, train=train)
        return x if self.scale is None else x * self.scale[...].astype(x.dtype)[None, None, None]


class Block(nnx.Module):
    """Partial mixing and the MLP. With `own_shortcut` (stage 4) the mixing is a residual of its own."""

    def __init__(self, mix: PartialMixing, mlp: Mlp, *, own_shortcut: bool):
        self.mix, self.mlp, self.own_shortcut = mix, mlp, own_shortcut

    def __call__(
        self, x: Float[Array, "b h w c"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        mixed = self.mix(x, rngs=rngs)
        if self.own_shortcut:  # without stochastic depth, as the reference has it
            x = mixed = x + mixed
        return x + drop_path(self.mlp(mixed, train=rngs is not None), rate, rngs)


class PATNet(nnx.Module):
    """PATNet classifier over images whose sides are at least 32 pixels (64 where a stage 3 map must vary).

    Args:
      dim: width of the first stage; each later one doubles it.
      depths: blocks of the four stages.
      n_div: 1/n_div of the channels are convolved.
      mlp_ratio, feature_dim: hidden width of the MLPs, and of the layer before the classes.
      activation: of the MLPs and the head.
      channel_attention: False leaves the untouched channels alone in every stage (FasterNet).
      spatial_gate: PAT_sp at the end of every MLP.
      num_heads: of PAT_sf; must divide the untouched channels of stage 4.
      layer_scale: initial scale of the MLPs' output, 0 for none.
      dropout: inside PAT_sf (the reference always has 0.1).
      dtype: compute dtype; parameters, statistics and softmax stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        channels: int = 3,
        dim: int = 64,
        depths: tuple[int, ...] = (2, 2, 6, 4),
        n_div: int = 4,
        num_classes: int = 1000,
        mlp_ratio: float = 2.0,
        feature_dim: int = 1280,
        activation: str = "relu",
        channel_attention: bool = True,
        spatial_gate: bool = False,
        num_heads: int = 4,
        layer_scale: float = 0.0,
        dropout: float = 0.1,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise UserError(f"activation={activation!r} is unknown; choose one of {tuple(ACTIVATIONS)}")
        common = dict(dtype=dtype, rngs=rngs)
        self.depths, self.drop_path, self.activation, self.dtype = tuple(depths), drop_path, activation, dtype
        dims = tuple(dim * 2**i for i in range(len(depths)))
        patches = dict(kernel_init=normal) | common
        self.embed = ConvNorm(channels, dim, 4, stride=4, **patches)
        self.merge = nnx.List(ConvNorm(d, 2 * d, 2, stride=2, **patches) for d in dims[:-1])
        last = len(depths) - 1
        attend = partial(SelfMixing, num_heads=num_heads, dropout=dropout)
        mixing = [ChannelMixing] * last + [attend] if channel_attention else [PartialMixing] * len(depths)
        mlp = dict(activation=activation, spatial_gate=spatial_gate, layer_scale=layer_scale) | common
        self.stages = nnx.List(
            nnx.List(
                Block(
                    mixing[i](d, n_div, **common), Mlp(d, int(d * mlp_ratio), **mlp), own_shortcut=i == last
                )
                for _ in range(depth)
            )
            for i, (d, depth) in enumerate(zip(dims, self.depths))
        )
        self.pre_head = linear(dims[-1], feature_dim, bias=False, rngs=rngs)
        self.head = linear(feature_dim, num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The maps after each stage, finest first: strides 4, 8, 16, 32."""
        x = self.embed(images.astype(self.dtype), train=rngs is not None)
        rates: Iterator[float] = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        maps = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.merge[i - 1](x, train=rngs is not None)
            for block in stage:
                x = block(x, rate=next(rates), rngs=rngs)
            maps.append(x)
        return maps

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns {"features": (b, feature_dim), "logits": (b, classes)}, float32."""
        last = self.features(images, rngs=rngs)[-1].astype(jnp.float32)
        pooled = ACTIVATIONS[self.activation](self.pre_head(last.mean((1, 2))))
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> PATNet:
    """Builds "t0", "t0_sp", ..., "l"; any constructor argument can be overridden."""
    return PATNet(**(VARIANTS[variant] | overrides))
