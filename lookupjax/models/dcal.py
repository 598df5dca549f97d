"""DCAL (CVPR 2022, arXiv 2205.02151): a ViT with two more cross-attentions, for fine differences.

    image (b, H, W, c) -> class token + patches (b, 1 + N, D)
    SA    L blocks, x_L                       -> LN -> logits_sa; their attention rolled out: row r (b, N)
    GLCA  top R N patches by r, and class     queries from x_L at these places, keys and values from all
          1 block of its own (b, 1 + R N, D)  -> LN -> logits_glca
    PWCA  (training only) the L blocks again  image i attends to itself and to its partner, in one softmax
          over 2 N + 2 keys; same weights     -> same LN and head -> logits_pwca, label of image i
    logits = log of the mean of softmax(logits_sa) and softmax(logits_glca)
    features (b, 2 D) = both final class tokens side by side: what re-identification compares

There is no official code: this follows the paper's text; the mean over heads in the rollout, the class
token among GLCA's queries and the head that PWCA shares are readings of it. What the partner's tokens do
between blocks is not said: `pwca="mutual"` lets both images of a pair see each other, "self" takes the
partner's tokens of the SA branch. `lookupjax.tasks.dual_cross_attention` trains all three branches.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lookupjax.attention import record_taps
from lookupjax.attention.rollout import rollout_row
from lookupjax.errors import UserError
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.regularise import Rate, drop_path_rates, dropout
from lookupjax.layers.rngs import Keys
from lookupjax.models.published import Published
from lookupjax.models.vit import SIZES, Block, ViT, add_branch

FGVC = dict(pos_grid=(28, 28), num_classes=200)  # 448 x 448 pixels, CUB-200-2011
VARIANTS: dict[str, dict] = {
    "mu": dict(patch=(8, 8), pos_grid=(4, 4), dim=32, depth=2, num_heads=2),  # the smallest, for tests
    "t16": SIZES["t"] | FGVC,
    "s16": SIZES["s"] | FGVC,
    "b16": SIZES["b"] | FGVC,
    "b16_reid": SIZES["b"] | dict(pos_grid=(16, 8), num_classes=751, ratio=0.3),  # Market-1501, 256 x 128
}
INPUT_SIZE = {name: (448, 448) for name in ("t16", "s16", "b16")} | {"mu": (32, 32), "b16_reid": (256, 128)}
COUNTED = "counts of the data sheet's reference model; the paper gives them relative to its baseline"
PUBLISHED = {
    "t16": Published(6_159_760, 7.12 + 0.111, size=(448, 448), source=COUNTED, note="CUB-200-2011: 84.6 %"),
    "s16": Published(23_820_688, size=(448, 448), source=COUNTED),
    "b16": Published(93_647_248, size=(448, 448), source=COUNTED, note="for 200 classes"),
}
PWCA = ("mutual", "self")


def attend_to(
    block: Block,
    x: Float[Array, "b m d"],
    context: Float[Array, "b n d"],
    *,
    drop_path: Rate = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b m d"]:
    """A ViT block whose keys and values come from `context`: both go through the block's first norm."""
    y = block.attn(block.attn_norm(x), block.attn_norm(context), rngs=rngs)
    x = add_branch(x, dropout(y, block.dropout, rngs), block.attn_scale, drop_path, rngs)
    return add_branch(x, block.mlp(block.mlp_norm(x), rngs=rngs), block.mlp_scale, drop_path, rngs)


def random_pairs(key: jax.Array, count: int) -> Int[Array, "n"]:
    """A partner for each of `count` examples, drawn uniformly: pairs are mutual, one of an odd number is
    its own partner."""
    order = jax.random.permutation(key, count)
    return jnp.zeros(count, order.dtype).at[order].set(order[::-1])


