"""MoH-ViT (arXiv 2410.11842): TransNeXt (arXiv 2311.17132) with mixture-of-head attention.

    image (b, H, W, c)
    4 stages: 7x7 (then 3x3) overlapping patches, stride 4 (then 2) -> LN -> blocks -> LN
      72, 144, 288, 576 channels on grids of H/4, H/8, H/16, H/32
    mean over the last stage's tokens -> head
    block:  x += gated_heads(LN x);  x += conv_glu(LN x)

Stages 1-3: each query sees its 3x3 neighbours and a map pooled by 8, 4, 2 under one softmax; stage 4: all
tokens (`attention.aggregated`). Every token weights the heads (`attention.moh`): each stage has shared
heads, and from stage 3 on (B-50: everywhere) each token chooses some of the routed ones.
Reference: SkyworkAI/MoH, folder MoH-ViT (native code). Like it, this computes every head.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.aggregated import AggregatedAttention, CosineAttention, GatedAttention, Grid
from lookupjax.layers.conv import conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import Rate, drop_path, drop_path_rates, dropout
from lookupjax.models.published import Published

SMALL = dict(dims=(72, 144, 288, 576), depths=(5, 5, 22, 5), num_heads=(3, 6, 12, 24))
BASE = dict(dims=(96, 192, 384, 768), depths=(5, 5, 23, 5), num_heads=(4, 8, 16, 32))
VARIANTS: dict[str, dict] = {
    "mu": dict(
        size=(32, 32),
        dims=(16, 32),
        depths=(1, 1),
        num_heads=(2, 4),
        mlp_ratio=(2.0, 2.0),
        shared=(2, 1),
        routed=(0, 2),
        sr_ratios=(2, 1),
    ),
    "s_80": SMALL | dict(shared=(3, 6, 3, 8), routed=(0, 0, 6, 12)),
    "s_75": SMALL | dict(shared=(3, 6, 3, 4), routed=(0, 0, 6, 12)),
    "b_75": BASE | dict(shared=(4, 8, 4, 5), routed=(0, 0, 8, 16)),
    "b_50": BASE | dict(shared=(2, 2, 2, 4), routed=(2, 4, 6, 8)),
}
INPUT_SIZE = {"mu": (32, 32)}
REPO = "SkyworkAI/MoH: params and MACs measured (all heads computed), top-1 of the README"
PUBLISHED = {
    "s_80": Published(params=49_910_548, gmacs=10.360, top1=84.7, source=REPO),
    "s_75": Published(params=49_910_548, gmacs=10.360, top1=84.6, source=REPO),
    "b_75": Published(params=90_020_632, gmacs=18.406, top1=84.9, source=REPO),
    "b_50": Published(params=90_023_512, gmacs=18.410, top1=84.7, source=REPO),
}


class ConvGLU(nnx.Module):
    """fc2(gelu(depthwise(u)) * v), (u, v) = fc1(x): two thirds of the MLP's width."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        hidden = int(2 * hidden / 3)
        self.fc1 = linear(dim, 2 * hidden, dtype=dtype, rngs=rngs)
        self.local = conv(
            hidden,
            hidden,
            3,
            padding=1,
            groups=hidden,
            kernel_init=nnx.initializers.normal(math.sqrt(2 / 9)),
            dtype=dtype,
            rngs=rngs,
        )
        self.fc2 = linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        u, v = jnp.split(self.fc1(x), 2, axis=-1)
        u = flatten_grid(self.local(u.reshape(u.shape[0], *grid, -1)))
        hidden = dropout(gelu("exact")(u) * v, self.dropout, rngs)
        return dropout(self.fc2(hidden), self.dropout, rngs)


class Block(nnx.Module):
    """Pre-norm block."""

    def __init__(self, dim: int, attn: GatedAttention, *, hidden: int, eps: float, dropout: float, **common):
        self.attn_norm = LayerNorm(dim, eps=eps, **common)
        self.attn = attn
        self.mlp_norm = LayerNorm(dim, eps=eps, **common)
        self.mlp = ConvGLU(dim, hidden, dropout=dropout, **common)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: Grid,
        drop: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        """(tokens, balance loss)."""
        update, balance = self.attn.mix(self.attn_norm(x), grid=grid, rngs=rngs)
        x = x + drop_path(update, drop, rngs)
        return x + drop_path(self.mlp(self.mlp_norm(x), grid=grid, rngs=rngs), drop, rngs), balance


