"""CrossFormer and CrossFormer++ (arXiv 2108.00154, ICLR 2022; 2303.06908).

    image (b, H, W, c) -> cross-scale embedding: convolutions of 4, 8, 16, 32 pixels, all of stride 4,
      side by side, LN -> (b, H/4, W/4, D)
    4 stages at strides 4, 8, 16, 32:
      block 0, 2, ...  x += SDA(LN x);  x += mlp(LN x)       groups of neighbours
      block 1, 3, ...  x += LDA(LN x);  x += mlp(LN x)       groups of every I-th token
      at the end       LN, cross-scale embedding by convolutions of 2 and 4, stride 2: twice the width
    logits = head(mean(LN x))

Positions come from the dynamic bias of `attention.lsda`, so any input size works. The ++ models have group
sizes that grow (`groups`) and after every third block of a stage, but its last, an activation cooling
layer x = LN(dw(x)) (`cooling`).

Reference: cheerss/CrossFormer. `small_map="max"` and a rectangular map are its dense backbones' way; its
classifier takes square images only. `interval=None` is its `adaptive_interval`; its `group_type`s are group
sizes per block, its `use_cpe` is `cpe_rows`: a convolution that takes the map's rows for channels.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.lsda import LongShortAttention
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import drop_path, drop_path_rates, dropout
from lookupjax.models.published import Published

PLUS = dict(groups=(4, 4, 14, 7), intervals=(4, 2, 1, 1), cooling=True)
H64, H96, H128 = (
    dict(dim=d, num_heads=heads)
    for d, heads in ((64, (2, 4, 8, 16)), (96, (3, 6, 12, 24)), (128, (4, 8, 16, 32)))
)
VARIANTS: dict[str, dict] = {
    "mu": dict(
        dim=32,
        depths=(2, 1),
        num_heads=(2, 4),
        groups=(4, 4),
        intervals=(2, 1),
        patches=(4, 8),
        mlp_ratio=2.0,
    ),  # the smallest, for tests
    "t": H64 | dict(depths=(1, 1, 8, 6)),
    "s": H96 | dict(depths=(2, 2, 6, 2)),
    "b": H96 | dict(depths=(2, 2, 18, 2)),
    "l": H128 | dict(depths=(2, 2, 18, 2)),
    "pp_s": H64 | PLUS | dict(depths=(2, 2, 18, 2)),
    "pp_b": H96 | PLUS | dict(depths=(2, 2, 18, 2)),
    "pp_l": H128 | PLUS | dict(depths=(2, 2, 18, 2)),
    "pp_h": H128 | PLUS | dict(depths=(6, 6, 18, 2)),
}
INPUT_SIZE = {"mu": (32, 32)}
README = "cheerss/CrossFormer README"
PUBLISHED = {
    name: Published(params=params, gmacs=gmacs, top1=top1, source=README)
    for name, params, gmacs, top1 in (
        ("t", 27_776_794, 2.870, 81.5),
        ("s", 30_657_394, 4.925, 82.5),
        ("b", 51_971_554, 9.188, 83.4),
        ("l", 91_971_184, 16.146, 84.0),
        ("pp_s", 23_325_340, 4.451, 83.2),
        ("pp_b", 51_994_594, 9.626, 84.2),
        ("pp_l", 92_001_904, 16.768, 84.7),
        ("pp_h", 95_962_944, 22.073, 84.9),
    )
}


class CrossScaleEmbed(nnx.Module):
    """Convolutions of several kernels and the first one's stride, their channels side by side.

    Kernel i, smallest first, has half of the width that is left, the last all of it.
    """

    def __init__(self, d_in: int, d_out: int, kernels: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs):
        last, stride = len(kernels) - 1, kernels[0]
        self.convs = nnx.List(
            conv(
                d_in,
                d_out // 2 ** (i if i == last else i + 1),
                kernel,
                stride=stride,
                padding=(kernel - stride) // 2,
                dtype=dtype,
                rngs=rngs,
            )
            for i, kernel in enumerate(kernels)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return jnp.concatenate([conv(x) for conv in self.convs], axis=-1)


class Block(nnx.Module):
    """Pre-norm block with SDA or LDA and, in some of the ++ models' blocks, the cooling layer."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attention: dict,
        mlp_ratio: float,
        cooling: bool,
        cpe_rows: int,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.attn_norm = LayerNorm(dim, eps=1e-5, **common)
        self.attn = LongShortAttention(dim, num_heads, **attention, **common)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, **common)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dropout=dropout, **common)
        self.cpe = conv(cpe_rows, cpe_rows, 3, padding=1, groups=cpe_rows, **common) if cpe_rows else None
        self.cpe_norm = LayerNorm(dim, eps=1e-5, **common) if cpe_rows else None
        self.cool = conv(dim, dim, 3, padding=1, groups=dim, **common) if cooling else None
        self.cool_norm = LayerNorm(dim, eps=1e-5, **common) if cooling else None
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "b h w d"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        y = self.attn_norm(x)
        if self.cpe is not None:  # over columns and channels, each row on its own, as in the reference
            y = y + self.cpe_norm(self.cpe(y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
        mixed = self.attn(flatten_grid(y), grid=x.shape[1:3], rngs=rngs)
        x = x + drop_path(dropout(mixed.reshape(x.shape), self.dropout, rngs), rate, rngs)
        x = x + drop_path(self.mlp(self.mlp_norm(x), rngs=rngs), rate, rngs)
        return x if self.cool is None else self.cool_norm(self.cool(x))


class Merge(nnx.Module):
    """LN and a cross-scale embedding of stride 2, at the end of a stage."""

    def __init__(self, dim: int, kernels: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.embed = CrossScaleEmbed(dim, 2 * dim, kernels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.embed(self.norm(x))


class CrossFormer(nnx.Module):
    """CrossFormer classifier over images of any size.

    Args:
      dim: width of the first stage; every later one has twice as much.
      patches: kernels of the first embedding, in pixels; the first is also the stride.
      merges: kernels of the later embeddings, one tuple for all or one per gap between stages.
      groups, intervals: G and I of each stage, in tokens; a stage's G may be a tuple, an entry per block, and
        `None` for an interval means as long as the map needs.
      mlp_ratio: of all stages, or one per stage.
      cooling: activation cooling layers (++).
      cpe_rows: rows of the first map, to have a convolution before the attention in place of the position
        bias (unreleased, and the rows are then fixed); 0 for the bias.
      pos_grid: grid of a learned position table added to the embedding; None for none.
      small_map, pad, mask_padding: see `attention.lsda`.
      dtype: compute dtype; parameters, softmax, norms' statistics and position biases stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        channels: int = 3,
        patches: tuple[int, ...] = (4, 8, 16, 32),
        merges: tuple = (2, 4),
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        groups: tuple[int | tuple[int, ...], ...] = (7, 7, 7, 7),
        intervals: tuple[int | None, ...] = (8, 4, 2, 1),
        num_classes: int = 1000,
        mlp_ratio: float | tuple[float, ...] = 4.0,
        qkv_bias: bool = True,
        cooling: bool = False,
        cpe_rows: int = 0,
        pos_grid: tuple[int, int] | None = None,
        small_map: str = "min",
        pad: str = "end",
        mask_padding: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        stages = len(depths)
        if not stages == len(num_heads) == len(groups) == len(intervals):
            raise UserError(
                f"depths={depths}, num_heads={num_heads}, groups={groups}, intervals={intervals} need one "
                "entry per stage"
            )
        ratios = (mlp_ratio,) * stages if isinstance(mlp_ratio, (int, float)) else mlp_ratio
        merges = (merges,) * (stages - 1) if isinstance(merges[0], int) else merges
        self.drop_path, self.dropout, self.dtype, self.cpe_rows = drop_path, dropout, dtype, cpe_rows
        common = dict(dtype=dtype, rngs=rngs)
        self.embed = CrossScaleEmbed(channels, dim, tuple(patches), **common)
        self.embed_norm = LayerNorm(dim, eps=1e-5, **common)
        self.pos = None if pos_grid is None else position_table((*pos_grid, dim), rngs)
        attention = dict(small_map=small_map, pad=pad, mask_padding=mask_padding, qkv_bias=qkv_bias)
        attention |= dict(dropout=attention_dropout, position_bias=not cpe_rows)

        def block(i: int, j: int) -> Block:
            group = groups[i] if isinstance(groups[i], int) else groups[i][j]
            own = dict(kind=("short", "long")[j % 2], group=group, interval=intervals[i])
            cool = cooling and j % 3 == 2 and j < depths[i] - 1
            options = dict(attention=attention | own, mlp_ratio=ratios[i], cooling=cool, dropout=dropout)
            return Block(dim << i, num_heads[i], cpe_rows=cpe_rows >> i, **options, **common)

        self.stages = nnx.List(nnx.List(block(i, j) for j in range(depth)) for i, depth in enumerate(depths))
        self.merges = nnx.List(Merge(dim << i, tuple(merges[i]), **common) for i in range(stages - 1))
        self.norm = LayerNorm(dim << (stages - 1), eps=1e-5, **common)
        self.head = nnx.Linear(dim << (stages - 1), num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def tokenize(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """The first map: embedded patches, with positions if the model has a table."""
        x = self.embed_norm(self.embed(images.astype(self.dtype)))
        if self.cpe_rows and x.shape[1] != self.cpe_rows:
            raise UserError(f"cpe_rows={self.cpe_rows} fixes the map's rows; this image gives {x.shape[1]}")
        if self.pos is None:
            return x
        return x + resize_grid(self.pos[...], x.shape[1:3]).astype(self.dtype)[None]

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after the blocks of every stage, finest first."""
        rates = iter(drop_path_rates(self.drop_path, sum(len(blocks) for blocks in self.stages)))
        x, maps = dropout(self.tokenize(images), self.dropout, rngs), []
        for i, blocks in enumerate(self.stages):
            x = x if i == 0 else self.merges[i - 1](x)
            for block in blocks:
                x = block(x, rate=next(rates), rngs=rngs)
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens of the last stage: what another module attends to."""
        return flatten_grid(self.norm(self.features(images, rngs=rngs)[-1]))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, d) mean of the normalised tokens, "logits": (b, classes)}."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> CrossFormer:
    """Builds "t", "s", "b", "l", "pp_s", ...; any constructor argument can be overridden."""
    return CrossFormer(**(VARIANTS[variant] | overrides))
