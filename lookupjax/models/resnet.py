"""ResNet (arXiv 1512.03385) in torchvision's form, a backbone of other models and a baseline.

    image (b, H, W, c) -> 7x7 /2, BN, ReLU -> max pool 3x3 /2 -> (b, H/4, W/4, w)
      -> 4 stages of residual blocks -> (b, H/4, .., w e), (b, H/8, .., 2 w e), ... (b, H/32, .., 8 w e)
      -> global average -> linear               w: `width`; e: 1 (basic), 4 (bottleneck)

Reference: torchvision.models.resnet ("v1.5": the stride of a bottleneck is in its 3x3 convolution).
`run_stem` and `run_stage` let another model work between the stages. Differs: stochastic depth and
dropout as options.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.conv import ConvNorm
from lookupjax.layers.init import torch_linear
from lookupjax.layers.pool import max_pool
from lookupjax.layers.regularise import drop_path
from lookupjax.models.published import Published
from lookupjax.models.staged import Staged

VARIANTS: dict[str, dict] = {
    "mu": dict(block="bottleneck", depths=(1, 1, 1, 1), width=8),  # the smallest, for tests
    "18": dict(block="basic", depths=(2, 2, 2, 2)),
    "34": dict(block="basic", depths=(3, 4, 6, 3)),
    "50": dict(block="bottleneck", depths=(3, 4, 6, 3)),
    "101": dict(block="bottleneck", depths=(3, 4, 23, 3)),
    "152": dict(block="bottleneck", depths=(3, 8, 36, 3)),
    "50_32x4d": dict(block="bottleneck", depths=(3, 4, 6, 3), groups=32, group_width=4),
    "wide50_2": dict(block="bottleneck", depths=(3, 4, 6, 3), group_width=128),
}
INPUT_SIZE = {"mu": (64, 64)}
TORCHVISION = "torchvision, IMAGENET1K_V1"
PUBLISHED = {
    "18": Published(params=11_689_512, gmacs=1.814, top1=69.758, source=TORCHVISION),
    "34": Published(params=21_797_672, gmacs=3.664, top1=73.314, source=TORCHVISION),
    "50": Published(params=25_557_032, gmacs=4.089, top1=76.130, source=TORCHVISION),
    "101": Published(params=44_549_160, gmacs=7.801, top1=77.374, source=TORCHVISION),
    "152": Published(params=60_192_808, gmacs=11.514, top1=78.312, source=TORCHVISION),
    "50_32x4d": Published(params=25_028_904, gmacs=4.230, top1=77.618, source=TORCHVISION),
    "wide50_2": Published(params=68_883_240, gmacs=11.398, top1=78.468, source=TORCHVISION),
}
KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


BLOCKS = {"basic": 1, "bottleneck": 4}  # kind: output channels per channel of the stage


class Block(nnx.Module):
    """ReLU(shortcut(x) + convs(x)): basic 3x3, 3x3; bottleneck 1x1, 3x3, 1x1. BN after each, ReLU between.

    The stride is in the (first) 3x3 convolution; the shortcut is a 1x1 convolution where the shape changes.
    """

    def __init__(
        self,
        kind: str,
        d_in: int,
        width: int,
        *,
        stride: int,
        groups: int,
        group_width: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        d_out = width * BLOCKS[kind]
        if kind == "basic":
            rows = [(d_in, width, 3, stride, 1), (width, d_out, 3, 1, 1)]
        else:
            inner = int(width * group_width / 64) * groups
            rows = [(d_in, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, d_out, 1, 1, 1)]
        options = dict(kernel_init=KERNEL_INIT, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            ConvNorm(
                a, b, k, stride=s, padding=k // 2, groups=g, activation="relu" if last else "none", **options
            )
            for (a, b, k, s, g), last in zip(rows, [True] * (len(rows) - 1) + [False])
        )
        same = stride == 1 and d_in == d_out
        self.shortcut = None if same else ConvNorm(d_in, d_out, 1, stride=stride, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        train, branch = rngs is not None, x
        for layer in self.convs:
            branch = layer(branch, train=train)
        x = x if self.shortcut is None else self.shortcut(x, train=train)
        return jax.nn.relu(x + drop_path(branch, rate, rngs))


class ResNet(Staged):
    """ResNet, ResNeXt and Wide ResNet over images of any size.

    Args:
      block: "basic" or "bottleneck".
      depths: blocks of each stage; every stage after the first halves the map.
      width: channels of the stem and (inner, of a bottleneck) of the first stage; stages double them.
      groups, group_width: of the bottleneck's 3x3 convolution, whose width is `groups * group_width` in
        the first stage of a network of width 64 (ResNeXt 32x4d: 32, 4; Wide ResNet: 1, 128).
      num_classes: 0 for a backbone without head.
      dtype: compute dtype; parameters and statistics stay float32.
    """

    def __init__(
        self,
        *,
        block: str = "bottleneck",
        depths: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        groups: int = 1,
        group_width: int = 64,
        num_classes: int = 1000,
        channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if block not in BLOCKS:
            raise UserError(f"block={block!r} is unknown; choose one of {tuple(BLOCKS)}")
        if block == "basic" and (groups, group_width) != (1, 64):
            raise UserError("block='basic' has no groups or group_width; use block='bottleneck'")
        self.widths = (width, *(width * 2**i * BLOCKS[block] for i in range(len(depths))))
        self.depths, self.dropout, self.drop_path, self.dtype = tuple(depths), dropout, drop_path, dtype
        self.stem = ConvNorm(
            channels,
            width,
            7,
            stride=2,
            padding=3,
            activation="relu",
            kernel_init=KERNEL_INIT,
            dtype=dtype,
            rngs=rngs,
        )
        self.stages = nnx.List(
            nnx.List(
                Block(
                    block,
                    self.widths[i] if j == 0 else self.widths[i + 1],
                    width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    groups=groups,
                    group_width=group_width,
                    dtype=dtype,
                    rngs=rngs,
                )
                for j in range(depth)
            )
            for i, depth in enumerate(depths)
        )
        self.head = torch_linear(self.widths[-1], num_classes, rngs=rngs) if num_classes else None

    def run_stem(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The map that stage 0 reads, at 1/4 of the resolution."""
        x = self.stem(images.astype(self.dtype), train=rngs is not None)
        return max_pool(x, 3, stride=2, padding=1)


def create(variant: str, **overrides) -> ResNet:
    """Builds "18", "50", ...; any constructor argument can be overridden."""
    return ResNet(**(VARIANTS[variant] | overrides))
