"""MEDUSA (arXiv 2110.06063): one body looks at the whole image, light heads guide every scale of a CNN.

    body   image (b, H, W, c) -> three convolutions /2 down, three up with skips -> G (b, H, W, g)
    trunk  image -> stem -> stages; after stage j, with its map F (b, h_j, w_j, C_j):
             A_j = sigmoid(resize(1x1 convolution of G))          global attention (b, h_j, w_j, 1)
             F = F * A_j
             L_j = sigmoid(1x1(ReLU(3x3([F, A_j]))))              local attention (b, h_j, w_j, C_j)
             F = F * L_j + F
    logits = linear(mean of the last F)

The body runs once and its full-resolution map is resized anew for every scale. The authors' code is not
public: the equations are our data sheet's reading. The paper's trunk is ResNet-50 with attention after each
of its four stages, its body a U-Net trained beforehand to segment lungs. `attention` switches either part
off for comparison; `gate="residual"` (1 + A_j) or a positive `gate_bias` help training from scratch.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.mixer import Tapped
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.init import torch_linear
from lookupjax.layers.position import resize_grid
from lookupjax.layers.regularise import dropout
from lookupjax.models.resnet import ResNet

VARIANTS: dict[str, dict] = {
    "mu": dict(trunk="plain", widths=(8, 12, 16), body_width=6, body_channels=5),  # the smallest, for tests
    "plain": dict(trunk="plain", widths=(32, 64, 128, 256)),
    "resnet50": dict(trunk="resnet", depths=(3, 4, 6, 3)),
}
INPUT_SIZE = {"mu": (64, 64)}
TRUNKS = ("plain", "resnet")
PARTS = ("both", "global", "local", "none")
GATES = ("product", "residual")


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Bilinear at half-pixel centres, without antialias (PyTorch, align_corners False)."""
    return resize_grid(x, size, antialias=False)


