"""RegNetY (arXiv 2003.13678): ResNet-like stages of grouped bottlenecks with squeeze-and-excitation.

    image (b, H, W, c) -> 3x3 /2, BN, ReLU -> (b, H/2, W/2, 32)
      -> 4 stages, each halves the map: ReLU(x + 1x1(SE(3x3 grouped(1x1(x))))), no narrowing inside
      -> global average -> linear

Reference: torchvision.models.regnet. The squeeze is a quarter of the block's input width. `run_stem` and
`run_stage` let another model work between the stages. Differs: stochastic depth and dropout as options.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.conv import ConvNorm
from lookupjax.layers.regularise import drop_path
from lookupjax.layers.squeeze import SqueezeExcite
from lookupjax.models.published import Published
from lookupjax.models.staged import Staged

VARIANTS: dict[str, dict] = {
    "mu": dict(stem_width=8, widths=(16, 16, 24, 24), depths=(1, 1, 1, 1), group_widths=8),  # for tests
    "y400mf": dict(widths=(48, 104, 208, 440), depths=(1, 3, 6, 6), group_widths=8),
    "y800mf": dict(widths=(64, 144, 320, 784), depths=(1, 3, 8, 2), group_widths=16),
    "y1_6gf": dict(widths=(48, 120, 336, 888), depths=(2, 6, 17, 2), group_widths=24),
    "y3_2gf": dict(widths=(72, 216, 576, 1512), depths=(2, 5, 13, 1), group_widths=24),
    "y8gf": dict(widths=(224, 448, 896, 2016), depths=(2, 4, 10, 1), group_widths=56),
    "y16gf": dict(widths=(224, 448, 1232, 3024), depths=(2, 4, 11, 1), group_widths=112),
    "y32gf": dict(widths=(232, 696, 1392, 3712), depths=(2, 5, 12, 1), group_widths=232),
}
INPUT_SIZE = {"mu": (64, 64)}
TORCHVISION = "torchvision, IMAGENET1K_V1"
PUBLISHED = {
    "y400mf": Published(params=4_344_144, gmacs=0.402, top1=74.046, source=TORCHVISION),
    "y800mf": Published(params=6_432_512, gmacs=0.834, top1=76.420, source=TORCHVISION),
    "y1_6gf": Published(params=11_202_430, gmacs=1.612, top1=77.950, source=TORCHVISION),
    "y3_2gf": Published(params=19_436_338, gmacs=3.176, top1=78.948, source=TORCHVISION),
    "y8gf": Published(params=39_381_472, gmacs=8.473, top1=80.032, source=TORCHVISION),
    "y16gf": Published(params=83_590_140, gmacs=15.912, top1=80.424, source=TORCHVISION),
    "y32gf": Published(params=145_046_770, gmacs=32.280, top1=80.878, source=TORCHVISION),
}
KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nnx.Module):
    """ReLU(shortcut(x) + c(SE(b(a(x))))): 1x1, 3x3 grouped, 1x1, each with BN, ReLU after a and b."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        stride: int,
        group_width: int,
        squeeze: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(kernel_init=KERNEL_INIT, dtype=dtype, rngs=rngs)
        self.a = ConvNorm(d_in, d_out, 1, activation="relu", **options)
        groups = d_out // group_width
        self.b = ConvNorm(
            d_out, d_out, 3, stride=stride, padding=1, groups=groups, activation="relu", **options
        )
        self.se = SqueezeExcite(d_out, round(squeeze * d_in), dtype=dtype, rngs=rngs)
        self.c = ConvNorm(d_out, d_out, 1, **options)
        same = stride == 1 and d_in == d_out
        self.shortcut = None if same else ConvNorm(d_in, d_out, 1, stride=stride, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        train = rngs is not None
        y = self.c(self.se(self.b(self.a(x, train=train), train=train)), train=train)
        x = x if self.shortcut is None else self.shortcut(x, train=train)
        return jax.nn.relu(x + drop_path(y, rate, rngs))


class RegNet(Staged):
    """RegNetY over images of any size.

    Args:
      widths, depths: channels and blocks of each stage; every stage halves the map.
      group_widths: channels per group of the 3x3 convolution, one number or one per stage.
      squeeze: hidden width of squeeze-and-excitation, relative to the block's input.
      num_classes: 0 for a backbone without head.
      dtype: compute dtype; parameters and statistics stay float32.
    """

    def __init__(
        self,
        *,
        stem_width: int = 32,
        widths: tuple[int, ...] = (48, 104, 208, 440),
        depths: tuple[int, ...] = (1, 3, 6, 6),
        group_widths: int | tuple[int, ...] = 8,
        squeeze: float = 0.25,
        num_classes: int = 1000,
        channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        groups = (group_widths,) * len(widths) if isinstance(group_widths, int) else tuple(group_widths)
        if not len(widths) == len(depths) == len(groups):
            raise UserError(
                f"widths, depths and group_widths name different numbers of stages: {widths}, "
                f"{depths}, {group_widths}"
            )
        groups = tuple(min(group, width) for group, width in zip(groups, widths))
        for width, group in zip(widths, groups):
            if width % group:
                raise UserError(f"a stage of {width} channels cannot be cut into groups of {group}")
        self.widths = (stem_width, *widths)
        self.depths, self.dropout, self.drop_path, self.dtype = tuple(depths), dropout, drop_path, dtype
        both = dict(dtype=dtype, rngs=rngs)
        self.stem = ConvNorm(
            channels,
            stem_width,
            3,
            stride=2,
            padding=1,
            activation="relu",
            kernel_init=KERNEL_INIT,
            **both,
        )
        self.stages = nnx.List(
            nnx.List(
                Block(
                    self.widths[i] if j == 0 else width,
                    width,
                    stride=2 if j == 0 else 1,
                    group_width=group,
                    squeeze=squeeze,
                    **both,
                )
                for j in range(depth)
            )
            for i, (width, depth, group) in enumerate(zip(widths, depths, groups))
        )
        draw = nnx.initializers.normal(0.01)
        self.head = nnx.Linear(widths[-1], num_classes, kernel_init=draw, rngs=rngs) if num_classes else None

    def run_stem(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The map that stage 0 reads, at 1/2 of the resolution."""
        return self.stem(images.astype(self.dtype), train=rngs is not None)


def create(variant: str, **overrides) -> RegNet:
    """Builds "y400mf", "y800mf", ...; any constructor argument can be overridden."""
    return RegNet(**(VARIANTS[variant] | overrides))
