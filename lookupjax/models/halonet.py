"""HaloNet (arXiv 2103.12731, CVPR 2021): a ResNet whose 3x3 convolutions are blocked local attention.

    image (b, H, W, c) -> stem of stride 4 -> 4 stages at strides 4, 8, 16, 32 of bottlenecks:
      1x1 -> BN, act -> halo attention (or a 3x3 convolution) -> BN, act -> 1x1 -> BN;  + shortcut;  act
    -> [1x1 -> BN, act] -> mean -> head

The first block of a stage carries its stride. No code was released; the reference is timm (byobnet,
byoanet), whose hybrids use the attention late only: "26t", "33ts" (with squeeze-and-excitation), "50ts",
"eca_next26ts" (grouped convolutions, ECA), "regnetz_b" (no residual where the shape changes) and
"halo2bot50ts" (relative attention over the whole map at the end, so of fixed input size). "h0" ... "h7" are
the paper's table as two third-party ports agree on it; "h1_timm" is timm's h1, which has 8 heads everywhere.

Maps that a block does not divide (600 pixels of h7) are padded and the padding is masked: ours.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.halo import HaloAttention
from lookupjax.attention.relative import RelativeAttention, make_divisible
from lookupjax.errors import UserError
from lookupjax.layers.conv import ACTIVATIONS, ConvNorm
from lookupjax.layers.norm import BatchNorm
from lookupjax.layers.pool import avg_pool, max_pool
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import drop_path, drop_path_rates
from lookupjax.layers.squeeze import EfficientChannelGate, SqueezeExcite
from lookupjax.models.published import Published

KINDS = ("conv", "halo", "relative")
GATES = ("none", "se", "eca")
SHORTCUTS = ("conv", "average", "none")
POOLS = ("max", "max2", "average", "average2", "none")


class BlockSpec(NamedTuple):
    """One bottleneck.

    Attributes:
      kind: what stands between the 1x1 convolutions, of `KINDS`.
      width: output channels.
      ratio: inner channels over `width` (over the input channels with the model's `ratio_of_input`),
        to a multiple of 8.
      group_width: channels of a group of the 3x3 convolution, 0 for one group.
      gate: channel gate after the 3x3 convolution, of `GATES`.
      squeeze: hidden channels of the gate "se" over the inner ones.
      value_ratio: channels of the attention's output over the inner ones.
      attention: options of `HaloAttention` or `RelativeAttention`, with `num_heads`.
    """

    kind: str
    width: int
    stride: int = 1
    ratio: float = 1.0
    group_width: int = 0
    gate: str = "none"
    squeeze: float = 1 / 16
    value_ratio: float = 1.0
    attention: dict[str, Any] | None = None


Stage = tuple[BlockSpec, ...]


def stage(kinds: str, width: int, stride: int, **options) -> Stage:
    """A stage from one letter per block: c(onv), h(alo) or r(elative); the first has the stride."""
    names = {name[0]: name for name in KINDS}
    return tuple(
        BlockSpec(names[kind], width, stride if i == 0 else 1, **options) for i, kind in enumerate(kinds)
    )


def paper(
    block: int, halo: int, value: float, out: float, depth: int, final: int = 0, heads: tuple = (4, 8, 8, 8)
) -> dict[str, Any]:
    """A model of the paper's table: b, h, r_v, r_b, l_3, d_f."""
    stages = []
    for width, n, h, stride in zip((64, 128, 256, 512), (3, 3, depth, 3), heads, (1, 2, 2, 2)):
        attention = dict(num_heads=h, block=block, halo=halo, qk_ratio=1 / value)
        options = dict(ratio=1 / out, value_ratio=value, attention=attention)
        stages.append(stage("h" * n, int(width * out), stride, **options))
    return dict(stages=tuple(stages), final=final)


TIERED = dict(stem=(24, 32, 64), stem_kernel=3)
SILU = TIERED | dict(activation="silu")
UNPOOLED = SILU | dict(stem_pool="none")
H2, H3 = dict(num_heads=8, block=8, halo=2), dict(num_heads=8, block=8, halo=3)
QUARTER = dict(ratio=0.25, attention=H3)
SE, SE_Z = QUARTER | dict(gate="se"), dict(ratio=3.0, group_width=16, gate="se", squeeze=0.25)
ECA = dict(ratio=0.25, group_width=16, gate="eca", attention=H2 | dict(head_dim=16))
Z = SE_Z | dict(attention=dict(num_heads=8, block=7, halo=2, qk_ratio=0.33))
TINY = dict(ratio=0.5, attention=dict(num_heads=2, block=4, halo=1))
VARIANTS: dict[str, dict] = {
    "mu": dict(stem=(16,), stages=(stage("ch", 16, 1, gate="se", **TINY), stage("h", 32, 2, **TINY))),
    "h0": paper(8, 3, 1.0, 0.5, 7),
    "h1": paper(8, 3, 1.0, 1.0, 10),
    "h1_timm": paper(8, 3, 1.0, 1.0, 10, heads=(8, 8, 8, 8)),
    "h2": paper(8, 3, 1.0, 1.25, 11),
    "h3": paper(10, 3, 1.0, 1.5, 12, 1024),
    "h4": paper(12, 2, 1.0, 3.0, 12, 1280),
    "h5": paper(14, 2, 2.5, 2.0, 23, 1536),
    "h6": paper(8, 4, 3.0, 2.75, 24, 1536),
    "h7": paper(10, 3, 4.0, 3.5, 26, 2048),
    "26t": TIERED
    | dict(
        stages=(
            stage("cc", 256, 1, ratio=0.25),
            stage("cc", 512, 2, ratio=0.25),
            stage("ch", 1024, 2, ratio=0.25, attention=H2),
            stage("hh", 2048, 2, ratio=0.25, attention=H2),
        )
    ),
    "33ts": UNPOOLED
    | dict(
        final=1280,
        stages=(
            stage("cc", 256, 1, **SE),
            stage("cch", 512, 2, **SE),
            stage("cch", 1024, 2, **SE),
            stage("hh", 1536, 2, **(SE | dict(ratio=0.333))),
        ),
    ),
    "50ts": SILU
    | dict(
        stages=(
            stage("ccc", 256, 1, ratio=0.25),
            stage("ccch", 512, 2, ratio=0.25, attention=H3 | dict(num_heads=4)),
            stage("chchch", 1024, 2, **QUARTER),
            stage("chc", 2048, 2, **QUARTER),
        )
    ),
    "eca_next26ts": SILU
    | dict(
        stages=(
            stage("cc", 256, 1, **ECA),
            stage("cc", 512, 2, **ECA),
            stage("ch", 1024, 2, **ECA),
            stage("hh", 2048, 2, **ECA),
        )
    ),
    "regnetz_b": dict(
        stem=(32,),
        stem_kernel=3,
        stem_pool="none",
        activation="silu",
        final=1536,
        shortcut="none",
        ratio_of_input=True,
        linear_out=True,
        stages=(
            stage("cc", 48, 2, **Z),
            stage("cccccc", 96, 2, **Z),
            stage("ccchccchccch", 192, 2, **Z),
            stage("hh", 288, 2, **Z),
        ),
    ),
    "halo2bot50ts": UNPOOLED
    | dict(
        stages=(
            stage("ccc", 256, 1, ratio=0.25),
            stage("chch", 512, 2, **QUARTER),
            stage("chchch", 1024, 2, **QUARTER),
            stage("crc", 2048, 2, ratio=0.25, attention=dict(num_heads=4, size=8)),
        )
    ),
}
SIDES = {"mu": 32, "h3": 320, "h4": 384, "h5": 448, "h6": 512, "h7": 600, "regnetz_b": 224}
INPUT_SIZE = {name: (SIDES.get(name, 256),) * 2 for name in VARIANTS}
TIMM, PAPER = "timm results-imagenet.csv", "paper; counts of third-party ports"
UNREAD = "published: with every row of the position tables, also the unread ones, and BatchNorm"
LISTED = {  # parameters, accuracy, source, GMACs, GMACs of what is left out here
    "h0": (5_502_248, 77.9, PAPER, 2.40, 0.050),
    "h1": (8_101_352, 79.9, PAPER, 3.04, 0.057),
    "h2": (9_405_608, 80.4, PAPER, 3.37, 0.059),
    "h3": (11_842_792, 81.9, PAPER, 6.30, 0.109),
    "h4": (19_103_464, 83.3, PAPER, 12.17, 0.164),
    "h5": (30_718_952, 84.0, PAPER, 32.61, 0.339),
    "h6": (43_458_280, 84.4, PAPER, 53.20, 0.422),
    "h7": (67_434_728, 84.9, PAPER, None, 0.0),
    "h1_timm": (8_100_056, None, "timm (untrained)", 3.004, 0.057),
    "26t": (12_480_288, 79.134, TIMM, 3.194, 0.0),
    "33ts": (13_691_712, 80.976, TIMM, 3.552, 0.0),
    "50ts": (22_733_280, 81.640, TIMM, 5.301, 0.0),
    "eca_next26ts": (10_756_885, 79.518, TIMM, 2.441, 0.0),
    "regnetz_b": (11_680_072, 81.058, TIMM, 1.971, 0.0),
    "halo2bot50ts": (22_635_360, 82.084, TIMM, 5.021, 0.0),
}
PUBLISHED = {
    name: Published(
        params, gmacs, gmacs_extra=-unread, top1=top1, size=INPUT_SIZE[name], source=source,
        note=UNREAD if unread else "",
    )
    for name, (params, top1, source, gmacs, unread) in LISTED.items()
}  # fmt: skip


class Stem(nnx.Module):
    """Convolutions, the first of stride 2, and a pooling of stride 2 or, without, a stride in the last."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        *,
        kernel: int,
        pool: str,
        activation: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        strides = [2] + [1] * (len(widths) - 1)
        if pool == "none" and len(widths) > 1:
            strides[-1] = 2
        options = dict(padding=kernel // 2, activation=activation, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            ConvNorm(d_in, d_out, kernel, stride=stride, **options)
            for d_in, d_out, stride in zip((channels, *widths[:-1]), widths, strides)
        )
        self.pool = pool

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        for conv in self.convs:
            x = conv(x, train=train)
        if self.pool == "none":
            return x
        if self.pool.endswith("2"):
            return max_pool(x, 2) if self.pool == "max2" else avg_pool(x, 2)
        if self.pool == "max":
            return max_pool(x, 3, stride=2, padding=1)
        return avg_pool(x, 3, stride=2, padding=1, count_include_pad=False)


class Shortcut(nnx.Module):
    """What a block of another shape adds its branch to: 1x1 convolution, strided or after averaging 2x2."""

    def __init__(
        self, d_in: int, d_out: int, stride: int, average: bool, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.pool = stride if average else 1
        self.conv = ConvNorm(d_in, d_out, 1, stride=1 if average else stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        if self.pool > 1:
            x = avg_pool(x, 2, stride=self.pool, ceil_mode=True, count_include_pad=False)
        return self.conv(x, train=train)


def channel_gate(dim: int, spec: BlockSpec, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
    if spec.gate == "eca":
        return EfficientChannelGate(dim, dtype=dtype, rngs=rngs)
    hidden = make_divisible(dim * spec.squeeze, limit=0.0)
    return SqueezeExcite(dim, hidden, dtype=dtype, rngs=rngs)


class Convolution(nnx.Module):
    """The middle of a "conv" bottleneck: 3x3 -> BN, act -> gate."""

    def __init__(self, dim: int, spec: BlockSpec, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        groups = dim // spec.group_width if spec.group_width else 1
        options = dict(stride=spec.stride, padding=1, groups=groups, activation=activation)
        self.conv = ConvNorm(dim, dim, 3, **options, **common)
        self.gate: nnx.Module | None = None if spec.gate == "none" else channel_gate(dim, spec, **common)

    def __call__(self, x: Float[Array, "b h w d"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
        x = self.conv(x, train=train)
        return x if self.gate is None else self.gate(x)


class Attention(nnx.Module):
    """The middle of the other bottlenecks: attention -> BN, act."""

    def __init__(self, dim: int, spec: BlockSpec, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim_out = round(dim * spec.value_ratio)
        options = dict(dim_out=dim_out, out_proj=False, dtype=dtype, rngs=rngs) | dict(spec.attention or {})
        heads = options.pop("num_heads", 8)
        self.attn = (
            HaloAttention(dim, heads, stride=spec.stride, **options)
            if spec.kind == "halo"
            else RelativeAttention(dim, heads, **options)
        )
        self.norm = BatchNorm(dim_out, dtype=dtype, rngs=rngs)
        self.stride, self.activation = spec.stride, activation

    def attend(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 e"]:
        if isinstance(self.attn, HaloAttention):
            return self.attn.over_map(x)
        mixed = self.attn(flatten_grid(x), grid=x.shape[1:3]).reshape(*x.shape[:3], -1)
        return avg_pool(mixed, 2) if self.stride == 2 else mixed

    def __call__(self, x: Float[Array, "b h w d"], *, train: bool) -> Float[Array, "b h2 w2 e"]:
        return ACTIVATIONS[self.activation](self.norm(self.attend(x), train=train))


class Bottleneck(nnx.Module):
    """1x1, attention or 3x3, 1x1, with a residual connection."""

    def __init__(
        self,
        d_in: int,
        spec: BlockSpec,
        *,
        activation: str,
        shortcut: str,
        ratio_of_input: bool,
        linear_out: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        inner = make_divisible((d_in if ratio_of_input else spec.width) * spec.ratio)
        mixed = inner if spec.kind == "conv" else round(inner * spec.value_ratio)
        same = d_in == spec.width and spec.stride == 1
        self.residual = same or shortcut != "none"
        self.shortcut = (
            None
            if same or not self.residual
            else Shortcut(d_in, spec.width, spec.stride, shortcut == "average", **common)
        )
        self.conv1 = ConvNorm(d_in, inner, 1, activation=activation, **common)
        self.middle = (Convolution if spec.kind == "conv" else Attention)(inner, spec, activation, **common)
        self.conv3 = ConvNorm(mixed, spec.width, 1, **common)
        if self.shortcut is not None:
            self.conv3.norm.scale = nnx.Param(jnp.zeros((spec.width,)))
        self.activation, self.linear_out = activation, linear_out

    def __call__(
        self, x: Float[Array, "b h w c"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        train = rngs is not None
        y = self.middle(self.conv1(x, train=train), train=train)
        y = drop_path(self.conv3(y, train=train), rate, rngs)
        if self.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x, train=train))
        return y if self.linear_out else ACTIVATIONS[self.activation](y)


class HaloNet(nnx.Module):
    """HaloNet classifier over images of any size (but for "relative" blocks: up to their `size`).

    Args:
      stem, stem_kernel, stem_pool: widths of the stem's convolutions, their kernel, the pooling after them.
      stages: the blocks of each stage.
      final: width of a last 1x1 convolution, 0 for none.
      shortcut: of the blocks that change the shape, of `SHORTCUTS`; "none" leaves their branch alone.
      ratio_of_input: the blocks' inner width is a multiple of the input's instead of the output's.
      linear_out: no activation after the residual sum.
      dtype: compute dtype; parameters, softmax and norms' statistics stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        channels: int = 3,
        stem: tuple[int, ...] = (64,),
        stem_kernel: int = 7,
        stem_pool: str = "max",
        stages: tuple[Stage, ...] = VARIANTS["h1"]["stages"],
        final: int = 0,
        num_classes: int = 1000,
        activation: str = "relu",
        shortcut: str = "conv",
        ratio_of_input: bool = False,
        linear_out: bool = False,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        specs = [spec for stage in stages for spec in stage]
        checks = [("activation", activation, tuple(ACTIVATIONS)), ("shortcut", shortcut, SHORTCUTS)]
        checks += [("stem_pool", stem_pool, POOLS)]
        checks += [("a block's kind", spec.kind, KINDS) for spec in specs]
        checks += [("a block's gate", spec.gate, GATES) for spec in specs]
        for name, value, known in checks:
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        common = dict(dtype=dtype, rngs=rngs)
        self.drop_path, self.dtype = drop_path, dtype
        self.stem = Stem(channels, stem, kernel=stem_kernel, pool=stem_pool, activation=activation, **common)
        options = dict(activation=activation, shortcut=shortcut, ratio_of_input=ratio_of_input)
        options |= dict(linear_out=linear_out, **common)
        inputs = iter([stem[-1], *(spec.width for spec in specs)])
        self.stages = nnx.List(
            nnx.List(Bottleneck(next(inputs), spec, **options) for spec in stage) for stage in stages
        )
        width = final or specs[-1].width
        self.final = ConvNorm(specs[-1].width, final, 1, activation=activation, **common) if final else None
        self.head = nnx.Linear(width, num_classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, finest first."""
        rates = iter(drop_path_rates(self.drop_path, sum(len(stage) for stage in self.stages)))
        x, maps = self.stem(images.astype(self.dtype), train=rngs is not None), []
        for stage in self.stages:
            for block in stage:
                x = block(x, rate=next(rates), rngs=rngs)
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Positions of the last map: what another module attends to."""
        x = self.features(images, rngs=rngs)[-1]
        return flatten_grid(x if self.final is None else self.final(x, train=rngs is not None))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, d) pooled, "logits": (b, classes)}."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> HaloNet:
    """Builds "h0", ..., "h7", "26t", "50ts", ...; any constructor argument can be overridden."""
    return HaloNet(**(VARIANTS[variant] | overrides))
