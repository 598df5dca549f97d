"""DependencyViT (CVPR 2023, arXiv 2304.03282): attention run backwards grows a tree over the patches.

    image (b, H, W, c) -> 16-pixel patches (b, N, D) [+ learned positions]          m = 1 (b, N)
    L blocks:
      y, m = reversed attention(LN x, m); x += gamma_1 y         tokens send, m fades from layer to layer
      [x, m = the tokens with the largest m]                     Lite: leaves leave at the prune layers
      x += gamma_2 mlp(LN x)
      [x += depthwise 3x3 convolution of the map]                position generator of the first block(s)
    pooled (b, D) = mean over tokens of LN(x) m -> head

`run` also gives what a dependency tree is read from (`lookupjax.analysis.dependency`).

Reference: timm's pull request 2062, a re-implementation by a third party; the authors' repository has no
code. Kept tokens stay in raster order here, which changes no output: apart from the position generator
the tokens are a set. Layer scale 1e-6 beside vanishing messages starts slowly; it is an option because the
reference's author was not sure of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lookupjax.attention.reversed import ReversedAttention, dependency_mask
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, dropout
from lookupjax.models.published import Published
from lookupjax.models.stack import run_blocks
from lookupjax.models.vit import LayerScale, add_branch

LITE = dict(prune_layers=(2, 5, 8, 11), prune_ratio=0.16)
SIZES: dict[str, dict] = {"t": dict(dim=192), "s": dict(dim=384)}
VARIANTS: dict[str, dict] = {
    # the smallest, for tests
    "mu": dict(patch=(8, 8), pos_grid=(4, 4), dim=24, depth=2, num_heads=3, layer_scale=None),
    **SIZES,
    **{f"lite_{name}": size | LITE for name, size in SIZES.items()},
    "t_pos": SIZES["t"] | dict(pos_embed=True),
}
INPUT_SIZE = {"mu": (32, 32)}
MEASURED = "timm pull request 2062; accuracy: the paper, not confirmed"
PUBLISHED = {
    "t": Published(5_929_000, 1.301, top1=75.4, source=MEASURED),
    "t_pos": Published(5_966_632, 1.301, source=MEASURED),
    "s": Published(22_916_200, 4.769, top1=82.1, source=MEASURED),
    "lite_t": Published(5_929_000, 0.853, top1=73.7, source=MEASURED),
    "lite_s": Published(22_916_200, 3.150, top1=80.6, source=MEASURED),
}
SCORES = ("message", "received")


def kept_tokens(tokens: int, event: int, ratio: float) -> int:
    """Tokens that the `event`-th pruning (from 1) keeps: floor(N (1 - k r) / (1 - (k - 1) r))."""
    return int((1 - event * ratio) / (1 - (event - 1) * ratio) * tokens)


def take_tokens(x: Float[Array, "b n d"], index: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """The tokens of each example at its own positions."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


def heirs(mask: Float[Array, "b n n"], kept: Int[Array, "b k"]) -> Int[Array, "b n"]:
    """For each of n tokens, which of the k kept ones stands for it: itself, or its strongest receiver."""
    to_kept = take_tokens(mask, kept)  # (b, k, n)
    own = kept[..., None] == jnp.arange(mask.shape[-1])[None, None]
    return jnp.where(own, jnp.inf, to_kept).argmax(1)


class Tokens(NamedTuple):
    """What flows from block to block; `place` is where in the original sequence each token stood."""

    x: Float[Array, "b n d"]
    messages: Float[Array, "b n"]
    place: Int[Array, "b n"]


class Layer(NamedTuple):
    """What a block leaves for a tree builder, over the tokens that entered it.

    `mask` is the soft dependency mask (b, receivers, senders), `messages` m after the layer, `place` each
    token's place in the original sequence. `heir` is, where the block prunes, the index among the kept
    tokens of the one that stands for each token, itself or its strongest receiver; else None.
    """

    mask: Float[Array, "b n n"]
    messages: Float[Array, "b n"]
    place: Int[Array, "b n"]
    heir: Int[Array, "b n"] | None