class Plain(nnx.Module):
    """A trunk of stride-2 3x3 convolutions with ReLU: the stem, then one per stage."""

    def __init__(self, widths: tuple[int, ...], *, channels: int, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(stride=2, padding=1, dtype=dtype, rngs=rngs)
        self.widths, self.dtype = (widths[0], *widths), dtype
        self.stem = conv(channels, widths[0], 3, **common)
        self.stages = nnx.List(conv(a, b, 3, **common) for a, b in zip(self.widths, widths))

    def run_stem(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The map that stage 0 reads."""
        return jax.nn.relu(self.stem(images.astype(self.dtype)))

    def run_stage(
        self, index: int, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Stage `index`."""
        return jax.nn.relu(self.stages[index](x))


class Body(nnx.Module):
    """The encoder-decoder that sees the image: (b, H, W, c) -> (b, H, W, g), H and W of any size."""

    def __init__(self, channels: int, width: int, d_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        common = dict(padding=1, dtype=dtype, rngs=rngs)
        self.down = nnx.List(
            conv(a, b, 3, stride=2, **common)
            for a, b in ((channels, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.up = nnx.List(
            conv(a, b, 3, **common)
            for a, b in ((4 * width, 2 * width), (4 * width, width), (2 * width, d_out))
        )
        self.dtype = dtype

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w g"]:
        e = [images.astype(self.dtype)]
        for layer in self.down:
            e.append(jax.nn.relu(layer(e[-1])))
        _, e1, e2, e3 = e
        d3 = jax.nn.relu(self.up[0](resize(e3, e2.shape[1:3])))
        d2 = jax.nn.relu(self.up[1](jnp.concatenate([d3, e2], axis=-1)))
        d1 = jax.nn.relu(self.up[2](jnp.concatenate([resize(d2, e1.shape[1:3]), e1], axis=-1)))
        return resize(d1, images.shape[1:3])


class LocalAttention(nnx.Module):
    """sigmoid(1x1(ReLU(3x3([F, A])))): a gate per position and channel, informed by the global one."""

    def __init__(self, dim: int, extra: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.reduce = conv(dim + extra, dim // 4, 3, padding=1, dtype=dtype, rngs=rngs)
        self.expand = conv(dim // 4, dim, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], gate: Float[Array, "b h w 1"] | None
    ) -> Float[Array, "b h w c"]:
        seen = x if gate is None else jnp.concatenate([x, gate], axis=-1)
        return jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(seen))))


class MEDUSA(Tapped):
    """A convolutional classifier with MEDUSA's attention, over images of at least 8 x 8 pixels.

    The tap "gate" shows (and replaces) the global attention A_j of each stage in turn.

    Args:
      trunk: "resnet" (with `depths`, bottleneck blocks of `width`) or "plain" (with `widths`).
      body_width, body_channels: width w of the body's first level, channels g of its map.
      attention: "both", "global", "local" or "none".
      gate: "product" F A or "residual" F (1 + A).
      gate_bias: initial bias of the global heads; 2 opens the gates to 0.88.
      dtype: compute dtype; parameters, resizing and statistics stay float32.

    Raises:
      UserError: for an unknown trunk, attention or gate.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        trunk: str = "resnet",
        depths: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        channels: int = 3,
        num_classes: int = 1000,
        body_width: int = 16,
        body_channels: int = 16,
        attention: str = "both",
        gate: str = "product",
        gate_bias: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (
            ("trunk", trunk, TRUNKS),
            ("attention", attention, PARTS),
            ("gate", gate, GATES),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        common = dict(dtype=dtype, rngs=rngs)
        self.gate, self.dropout = gate, dropout
        if trunk == "plain":
            self.trunk: Plain | ResNet = Plain(tuple(widths), channels=channels, **common)
        else:
            own = dict(depths=depths, width=width, channels=channels, drop_path=drop_path)
            self.trunk = ResNet(num_classes=0, **own, **common)
        stages = self.trunk.widths[1:]
        seen, local = attention in ("both", "global"), attention in ("both", "local")
        self.body = Body(channels, body_width, body_channels, **common) if seen else None
        self.heads = nnx.List(conv(body_channels, 1, 1, **common) for _ in stages if seen)
        for head in self.heads:
            head.bias = nnx.Param(jnp.full((1,), gate_bias))
        self.local = nnx.List(LocalAttention(dim, int(seen), **common) for dim in stages if local)
        self.head = torch_linear(stages[-1], num_classes, rngs=rngs)

    def attended(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[list[Float[Array, "b _ _ _"]], list[Float[Array, "b _ _ 1"]]]:
        """(the map after each stage and its attention, the global attention of each stage, if any)."""
        context = None if self.body is None else self.body(images)
        x, maps, gates = self.trunk.run_stem(images, rngs=rngs), [], []
        for j in range(len(self.trunk.stages)):
            x, gate = self.trunk.run_stage(j, x, rngs=rngs), None
            if context is not None:
                gate = self.tap("gate", jax.nn.sigmoid(resize(self.heads[j](context), x.shape[1:3])))
                gates.append(gate)
                x = x * gate if self.gate == "product" else x * (1.0 + gate)
            if self.local:
                x = x * self.local[j](x, gate) + x
            maps.append(x)
        return maps, gates

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The attended map of every stage, finest first."""
        return self.attended(images, rngs=rngs)[0]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """The last map's positions as tokens, row by row."""
        x = self.features(images, rngs=rngs)[-1]
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, d) mean of the last map, "logits": (b, classes)}."""
        pooled = self.features(images, rngs=rngs)[-1].astype(jnp.float32).mean((1, 2))
        return {"features": pooled, "logits": self.head(dropout(pooled, self.dropout, rngs))}


def create(variant: str, **overrides) -> MEDUSA:
    """Builds "resnet50" (the paper's) or "plain"; any constructor argument can be overridden."""
    return MEDUSA(**(VARIANTS[variant] | overrides))
