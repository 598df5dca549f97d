"""LookupDaViT: DaViT whose last stages are LookupViT blocks. Ours; nothing of the kind is published.

    image -> stem and first stages of DaViT -> (b, h, w, C)
    each of the last `lookup_stages` stages:
      lookup tokens      x   = merge(x)                              (b, h w, D), the map of the stage
      compressed tokens  z_p = T(x) + carry(z_p of the stage before)  (b, M, D), T = resize to M tokens
      depth x [ x += dw(x);  z_p, x = LookupBlock(z_p, x) ]
    logits = mean of head_p(mean LN z_p) and head_l(LN mean x)

The LookupViT paper says that its block applies to ViT variants: here one block takes the place of a
spatial and a channel block. DaViT's depthwise convolution dw stays as the source of position, and the
compressed tokens pass to the next stage through a linear layer (`carry`). Full attention over the M tokens
replaces windows and channel groups; the costs of a stage fall from (24 N D^2 + ...) to
(4 N + 15 M) D^2 + (3 N M + 2 M^2) D. M is a matter of the call, as in LookupViT.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, resize_grid
from lookupjax.layers.regularise import drop_path_rates
from lookupjax.models.davit import VARIANTS as DAVIT
from lookupjax.models.davit import Merge, PositionConv, Stage, Stem
from lookupjax.models.lookupvit import LookupBlock
from lookupjax.models.published import Published

NOTE = "5x5 compressed tokens"
VARIANTS: dict[str, dict] = {
    "mu": DAVIT["mu"] | dict(lookup_stages=1, compressed=(3, 3)),  # the smallest, for tests
    "t": DAVIT["t"],
    "s": DAVIT["s"],
    "b": DAVIT["b"],
}
INPUT_SIZE = {"mu": (32, 32)}
PUBLISHED = {
    name: Published(params=params, gmacs=gmacs, source="ours: counted, nothing is published", note=NOTE)
    for name, params, gmacs in (
        ("t", 24_220_304, 2.578),
        ("s", 41_128_208, 3.644),
        ("b", 72_335_056, 6.389),
    )
}

Grid = tuple[int, ...]


class LookupStage(nnx.Module):
    """Merge, a compressed stream, and `depth` LookupViT blocks."""

    def __init__(
        self,
        d_in: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        carry: bool,
        mlp_ratio: float,
        lookup_div: float,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(eps=eps, dtype=dtype, rngs=rngs)
        cross = dict(pre_norm=True, qk_norm="full", out_proj=True, reuse="transpose", impl="auto", eps=eps)
        options = dict(mlp_ratio=mlp_ratio, lookup_div=lookup_div, gelu="exact", dropout=0.0)
        mixer = dict(attention="softmax", attention_options={})
        self.merge = Merge(d_in, dim, 2, **common)
        self.carry = linear(d_in, dim, dtype=dtype, rngs=rngs) if carry else None
        self.cpe = nnx.List(PositionConv(dim, False, dtype=dtype, rngs=rngs) for _ in range(depth))
        self.blocks = nnx.List(
            LookupBlock(dim, num_heads, cross=cross, **options, **mixer, **common) for _ in range(depth)
        )

    def __call__(
        self,
        z_p: Float[Array, "b m c"] | None,
        x: Float[Array, "b h w c"],
        *,
        grid: Grid,
        rates: tuple[float, ...],
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b h2 w2 d"]]:
        """Both streams; `z_p` is None in the first such stage, `grid` that of the compressed tokens."""
        x = self.merge(x)
        fresh = flatten_grid(resize_grid(x, grid))
        z_p = fresh if z_p is None else fresh + self.carry(z_p)
        for cpe, block, rate in zip(self.cpe, self.blocks, rates):
            x = cpe(x)
            z_p, z_l = block(z_p, flatten_grid(x), cross=block.cross, grid=grid, drop_path=rate, rngs=rngs)
            x = z_l.reshape(x.shape)
        return z_p, x


class LookupDaViT(nnx.Module):
    """LookupDaViT classifier over images of any size.

    Args:
      lookup_stages: how many of the last stages have LookupViT blocks, at least one, not all.
      compressed: default grid of the compressed tokens; a call can ask for another.
      lookup_div: the lookup MLP is dim / lookup_div wide.
      dims, depths, num_heads, window, mlp_ratio: of DaViT; a depth is one LookupViT block in the last stages.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
    """

    loss_heads = ("logits_compressed", "logits_lookup")

    def __init__(
        self,
        *,
        lookup_stages: int = 2,
        compressed: Grid = (5, 5),
        lookup_div: float = 2.0,
        channels: int = 3,
        dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (1, 1, 3, 1),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        num_classes: int = 1000,
        window: int = 7,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        plain = len(dims) - lookup_stages
        if not 0 < plain < len(dims):
            raise UserError(f"lookup_stages={lookup_stages} must leave at least one of {len(dims)} stages")
        self.compressed = self.check_grid(compressed)
        self.depths, self.drop_path, self.dtype = tuple(depths), drop_path, dtype
        common = dict(eps=eps, dtype=dtype, rngs=rngs)
        attentions = (("window", dict(window=window)), ("channel", {}))
        frame = dict(attentions=attentions, merge_kernel=2, cpe_act=False, mlp_ratio=mlp_ratio)
        lookup = dict(mlp_ratio=mlp_ratio, lookup_div=lookup_div)
        self.stem = Stem(channels, dims[0], **common)
        self.stages = nnx.List(
            Stage(dims[i - 1] if i else None, dims[i], depths[i], num_heads[i], **frame, **common)
            for i in range(plain)
        )
        self.lookup = nnx.List(
            LookupStage(dims[i - 1], dims[i], depths[i], num_heads[i], carry=i > plain, **lookup, **common)
            for i in range(plain, len(dims))
        )
        self.final_norm_p = LayerNorm(dims[-1], **common)
        self.final_norm_l = LayerNorm(dims[-1], **common)
        normal_linears(self, rngs)
        zeros = nnx.initializers.zeros
        self.head_p = nnx.Linear(dims[-1], num_classes, kernel_init=zeros, rngs=rngs)
        self.head_l = nnx.Linear(dims[-1], num_classes, kernel_init=zeros, rngs=rngs)

    @staticmethod
    def check_grid(grid: Grid) -> Grid:
        """Raises UserError unless `grid` has two positive lengths."""
        if len(grid) != 2 or min(grid) < 1:
            raise UserError(f"a compressed grid of this model needs 2 positive lengths, not {tuple(grid)}")
        return tuple(grid)

    def lookup_grid(self, size: tuple[int, ...]) -> Grid:
        """The grid of lookup tokens in the last stage: the largest compressed grid that `size` allows."""
        stride = 2 ** (len(self.depths) + 1)
        return tuple(-(-n // stride) for n in size)

    def streams(
        self, images: Float[Array, "b h w c"], compressed: Grid | None, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b m d"], list[Float[Array, "b _ _ _"]]]:
        """(compressed tokens at the end, the map after every stage)."""
        grid = self.check_grid(self.compressed if compressed is None else compressed)
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        x, z_p, maps = self.stem(images), None, []
        for stage in self.stages:
            own = [next(rates) for _ in stage.blocks]
            x = stage(x, rates=tuple((rate, rate) for rate in own), rngs=rngs)
            maps.append(x)
        for late in self.lookup:
            own = [next(rates) for _ in late.blocks]
            z_p, x = late(z_p, x, grid=grid, rates=tuple(own), rngs=rngs)
            maps.append(x)
        return z_p, maps

    def features(
        self,
        images: Float[Array, "b h w c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, finest first: lookup tokens in the last ones."""
        return self.streams(images, compressed, rngs)[1]

    def encode(
        self,
        images: Float[Array, "b h w c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        """Normalised compressed tokens: what another module attends to."""
        return self.final_norm_p(self.streams(images, compressed, rngs)[0])

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features", "logits", "logits_compressed", "logits_lookup"}, as of LookupViT."""
        z_p, maps = self.streams(images, compressed, rngs)
        features = self.final_norm_p(z_p).astype(jnp.float32).mean(1)
        lookup = self.final_norm_l(maps[-1].astype(jnp.float32).mean((1, 2))).astype(jnp.float32)
        logits_p, logits_l = self.head_p(features), self.head_l(lookup)
        return {
            "features": features,
            "logits_compressed": logits_p,
            "logits_lookup": logits_l,
            "logits": 0.5 * (logits_p + logits_l),
        }


def create(variant: str, **overrides) -> LookupDaViT:
    """Builds "t", "s", "b"; any constructor argument can be overridden."""
    return LookupDaViT(**(VARIANTS[variant] | overrides))
