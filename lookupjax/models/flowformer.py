"""Flowformer for images (ICML 2022, arXiv 2202.06258): a four-stage transformer with Flow-Attention.

    image (b, H, W, c)
    stage 1   4x4 patches + positions -> (b, H/4 W/4, 96)     3 blocks
    stage 2   2x2 patches             -> (b, H/8 W/8, 192)    3 blocks
    stage 3   2x2 patches             -> (b, H/16 W/16, 384)  10 blocks
    stage 4   2x2 patches             -> (b, H/32 W/32, 768)  3 blocks
    LN -> mean over tokens -> head
    block:  x += flow_attention(LN x);  x += gamma * mlp(LN x)      gamma on this branch only

Reference: thuml/Flowformer, folder Flowformer_CV: 12 heads in every stage, and 1e-6 added also to whole
inner products. Unlike there, inputs of any size work; positions are resized.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention import create_mixer
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, drop_path_rates
from lookupjax.models.published import Published

VARIANTS: dict[str, dict] = {
    "mu": dict(dims=(16, 32), depths=(1, 1), num_heads=(4, 4), pos_grid=(8, 8)),
    "cv": dict(),
}
INPUT_SIZE = {"mu": (32, 32)}
PUBLISHED = {
    "cv": Published(
        params=43_311_304,
        gmacs=6.892,
        top1=80.6,
        source="params, MACs: thuml/Flowformer, measured; top-1: the paper",
        note="the paper says 41 MB, 6.3 GFLOPs",
    )
}


class Block(nnx.Module):
    """Pre-norm block, layer scale on the MLP branch alone."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float,
        eps: float,
        attention: str,
        attention_options: dict,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attn_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.attn = create_mixer(attention, dim, num_heads, dtype=dtype, rngs=rngs, **attention_options)
        self.mlp_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((dim,), layer_scale))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: tuple[int, int],
        drop: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        x = x + drop_path(self.attn(self.attn_norm(x), grid=grid, rngs=rngs), drop, rngs)
        update = self.mlp(self.mlp_norm(x), rngs=rngs) * self.gamma[...].astype(x.dtype)[None, None]
        return x + drop_path(update, drop, rngs)


class Stage(nnx.Module):
    """Patches of the map before, then blocks on them."""

    def __init__(self, patch: int, d_in: int, dim: int, depth: int, num_heads: int, **options):
        shared = dict(dtype=options["dtype"], rngs=options["rngs"])
        self.embed = PatchEmbed((patch, patch), d_in, dim, **shared)
        self.blocks = nnx.List(Block(dim, num_heads, **options) for _ in range(depth))


class Flowformer(nnx.Module):
    """Flowformer classifier over images of any size that holds a token in the last stage.

    Args:
      patches: patch side of each stage, on the map before it.
      pos_grid: token grid of the position table of the first stage; other grids resize it.
      layer_scale: initial gamma; the published training starts from 1e-5.
      attention, attention_options: token mixer and its own options; flow attention's default is the
        vision code's.
      dtype: compute dtype; parameters, flows, norms' statistics and resizing stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (3, 3, 10, 3),
        num_heads: tuple[int, ...] = (12, 12, 12, 12),
        patches: tuple[int, ...] = (4, 2, 2, 2),
        channels: int = 3,
        pos_grid: tuple[int, int] = (56, 56),
        num_classes: int = 1000,
        mlp_ratio: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0),
        layer_scale: float = 1e-5,
        eps: float = 1e-6,
        attention: str = "flow",
        attention_options: dict | None = None,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        default = dict(product_eps=1e-6) if attention == "flow" else {}
        common = dict(
            layer_scale=layer_scale,
            eps=eps,
            attention=attention,
            attention_options=default | dict(attention_options or {}),
            dtype=dtype,
            rngs=rngs,
        )
        self.drop_path, self.dtype = drop_path, dtype
        self.pos = position_table((*pos_grid, dims[0]), rngs)
        self.stages = nnx.List(
            Stage(patch, d_in, dim, depth, heads, mlp_ratio=ratio, **common)
            for patch, d_in, dim, depth, heads, ratio in zip(
                patches, (channels, *dims), dims, depths, num_heads, mlp_ratio
            )
        )
        self.norm = LayerNorm(dims[-1], eps=eps, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(dims[-1], num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, finest first."""
        rates = iter(drop_path_rates(self.drop_path, sum(len(stage.blocks) for stage in self.stages)))
        x, maps = images, []
        for i, stage in enumerate(self.stages):
            grid = token_grid(x.shape[1:3], stage.embed.patch)
            x = stage.embed(x)
            if i == 0:
                x = x + resize_grid(self.pos[...], grid).astype(self.dtype)[None]
            x = flatten_grid(x)
            for block in stage.blocks:
                x = block(x, grid=grid, drop=next(rates), rngs=rngs)
            x = x.reshape(x.shape[0], *grid, -1)
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens of the last stage: what another module attends to."""
        return self.norm(flatten_grid(self.features(images, rngs=rngs)[-1]))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": mean of the normalised tokens, "logits"}."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> Flowformer:
    """Builds "cv", the published size; any constructor argument can be overridden."""
    return Flowformer(**(VARIANTS[variant] | overrides))