class DCAL(nnx.Module):
    """ViT with global-local and pair-wise cross-attention, over images of any size.

    Args:
      ratio: share R of the patches that GLCA asks with (0.1 for fine-grained classes, 0.3 for re-id).
      pwca: what the partner's tokens are in PWCA, "mutual" or "self".
      learned_balance: three more scalars w that weigh the branches' losses (see the task).
      The rest are options of the ViT, which always has a class token.

    Raises:
      UserError: for a ratio outside (0, 1], an unknown `pwca`.
    """

    loss_heads = ("logits_sa", "logits_glca")

    def __init__(
        self,
        *,
        patch: tuple[int, int] = (16, 16),
        channels: int = 3,
        pos_grid: tuple[int, int] = (14, 14),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        gelu: str = "exact",
        eps: float = 1e-6,
        registers: int = 0,
        layer_scale: float | None = None,
        pos_resize: str = "cubic",
        ratio: float = 0.1,
        pwca: str = "mutual",
        learned_balance: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0.0 < ratio <= 1.0:
            raise UserError(f"ratio={ratio} is the share of patches that GLCA asks with: 0 < ratio <= 1")
        if pwca not in PWCA:
            raise UserError(f"pwca={pwca!r} is unknown; choose one of {PWCA}")
        self.ratio, self.pwca, self.drop_path, self.dropout = ratio, pwca, drop_path, dropout
        shared = dict(mlp_ratio=mlp_ratio, gelu=gelu, eps=eps, dropout=dropout, layer_scale=layer_scale)
        self.trunk = ViT(
            patch=patch,
            channels=channels,
            pos_grid=pos_grid,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            registers=registers,
            pos_resize=pos_resize,
            dtype=dtype,
            rngs=rngs,
            **shared,
        )
        self.patch = self.trunk.patch
        mixer = dict(attention="softmax", attention_options={})
        self.glca = Block(dim, num_heads, **mixer, **shared, dtype=dtype, rngs=rngs)
        self.glca_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.glca_head = nnx.Linear(dim, num_classes, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.balance = nnx.Param(jnp.zeros((3,))) if learned_balance else None

    @property
    def prefix(self) -> int:
        """Tokens that stand before the patches: class token and registers."""
        return self.trunk.prefix

    def layers(self, rngs: nnx.Rngs | None) -> list[tuple[Block, float, nnx.Rngs | None]]:
        """The trunk's blocks, each with its rate of stochastic depth and source of randomness."""
        rates = drop_path_rates(self.drop_path, len(self.trunk.blocks))
        keys = [None if rngs is None else Keys(rngs.blocks()) for _ in rates]
        return list(zip(self.trunk.blocks, rates, keys))

    def self_attention(
        self, x: Float[Array, "b n d"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[list[Float[Array, "b n d"]], list[Float[Array, "b n n"]]]:
        """(what enters each block and leaves the last, each block's attention averaged over heads)."""
        xs, attention = [x], []
        for block, rate, keys in self.layers(rngs):
            after, taps = record_taps(block, xs[-1], drop_path=rate, rngs=keys)
            xs.append(after)
            attention.append(taps["attn/weights"].mean(1))
        return xs, attention

    def select(self, attention: list[Float[Array, "b n n"]]) -> Int[Array, "b k"]:
        """Tokens GLCA asks with: the class token and, in raster order, the patches that reach it most."""
        row = jax.lax.stop_gradient(rollout_row(attention))[:, self.prefix :]
        count = max(1, math.floor(self.ratio * row.shape[1]))
        patches = jnp.sort(jax.lax.top_k(row, count)[1], axis=1) + self.prefix
        return jnp.concatenate([jnp.zeros_like(patches[:, :1]), patches], axis=1)

    def global_local(
        self, x: Float[Array, "b n d"], selected: Int[Array, "b k"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k d"]:
        """GLCA: the selected tokens after attending to all, before the branch's final norm."""
        asking = jnp.take_along_axis(x, selected[..., None], axis=1)
        return attend_to(self.glca, asking, x, drop_path=self.drop_path, rngs=rngs)

    def pair_wise(
        self,
        xs: list[Float[Array, "b n d"]],
        pairs: Int[Array, "b"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """PWCA: tokens after the last block, every image seeing the one at `pairs` as well.

        `xs` is what enters each block in the SA branch. "mutual" takes pairs to be mutual.
        """
        x = xs[0]
        for (block, rate, keys), own in zip(self.layers(rngs), xs):
            other = x if self.pwca == "mutual" else own
            x = attend_to(block, x, jnp.concatenate([x, other[pairs]], axis=1), drop_path=rate, rngs=keys)
        return x

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens of the SA branch after the last block, before its final norm (class token first)."""
        return self.trunk.features(images, rngs=rngs)

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised patch tokens of the SA branch: what another module attends to."""
        return self.trunk.encode(images, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        pairs: Int[Array, "b"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 "features" (b, 2 d), "logits", "logits_sa", "logits_glca" (b, classes), and each branch's
        class token, "token_sa" and "token_glca" (b, d). With `pairs`, each image's partner in the batch,
        also "logits_pwca" and "token_pwca".
        """
        x = dropout(self.trunk.tokenize(images), self.dropout, rngs)
        xs, attention = self.self_attention(x, rngs=rngs)
        looked = self.global_local(xs[-1], self.select(attention), rngs=rngs)
        trunk, out = self.trunk, {}
        branches = {"sa": (xs[-1], trunk.norm, trunk.head), "glca": (looked, self.glca_norm, self.glca_head)}
        if pairs is not None:
            branches["pwca"] = (self.pair_wise(xs, pairs, rngs=rngs), trunk.norm, trunk.head)
        for name, (tokens, norm, head) in branches.items():
            out[f"token_{name}"] = norm(tokens[:, 0]).astype(jnp.float32)
            out[f"logits_{name}"] = head(out[f"token_{name}"])
        log_sum = jnp.logaddexp(*(jax.nn.log_softmax(out[f"logits_{name}"]) for name in ("sa", "glca")))
        both = jnp.concatenate([out["token_sa"], out["token_glca"]], axis=-1)
        return out | {"features": both, "logits": log_sum - math.log(2.0)}


def create(variant: str, **overrides) -> DCAL:
    """Builds "t16", "s16", "b16", "b16_reid"; any constructor argument can be overridden."""
    return DCAL(**(VARIANTS[variant] | overrides))