class PositionGenerator(nnx.Module):
    """x + depthwise 3x3 convolution of the token map (CPVT, arXiv 2102.10882)."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(dim, dim, 3, padding=1, groups=dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], grid: tuple[int, ...]) -> Float[Array, "b n d"]:
        return x + self.conv(x.reshape(x.shape[0], *grid, x.shape[-1])).reshape(x.shape)


class Block(nnx.Module):
    """Reversed attention, pruning at the layers of `prune_event`, MLP, position generator.

    Args:
      prune_event: which pruning this block does, counted from 1; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qk_norm: str,
        temperature: float,
        layer_scale: float | None,
        position_generator: bool,
        prune_event: int,
        prune_ratio: float,
        prune_by: str,
        eps: float,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.attn_norm = LayerNorm(dim, eps=eps, **common)
        self.attn = ReversedAttention(
            dim, num_heads, qk_norm=qk_norm, temperature=temperature, eps=eps, **common
        )
        self.attn_scale = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp_norm = LayerNorm(dim, eps=eps, **common)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dropout=dropout, **common)
        self.mlp_scale = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.peg = PositionGenerator(dim, **common) if position_generator else None
        self.prune_event, self.prune_ratio, self.prune_by = prune_event, prune_ratio, prune_by
        self.dropout = dropout

    def keep(self, messages: Float[Array, "b n"], mask: Float[Array, "b n n"]) -> Int[Array, "b k"]:
        """Indices of the tokens that stay, in raster order; no gradient through the choice."""
        score = messages if self.prune_by == "message" else mask.sum(2)
        count = kept_tokens(score.shape[1], self.prune_event, self.prune_ratio)
        return jnp.sort(jax.lax.top_k(jax.lax.stop_gradient(score), count)[1], axis=1)

    def __call__(
        self,
        tokens: Tokens,
        *,
        grid: tuple[int, ...],
        drop_path: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Tokens, Layer]:
        x, messages, place = tokens
        y, messages, weights = self.attn.send(self.attn_norm(x), messages, rngs=rngs)
        x = add_branch(x, dropout(y, self.dropout, rngs), self.attn_scale, drop_path, rngs)
        layer = Layer(dependency_mask(weights), messages, place, None)
        if self.prune_event:
            kept = self.keep(messages, layer.mask)
            layer = layer._replace(heir=heirs(layer.mask, kept))
            x = take_tokens(x, kept)
            messages, place = (jnp.take_along_axis(v, kept, axis=1) for v in (messages, place))
        x = add_branch(x, self.mlp(self.mlp_norm(x), rngs=rngs), self.mlp_scale, drop_path, rngs)
        if self.peg is not None:
            x = self.peg(x, grid)
        return Tokens(x, messages, place), layer