class Stage(nnx.Module):
    """Overlapping patches with a norm, blocks, a norm."""

    def __init__(
        self,
        d_in: int,
        dim: int,
        num_heads: int,
        *,
        kernel: int,
        stride: int,
        depth: int,
        sr_ratio: int,
        window: int | None,
        mlp_ratio: float,
        eps: float,
        dropout: float,
        attention: dict,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)

        def mixer() -> GatedAttention:
            if sr_ratio == 1:
                return CosineAttention(dim, num_heads, proj_dropout=dropout, **attention, **common)
            local = dict(sr_ratio=sr_ratio, window=window)
            return AggregatedAttention(dim, num_heads, proj_dropout=dropout, **attention, **local, **common)

        init = nnx.initializers.normal(math.sqrt(2 / (kernel**2 * dim)))
        self.embed = conv(d_in, dim, kernel, stride=stride, padding=kernel // 2, kernel_init=init, **common)
        self.embed_norm = LayerNorm(dim, eps=1e-5, **common)
        block = dict(hidden=int(dim * mlp_ratio), eps=eps, dropout=dropout, **common)
        self.blocks = nnx.List(Block(dim, mixer(), **block) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=eps, **common)


class MoHViT(nnx.Module):
    """MoH-ViT classifier over images of any size.

    Args:
      size: image size (height, width) that the position bias is scaled to.
      shared, routed: heads of each stage that are always on, and further ones that each token chooses.
      sr_ratios: how much smaller the pooled map is; 1 means attention to all tokens instead.
      windows: side of the neighbourhood of each stage with a pooled map.
      attention_dropout: of the attention weights.
      dtype: compute dtype; parameters, routing, cosine scores and norms' statistics stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        size: Grid = (224, 224),
        patch: int = 4,
        channels: int = 3,
        dims: tuple[int, ...] = SMALL["dims"],
        depths: tuple[int, ...] = SMALL["depths"],
        num_heads: tuple[int, ...] = SMALL["num_heads"],
        shared: tuple[int, ...] = (3, 6, 3, 4),
        routed: tuple[int, ...] = (0, 0, 6, 12),
        num_classes: int = 1000,
        mlp_ratio: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        windows: tuple[int | None, ...] = (3, 3, 3, None),
        qkv_bias: bool = True,
        eps: float = 1e-6,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.depths, self.drop_path, self.dtype = tuple(depths), drop_path, dtype
        common = dict(eps=eps, dropout=dropout, dtype=dtype, rngs=rngs)
        attention = dict(qkv_bias=qkv_bias, dropout=attention_dropout)
        self.stages = nnx.List(
            Stage(
                dims[i - 1] if i else channels,
                dim,
                num_heads[i],
                kernel=3 if i else 2 * patch - 1,
                stride=2 if i else patch,
                depth=depths[i],
                sr_ratio=sr_ratios[i],
                window=windows[i],
                mlp_ratio=mlp_ratio[i],
                attention=dict(
                    shared=shared[i],
                    routed=routed[i],
                    trained=tuple(n // (patch * 2**i) for n in size),
                    **attention,
                ),
                **common,
            )
            for i, dim in enumerate(dims)
        )
        self.head = nnx.Linear(dims[-1], num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def with_aux(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[list[Float[Array, "b _ _ _"]], Float[Array, ""]]:
        """(normalised map of every stage, balance loss: mean over the layers that route)."""
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        x, maps, total = images.astype(self.dtype), [], jnp.zeros(())
        for stage in self.stages:
            x = stage.embed_norm(stage.embed(x))
            grid = x.shape[1:3]
            x = flatten_grid(x)
            for block in stage.blocks:
                x, balance = block(x, grid=grid, drop=next(rates), rngs=rngs)
                total = total + balance
            x = stage.norm(x).reshape(x.shape[0], *grid, -1)
            maps.append(x)
        return maps, total / max(self.routing_layers, 1)

    @property
    def routing_layers(self) -> int:
        return sum(block.attn.has_aux_loss for stage in self.stages for block in stage.blocks)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The normalised map of every stage, finest first."""
        return self.with_aux(images, rngs=rngs)[0]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens of the last stage: what another module attends to."""
        return flatten_grid(self.features(images, rngs=rngs)[-1])

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Float32 {"features": mean of the last map, "logits"}, in training also {"aux_loss": scalar}."""
        maps, aux = self.with_aux(images, rngs=rngs)
        pooled = maps[-1].astype(jnp.float32).mean((1, 2))
        out = {"features": pooled, "logits": self.head(pooled)}
        return out | ({"aux_loss": aux} if rngs is not None and self.routing_layers else {})


def create(variant: str, **overrides) -> MoHViT:
    """Builds "s_80", "s_75", "b_75", "b_50"; any constructor argument can be overridden."""
    return MoHViT(**(VARIANTS[variant] | overrides))
