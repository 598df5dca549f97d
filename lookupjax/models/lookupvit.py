"""LookupViT (arXiv 2407.12753, ECCV 2024) for images and videos.

    input (b, *size, c) -> patches F (b, *grid, D), N = prod(grid)
      lookup tokens      z_l = F + P           (b, N, D)
      compressed tokens  z_p = T(F) + T(P)     (b, M, D), T = (bi|tri)linear resize to the compressed grid
    L blocks:
      z_p += gather(z_p, z_l)      softmax over N of Q K^T; keeps its weights A
      z_p += attn(LN z_p);  z_p += mlp(LN z_p)       4 D wide
      z_l += infuse(z_p, A)        A^T V' with V' from the refined z_p
      z_l += lookup_mlp(LN z_l)                      D / 2 wide
    heads: mean(LN_p z_p) -> logits_compressed, mean(LN_l z_l) -> logits_lookup, logits = their mean

M is a matter of the call (`compressed=`): one set of weights serves several compute budgets.
No code is public. The block is what the abstract, the cost formula (3NM + 2M^2) D + (4N + 15M) D^2 and
three independent re-implementations agree on; where they differ, or where we had to choose, there is
an option of the constructor.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention import create_mixer
from lookupjax.attention.lookup import Gather, Infuse
from lookupjax.attention.lookup_fused import check_options, gather_tokens, update_tokens
from lookupjax.attention.mixer import is_tapped
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, dropout
from lookupjax.models.published import Published
from lookupjax.models.stack import run_blocks

SIZES = {
    "mu": dict(dim=32, depth=2, num_heads=2),  # the smallest, for tests
    "t": dict(dim=192, depth=12, num_heads=3),
    "s": dict(dim=384, depth=12, num_heads=6),
    "b": dict(dim=768, depth=12, num_heads=12),
    "l": dict(dim=1024, depth=24, num_heads=16),
}
VARIANTS: dict[str, dict] = {f"{size}16": dims | dict(patch=(16, 16)) for size, dims in SIZES.items()}
VARIANTS["mu"] = SIZES["mu"] | dict(patch=(4, 4), pos_grid=(8, 8), compressed=(3, 3))
VARIANTS |= {  # 32-frame clips: tubelets of two frames, 16 x 14 x 14 lookup tokens
    f"video_{size}16x2": SIZES[size] | dict(patch=(2, 16, 16), pos_grid=(16, 14, 14), compressed=(8, 5, 5))
    for size in ("s", "b", "l")
}
VARIANTS["video_mu"] = SIZES["mu"] | dict(patch=(2, 8, 8), pos_grid=(4, 4, 4), compressed=(2, 2, 2))
INPUT_SIZE = {"mu": (32, 32), "video_mu": (8, 32, 32)}
INPUT_SIZE |= {name: (32, 224, 224) for name in VARIANTS if name.startswith("video_") and name[-2:] == "x2"}
PUBLISHED = {
    f"{size}16": Published(
        params=params,
        gmacs=gmacs,
        source="counted from the paper's definition: no code, weights or stored tables are public",
        note="5x5 compressed tokens",
    )
    for size, params, gmacs in (("s", 34_911_824, 2.18), ("b", 137_061_584, 8.47), ("l", 481_991_632, 29.72))
}
PUBLISHED["video_b16x2"] = Published(
    gmacs=131.8,
    size=(32, 224, 224),
    source="counted from the paper's definition",
    note="8x5x5 compressed tokens; ViViT's joint model of the same clip takes 451.3",
)
POOLS = ("norm_mean", "mean_norm")
POSITIONS = ("shared", "separate")

Grid = tuple[int, ...]


class Cross(nnx.Module):
    """The two halves of MHBC that one block (or, with `share_cross`, every block) owns."""

    def __init__(
        self, dim: int, num_heads: int, *, pre_norm, qk_norm, out_proj, reuse, impl, eps, dtype, rngs
    ):
        if impl == "fused":
            check_options(qk_norm, out_proj)
        common = dict(pre_norm=pre_norm, out_proj=out_proj, impl=impl, eps=eps, dtype=dtype, rngs=rngs)
        self.gather = Gather(dim, num_heads, qk_norm=qk_norm, **common)
        self.infuse = Infuse(dim, num_heads, reuse=reuse, **common)


class LookupBlock(nnx.Module):
    """Gather, refine, infuse, lookup MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        cross: dict | None,
        mlp_ratio: float,
        lookup_div: float,
        gelu: str,
        eps: float,
        dropout: float,
        attention: str,
        attention_options: dict,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        norm = dict(eps=eps, dtype=dtype, rngs=rngs)
        mlp = dict(gelu=gelu, dropout=dropout, dtype=dtype, rngs=rngs)
        self.cross = None if cross is None else Cross(dim, num_heads, **cross, dtype=dtype, rngs=rngs)
        self.attn_norm = LayerNorm(dim, **norm)
        self.attn = create_mixer(attention, dim, num_heads, dtype=dtype, rngs=rngs, **attention_options)
        self.mlp_norm = LayerNorm(dim, **norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **mlp)
        self.lookup_norm = LayerNorm(dim, **norm)
        self.lookup_mlp = Mlp(dim, int(dim / lookup_div), **mlp)
        self.dropout = dropout

    def with_aux(
        self,
        z_p: Float[Array, "b m d"],
        z_l: Float[Array, "b n d"],
        *,
        cross: Cross,
        grid: Grid,
        drop_path: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"], Float[Array, ""]]:
        """Returns (z_p, z_l, auxiliary loss of the mixer).

        `cross` is this block's own or the shared one; `grid` is that of the compressed tokens.
        """

        def add(z, branch):
            return add_branch(z, dropout(branch, self.dropout, rngs), drop_path, rngs)

        random = rngs is not None and (self.dropout > 0 or not isinstance(drop_path, float) or drop_path > 0)
        fused = cross.gather.impl == "fused" and not random and not is_tapped(cross)
        if fused:
            update, q, memory = gather_tokens(cross.gather, z_p, z_l)
        else:
            update, scores, weights = cross.gather(z_p, z_l)
        z_p = add(z_p, update)
        refined, aux = self.attn.mix(self.attn_norm(z_p), grid=grid, rngs=rngs)
        z_p = add(z_p, refined)
        z_p = add_branch(z_p, self.mlp(self.mlp_norm(z_p), rngs=rngs), drop_path, rngs)
        if fused:
            layers = cross.gather, cross.infuse, self.lookup_norm, self.lookup_mlp
            return z_p, update_tokens(*layers, z_p, z_l, q, memory), aux
        z_l = add(z_l, cross.infuse(z_p, scores, weights))
        z_l = add_branch(z_l, self.lookup_mlp(self.lookup_norm(z_l), rngs=rngs), drop_path, rngs)
        return z_p, z_l, aux

    def __call__(
        self, z_p: Float[Array, "b m d"], z_l: Float[Array, "b n d"], **call
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
        """Both token sets alone; `call` as of `with_aux`."""
        return self.with_aux(z_p, z_l, **call)[:2]


def add_branch(
    z: Float[Array, "b n d"], branch: Float[Array, "b n d"], rate: Rate, rngs: nnx.Rngs | None
) -> Float[Array, "b n d"]:
    return z + drop_path(branch, rate, rngs)


class LookupViT(nnx.Module):
    """LookupViT classifier; images (b, h, w, c) or, with a 3-axis `patch`, videos (b, t, h, w, c).

    Args:
      patch: patch (height, width) or tubelet (frames, height, width).
      pos_grid: grid of the learned lookup position table, resized for inputs of other sizes.
      compressed: default grid of the compressed tokens; a call can ask for another.
      lookup_div: the lookup MLP is dim / lookup_div wide.
      reuse: weights of the infusion, see `attention.lookup.infusion_weights`.
      qk_norm: "full" (over dim), "head" or "none".
      cross_pre_norm: LayerNorm on both token sets before the cross-attention's projections.
      out_proj: output projections of gathering and infusion.
      share_cross: one cross-attention for all blocks.
      cross_impl: "plain", "absorbed" or, by estimated cost, "auto": the same numbers from the same
        parameters, see `attention.lookup.absorb`. "fused": on TPUs and Nvidia GPUs, kernels of
        `attention.lookup_fused`; elsewhere, and in training with dropout or stochastic depth, as "auto".
      pos: "shared" resizes the lookup table for the compressed tokens, "separate" learns one of its own
        on `pos_compressed_grid` (default: `compressed`).
      antialias: of T; position tables of their own are always resized with antialias.
      pos_init: standard deviation of the initial position tables; patches of few pixels need more.
      tubelet_init: of the kernel of a 3-axis `patch`, see `models.vivit.ViViT`; also of an image model's.
      attention, attention_options: mixer of the compressed self-attention.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
      remat, scan: see `run_blocks`.
    """

    loss_heads = ("logits_compressed", "logits_lookup")

    def __init__(
        self,
        *,
        patch: Grid = (16, 16),
        channels: int = 3,
        pos_grid: Grid = (14, 14),
        compressed: Grid = (5, 5),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        lookup_div: float = 2.0,
        pos: str = "shared",
        pos_compressed_grid: Grid | None = None,
        antialias: bool = True,
        cross_pre_norm: bool = True,
        qk_norm: str = "full",
        out_proj: bool = True,
        reuse: str = "transpose",
        share_cross: bool = False,
        cross_impl: str = "auto",
        gelu: str = "tanh",
        pool: str = "norm_mean",
        eps: float = 1e-6,
        pos_init: float = 0.02,
        tubelet_init: str = "central",
        attention: str = "softmax",
        attention_options: dict | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        scan: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("pool", pool, POOLS), ("pos", pos, POSITIONS)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        self.patch, self.pos_grid = tuple(patch), tuple(pos_grid)
        self.compressed = self.check_grid(compressed)
        self.dim, self.num_heads, self.pool, self.antialias = dim, num_heads, pool, antialias
        self.dropout, self.drop_path, self.remat, self.scan = dropout, drop_path, remat, scan
        self.tubelet_init, self.dtype = tubelet_init, dtype
        cross = dict(pre_norm=cross_pre_norm, qk_norm=qk_norm, out_proj=out_proj)
        cross |= dict(reuse=reuse, impl=cross_impl, eps=eps)
        self.embed = PatchEmbed(self.patch, channels, dim, time=tubelet_init, dtype=dtype, rngs=rngs)
        self.pos_lookup = position_table((*self.pos_grid, dim), rngs, pos_init)
        own_grid = self.check_grid(pos_compressed_grid or compressed)
        self.pos_compressed = position_table((*own_grid, dim), rngs, pos_init) if pos == "separate" else None
        self.shared = Cross(dim, num_heads, **cross, dtype=dtype, rngs=rngs) if share_cross else None
        self.blocks = nnx.List(
            LookupBlock(
                dim,
                num_heads,
                cross=None if share_cross else cross,
                mlp_ratio=mlp_ratio,
                lookup_div=lookup_div,
                gelu=gelu,
                eps=eps,
                dropout=dropout,
                attention=attention,
                attention_options=dict(attention_options or {}),
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(depth)
        )
        self.final_norm_p = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.final_norm_l = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.head_p = nnx.Linear(dim, num_classes, kernel_init=zeros, rngs=rngs)
        self.head_l = nnx.Linear(dim, num_classes, kernel_init=zeros, rngs=rngs)

    def check_grid(self, grid: Grid) -> Grid:
        """Raises UserError unless `grid` has one positive length per patched axis."""
        grid = tuple(grid)
        if len(grid) != len(self.patch) or any(n < 1 for n in grid):
            raise UserError(
                f"a compressed grid of this model needs {len(self.patch)} positive lengths, "
                f"such as {'x'.join(['4'] * len(self.patch))}; got {'x'.join(map(str, grid))}"
            )
        return grid

    def lookup_grid(self, size: tuple[int, ...]) -> Grid:
        """The grid of lookup tokens of inputs of `size`: the largest compressed grid they allow."""
        return token_grid(size, self.patch)

    def tokenize(
        self, x: Float[Array, "b *size c"], compressed: Grid
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
        """Compressed and lookup tokens from one patch embedding."""
        patches = self.embed(x)
        pos_l = resize_grid(self.pos_lookup[...], patches.shape[1:-1])
        if self.pos_compressed is None:
            pos_p = resize_grid(pos_l, compressed, antialias=self.antialias)
        else:
            pos_p = resize_grid(self.pos_compressed[...], compressed)
        z_p = resize_grid(patches, compressed, antialias=self.antialias)
        z_p = z_p + pos_p.astype(self.dtype)[None]
        z_l = patches + pos_l.astype(self.dtype)[None]
        return flatten_grid(z_p), flatten_grid(z_l)

    def with_aux(
        self,
        x: Float[Array, "b *size c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"], Float[Array, ""]]:
        """(compressed tokens, lookup tokens, mean auxiliary loss of the mixers) after the last block."""
        grid = self.check_grid(self.compressed if compressed is None else compressed)
        z_p, z_l = self.tokenize(x, grid)
        z_p, z_l = dropout(z_p, self.dropout, rngs), dropout(z_l, self.dropout, rngs)

        def call(block, carry, *, drop_path, rngs):
            z_p, z_l, total = carry
            cross = block.cross if self.shared is None else self.shared
            z_p, z_l, aux = block.with_aux(z_p, z_l, cross=cross, grid=grid, drop_path=drop_path, rngs=rngs)
            return z_p, z_l, total + aux

        z_p, z_l, total = run_blocks(
            self.blocks,
            call,
            (z_p, z_l, jnp.zeros(())),
            drop_path=self.drop_path,
            rngs=rngs,
            remat=self.remat,
            scan=self.scan,
        )
        return z_p, z_l, total / len(self.blocks)

    def features(
        self,
        x: Float[Array, "b *size c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
        """(compressed, lookup) tokens after the last block, before the final norms."""
        return self.with_aux(x, compressed=compressed, rngs=rngs)[:2]

    def encode(
        self,
        x: Float[Array, "b *size c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        """Normalised compressed tokens: what another module attends to."""
        return self.final_norm_p(self.features(x, compressed=compressed, rngs=rngs)[0])

    def pooled(self, z: Float[Array, "b n d"], norm: LayerNorm) -> Float[Array, "b d"]:
        if self.pool == "norm_mean":
            return norm(z).astype(jnp.float32).mean(1)
        return norm(z.astype(jnp.float32).mean(1)).astype(jnp.float32)

    def __call__(
        self,
        x: Float[Array, "b *size c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "..."]]:
        """Float32 {"logits", "logits_compressed", "logits_lookup", "features"}.

        In training also {"aux_loss": scalar} when the mixers have one.

        What a caller under jit does not use is not computed: with only "logits_compressed" the last
        block's infusion and lookup MLP vanish. "features" is the pooled compressed representation.
        """
        z_p, z_l, aux = self.with_aux(x, compressed=compressed, rngs=rngs)
        features = self.pooled(z_p, self.final_norm_p)
        features_l = self.pooled(z_l, self.final_norm_l)
        logits_p, logits_l = self.head_p(features), self.head_l(features_l)
        out = {
            "features": features,
            "features_lookup": features_l,
            "logits_compressed": logits_p,
            "logits_lookup": logits_l,
            "logits": 0.5 * (logits_p + logits_l),
        }
        trained = rngs is not None and self.blocks[0].attn.has_aux_loss
        return out | ({"aux_loss": aux} if trained else {})

    def macs(self, size: tuple[int, ...], compressed: Grid | None = None) -> int:
        """Multiply-accumulates of the matrix products for one input of `size` (softmax attention).

        Those of the paper's form, `cross_impl="plain"`. Per block, with both output projections, 4 D wide
        MLP and D / 2 wide lookup MLP, this is the paper's (3NM + 2M^2) D + (4N + 15M) D^2.
        """
        n = math.prod(token_grid(size, self.patch))
        m = math.prod(self.check_grid(self.compressed if compressed is None else compressed))
        d, block = self.dim, self.blocks[0]
        cross = block.cross if self.shared is None else self.shared
        projections = 2 * n + 2 * m  # k, v over lookup tokens; q and infusion v over compressed ones
        if cross.gather.out is not None:
            projections += m + n
        refine = 2 * m * m * d + 4 * m * d * d + 2 * m * d * block.mlp.fc1.out_features
        lookup = 2 * n * d * block.lookup_mlp.fc1.out_features
        layer = projections * d * d + 3 * n * m * d + refine + lookup
        heads = self.head_p.kernel.size + self.head_l.kernel.size
        return len(self.blocks) * layer + n * self.embed.kernel.size + heads


def create(variant: str, **overrides) -> LookupViT:
    """Builds "s16", "b16", "video_b16x2", ...; any constructor argument can be overridden."""
    return LookupViT(**(VARIANTS[variant] | overrides))