class DependencyViT(nnx.Module):
    """DependencyViT classifier over images of any size that holds at least one patch.

    Args:
      pos_embed: learned positions beside the position generator (resized to other grids than `pos_grid`).
      cpe_depth: blocks, from the first, that end with a position generator.
      prune_layers: layers (from 1) at which leaves are removed, all after the last position generator.
      prune_ratio: share of the original tokens that each pruning removes.
      prune_by: what the tokens that stay have most of: the "message" left to send (the reference's last
        state) or what they have "received" in this layer (an earlier one).
      temperature: tau of the head selector.
      qk_norm: "head" normalises queries and keys per head.
      layer_scale: initial residual scale, None for none.
      dtype: compute dtype; parameters, softmax, messages and norms' statistics stay float32.

    Raises:
      UserError: when a prune layer does not exist or has a position generator, or nothing would be left.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        patch: tuple[int, int] = (16, 16),
        channels: int = 3,
        pos_grid: tuple[int, int] = (14, 14),
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        pos_embed: bool = False,
        cpe_depth: int = 1,
        prune_layers: tuple[int, ...] = (),
        prune_ratio: float = 0.0,
        prune_by: str = "message",
        temperature: float = 0.1,
        qk_norm: str = "none",
        layer_scale: float | None = 1e-6,
        eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        prune_layers = tuple(sorted(set(prune_layers)))
        check_pruning(prune_layers, prune_ratio, prune_by, depth, cpe_depth)
        self.patch, self.drop_path, self.dropout, self.dtype = tuple(patch), drop_path, dropout, dtype
        self.embed = PatchEmbed(self.patch, channels, dim, dtype=dtype, rngs=rngs)
        self.pos = position_table((*pos_grid, dim), rngs) if pos_embed else None
        self.blocks = nnx.List(
            Block(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                temperature=temperature,
                layer_scale=layer_scale,
                position_generator=i < cpe_depth,
                prune_event=prune_layers.index(i + 1) + 1 if i + 1 in prune_layers else 0,
                prune_ratio=prune_ratio,
                prune_by=prune_by,
                eps=eps,
                dropout=dropout,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(depth)
        )
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(dim, num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def tokenize(self, images: Float[Array, "b h w c"]) -> Tokens:
        """Patches (with learned positions where the model has them), all with their whole message."""
        x = self.embed(images)
        if self.pos is not None:
            pos = resize_grid(self.pos[...], x.shape[1:-1], method="cubic")
            x = x + pos.astype(self.dtype)[None]
        x = flatten_grid(x)
        place = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        return Tokens(x, jnp.ones(x.shape[:2]), place)

    def run(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Tokens, list[Layer]]:
        """The tokens that are left after the last block, and what every block leaves for a tree."""
        grid = token_grid(images.shape[1:-1], self.patch)
        tokens, layers = self.tokenize(images), []
        tokens = tokens._replace(x=dropout(tokens.x, self.dropout, rngs))

        def call(block, tokens, *, drop_path, rngs):
            tokens, layer = block(tokens, grid=grid, drop_path=drop_path, rngs=rngs)
            layers.append(layer)
            return tokens

        return run_blocks(self.blocks, call, tokens, drop_path=self.drop_path, rngs=rngs), layers

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ d"]]:
        """One map, the tokens after the last block; every pruned leaf stands there as its heir."""
        tokens, layers = self.run(images, rngs=rngs)
        x = tokens.x
        for layer in reversed(layers):
            if layer.heir is not None:
                x = take_tokens(x, layer.heir)
        return [x.reshape(x.shape[0], *token_grid(images.shape[1:-1], self.patch), x.shape[-1])]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens, each times the message it has left: what is pooled."""
        tokens, _ = self.run(images, rngs=rngs)
        return self.norm(tokens.x) * tokens.messages[..., None].astype(self.dtype)

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns {"features": (b, d) pooled representation, "logits": (b, classes)}, float32."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def check_pruning(layers: tuple[int, ...], ratio: float, by: str, depth: int, cpe_depth: int) -> None:
    """Raises UserError unless leaves can be pruned at these layers."""
    if by not in SCORES:
        raise UserError(f"prune_by={by!r} is unknown; choose one of {SCORES}")
    if not layers:
        return
    if layers[0] <= cpe_depth or layers[-1] > depth:
        raise UserError(
            f"prune_layers={layers} must lie in {cpe_depth + 1}..{depth}: after the blocks whose position "
            "generator needs the whole map"
        )
    if not 0.0 < ratio * len(layers) < 1.0:
        raise UserError(f"{len(layers)} prunings of prune_ratio={ratio} must remove some tokens, not all")


def create(variant: str, **overrides) -> DependencyViT:
    """Builds "t", "s", "lite_t", "lite_s", "t_pos"; any constructor argument can be overridden."""
    return DependencyViT(**(VARIANTS[variant] | overrides))
