"""The ResNet of hybrid ViTs (BiT, arXiv 1912.11370): weight-standardised convolutions and GroupNorm.

    images -> 7x7 stride 2, GN, ReLU, 3x3 max pool stride 2 -> stages of bottlenecks -> map

Not pre-activated; every padding is "SAME", which for stride 2 puts the odd pixel at the far side.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.norm import GroupNorm

SETTINGS = {  # form: (epsilon, whether it stands under the root with the variance; epsilon of GroupNorm)
    "google": (1e-5, False, 1e-6),  # (w - mean) / (std + eps)
    "timm": (1e-8, True, 1e-5),  # (w - mean) / sqrt(var + eps)
}


class StdConv(nnx.Module):
    """A convolution whose kernel is standardised per output channel (arXiv 1903.10520); no bias."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        kernel: int,
        *,
        stride: int = 1,
        form: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (kernel, kernel, d_in, d_out)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.stride, self.form, self.dtype = stride, form, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        eps, inside, _ = SETTINGS[self.form]
        kernel = self.kernel[...]
        kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(kernel).mean((0, 1, 2), keepdims=True)
        kernel = kernel / (jnp.sqrt(variance + eps) if inside else jnp.sqrt(variance) + eps)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Bottleneck(nnx.Module):
    """relu(shortcut(x) + GN(1x1(relu(GN(3x3(relu(GN(1x1(x))))))))), the stride in the 3x3 convolution."""

    def __init__(self, d_in: int, width: int, *, stride: int, form: str, dtype: DTypeLike, rngs: nnx.Rngs):
        conv = dict(form=form, dtype=dtype, rngs=rngs)
        norm = dict(eps=SETTINGS[form][2], dtype=dtype, rngs=rngs)
        d_out = 4 * width
        self.conv1, self.gn1 = StdConv(d_in, width, 1, **conv), GroupNorm(width, **norm)
        self.conv2, self.gn2 = StdConv(width, width, 3, stride=stride, **conv), GroupNorm(width, **norm)
        self.conv3, self.gn3 = StdConv(width, d_out, 1, **conv), GroupNorm(d_out, **norm)
        projects = d_in != d_out or stride != 1
        self.conv_proj = StdConv(d_in, d_out, 1, stride=stride, **conv) if projects else None
        self.gn_proj = GroupNorm(d_out, **norm) if projects else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = jax.nn.relu(self.gn1(self.conv1(x)))
        y = jax.nn.relu(self.gn2(self.conv2(y)))
        y = self.gn3(self.conv3(y))
        return jax.nn.relu(y + (x if self.conv_proj is None else self.gn_proj(self.conv_proj(x))))


def _halved(size: tuple[int, ...], times: int = 1) -> tuple[int, ...]:
    """Each length after `times` strides of 2 with SAME padding."""
    return tuple(-(-n // 2**times) for n in size)


class ResNetStem(nnx.Module):
    """Root and stages.

    Args:
      units: bottlenecks per stage, such as (3, 4, 9); () is the root alone.
      width: channels of the root; stage i works at width 2^i and gives 4 times as many.
      form: "google" or "timm", whose epsilons differ.
    """

    def __init__(
        self,
        channels: int,
        units: tuple[int, ...],
        *,
        width: int = 64,
        form: str = "google",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if form not in SETTINGS:
            raise UserError(f"resnet_form={form!r} is unknown; choose one of {tuple(SETTINGS)}")
        options = dict(form=form, dtype=dtype, rngs=rngs)
        self.conv_root = StdConv(channels, width, 7, stride=2, **options)
        self.gn_root = GroupNorm(width, eps=SETTINGS[form][2], dtype=dtype, rngs=rngs)
        d_in, stages = width, []
        for stage, count in enumerate(units):
            blocks = []
            for unit in range(count):
                stride = 2 if stage > 0 and unit == 0 else 1
                blocks.append(Bottleneck(d_in, width * 2**stage, stride=stride, **options))
                d_in = 4 * width * 2**stage
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.d_out = d_in

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The map's size for images of `size`: the root halves it twice, every stage but the first once."""
        return _halved(size, 2 + max(len(self.stages) - 1, 0))

    def macs(self, size: tuple[int, ...]) -> int:
        """Multiply-accumulates for one image of `size`."""
        total = math.prod(_halved(size)) * self.conv_root.kernel.size
        size = _halved(size, 2)
        for block in (block for stage in self.stages for block in stage):
            before = math.prod(size)
            size = _halved(size) if block.conv2.stride == 2 else size
            after = [block.conv2, block.conv3] + ([] if block.conv_proj is None else [block.conv_proj])
            total += before * block.conv1.kernel.size
            total += math.prod(size) * sum(conv.kernel.size for conv in after)
        return total

    def root(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = jax.nn.relu(self.gn_root(self.conv_root(images)))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = self.root(images)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x
