"""Token merging, ToMe (arXiv 2210.09461, ICLR 2023): a ViT that merges r pairs of similar tokens per block.

    image (b, H, W, c) -> class token, patches + positions (b, t, D), sizes 1 (b, t)
    L blocks:
      x += attn(LN x), scores + log(size of the key); metric = mean of the keys over heads (b, t, D / h)
      tokens at even places (A) each choose the most similar one at odd places (B);
      the r best pairs merge: size-weighted mean, sizes add up                          t -> t - r
      x += mlp(LN x)
    LN -> class token (or mean) -> head

The parameters are the ViT's, so that any ViT, trained without merging, can be used ("off the shelf", with
`prop_attn`). Class and distillation tokens are never merged into others. Reference: facebookresearch/ToMe,
on timm's ViT (`gelu="exact"`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lookupjax.attention.mixer import Tapped
from lookupjax.layers.regularise import dropout
from lookupjax.models.published import Published
from lookupjax.models.stack import run_blocks
from lookupjax.models.vit import SIZES, Block, ViT, add_branch, per_block

VARIANTS: dict[str, dict] = {
    "mu": SIZES["mu"] | dict(patch=(4, 4), pos_grid=(8, 8), depth=2, r=5),
    **{
        f"{size}16_r{r}": SIZES[size] | dict(r=r)
        for size, rs in dict(s=(8, 13, 16), b=(8, 13, 16), l=(7, 8)).items()
        for r in rs
    },
    **{f"b16_384_r{r}": SIZES["b"] | dict(pos_grid=(24, 24), r=r) for r in (23, 45)},
}
INPUT_SIZE = {"mu": (32, 32)} | {f"b16_384_r{r}": (384, 384) for r in (23, 45)}
OURS = "MACs counted from the definition"
SHELF = f"{OURS}; top-1 of the README, AugReg weights off the shelf"
PUBLISHED = {
    "s16_r13": Published(22_050_664, 2.70, top1=79.30, source=SHELF),
    "b16_r8": Published(86_567_656, 13.10, source=OURS),
    "b16_r13": Published(86_567_656, 10.37, top1=82.60, source=SHELF),
    "b16_r16": Published(86_567_656, 8.74, source=OURS),
    "l16_r8": Published(304_326_632, 30.95, source=OURS),
    "b16_384_r45": Published(gmacs=28.2, size=(384, 384), source=OURS),
}


class Matching(NamedTuple):
    """Which tokens merge: of t tokens, r at even places go into others at odd places.

    Attributes:
      kept: rows of A that stay, in the order in which they stand in the result.
      merged: rows of A that leave.
      into: row of B that each of `merged` goes into; several may share one.
      distilled: the result starts with the first kept row and the first of B.
    """

    kept: Int[Array, "b k"]
    merged: Int[Array, "b r"]
    into: Int[Array, "b r"]
    distilled: bool


def match(
    metric: Float[Array, "b t c"], r: int, *, class_token: bool = True, distilled: bool = False
) -> Matching | None:
    """Bipartite soft matching by cosine similarity, without gradient; None when nothing can merge.

    Args:
      r: pairs; at most half of the tokens that are not protected.
      class_token, distilled: the first token, and the second one, are protected.
    """
    r = min(r, (metric.shape[1] - class_token - distilled) // 2)
    if r <= 0:
        return None
    metric = jax.lax.stop_gradient(metric).astype(jnp.float32)
    metric = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = jnp.einsum("bic,bjc->bij", a, b)
    if class_token:
        scores = scores.at[:, 0].set(-jnp.inf)
    if distilled:
        scores = scores.at[:, :, 0].set(-jnp.inf)
    order = jnp.argsort(-scores.max(-1), axis=-1)
    kept, merged = order[:, r:], order[:, :r]
    into = jnp.take_along_axis(scores.argmax(-1), merged, axis=1)
    # with a class token the rest keeps its place, otherwise it stands by falling similarity
    return Matching(jnp.sort(kept, axis=1) if class_token else kept, merged, into, distilled)


def merge_sum(x: Float[Array, "b t d"], matching: Matching) -> Float[Array, "b t2 d"]:
    """Merged tokens as sums: the kept ones of A, then all of B with what came in added."""
    a, b = x[:, ::2], x[:, 1::2]
    kept, leaving = (jnp.take_along_axis(a, i[..., None], axis=1) for i in (matching.kept, matching.merged))
    # a product with a one-hot matrix: scattering is slow on accelerators
    target = jax.nn.one_hot(matching.into, b.shape[1], dtype=x.dtype)
    b = b + jnp.einsum("brj,brd->bjd", target, leaving, precision="highest")
    if matching.distilled:
        return jnp.concatenate([kept[:, :1], b[:, :1], kept[:, 1:], b[:, 1:]], axis=1)
    return jnp.concatenate([kept, b], axis=1)


def merge(
    x: Float[Array, "b t d"], size: Float[Array, "b t"], matching: Matching
) -> tuple[Float[Array, "b t2 d"], Float[Array, "b t2"]]:
    """(size-weighted means, sizes) of the merged tokens; sums in float32."""
    weighted = x.astype(jnp.float32) * size[..., None]
    both = merge_sum(jnp.concatenate([weighted, size[..., None]], axis=-1), matching)
    return (both[..., :-1] / both[..., -1:]).astype(x.dtype), both[..., -1]


def source_matrix(source: Float[Array, "b t n"], matching: Matching) -> Float[Array, "b t2 n"]:
    """Which of n original tokens each token holds, 1 or 0, after one more merging."""
    return merge_sum(source, matching)


def unmerge(x: Float[Array, "b t d"], source: Float[Array, "b t n"]) -> Float[Array, "b n d"]:
    """Every original token gets the value of the token that holds it."""
    return jnp.einsum("btn,btd->bnd", source.astype(x.dtype), x, precision="highest")


def merging_schedule(r: int | tuple[int, ...], inflect: float, depth: int) -> tuple[int, ...]:
    """Pairs merged in every block: `r` on average, changing linearly from r (1 - inflect) to r (1 + inflect).

    A tuple is taken as it is, with zeros for the blocks it does not reach.
    """
    if isinstance(r, tuple):
        return (*r, *(0,) * (depth - len(r)))
    first = int(r * (1.0 - inflect))
    step = (2 * r - 2 * first) / max(depth - 1, 1)
    return tuple(int(first + step * i) for i in range(depth))


class Tokens(NamedTuple):
    """What flows from block to block; `source` says which of the n original tokens each one holds."""

    x: Float[Array, "b t d"]
    size: Float[Array, "b t"]
    source: Float[Array, "b t n"]


class ToMe(Tapped, ViT):
    """ViT classifier with token merging.

    The tap "source" shows which original tokens every token holds, before each block and after the last one.

    Args:
      r: pairs of tokens merged in every block, or a tuple of one number for each block.
      inflect: -1 to 1: -1 merges most in the first block and nothing in the last.
      prop_attn: proportional attention: scores + log(size of the key). Models trained with merging can do
        without.
      distilled: a second, distillation token with a head of its own; the logits are both heads' mean.
      others: as of `ViT`.
    """

    def __init__(
        self,
        *,
        r: int | tuple[int, ...] = 8,
        inflect: float = 0.0,
        prop_attn: bool = True,
        distilled: bool = False,
        patch: tuple[int, int] = (16, 16),
        channels: int = 3,
        pos_grid: tuple[int, int] = (14, 14),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        head: str = "token",
        class_token: bool | None = None,
        pool: str = "norm_mean",
        gelu: str = "exact",
        eps: float = 1e-6,
        pos_token: bool = True,
        registers: int = 0,
        layer_scale: float | None = None,
        pos_resize: str = "cubic",
        attention_options: dict | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            patch=patch,
            channels=channels,
            pos_grid=pos_grid,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            mlp_ratio=mlp_ratio,
            head=head,
            class_token=class_token,
            pool=pool,
            gelu=gelu,
            eps=eps,
            pos_token=pos_token,
            registers=registers + distilled,
            layer_scale=layer_scale,
            pos_resize=pos_resize,
            attention_options=attention_options,
            dropout=dropout,
            drop_path=drop_path,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.prop_attn, self.distilled = prop_attn, distilled
        self.schedule = per_block("r", merging_schedule(r, inflect, depth), depth)
        for block, pairs in zip(self.blocks, self.schedule):
            block.r = pairs
        own_head = distilled and num_classes
        self.head_dist = (
            nnx.Linear(dim, num_classes, kernel_init=nnx.initializers.zeros, rngs=rngs) if own_head else None
        )

    def block(self, block: Block, tokens: Tokens, *, drop_path, rngs: nnx.Rngs | None) -> Tokens:
        """Attention, merging, MLP."""
        x, size, source = tokens
        source = self.tap("source", source)
        q, k, v = block.attn.project(block.attn_norm(x))
        bias = jnp.log(size)[:, None, None] if self.prop_attn else None
        y = dropout(block.attn.attend(q, k, v, bias=bias, rngs=rngs), block.dropout, rngs)
        x = add_branch(x, y, block.attn_scale, drop_path, rngs)
        kinds = dict(class_token=self.cls is not None, distilled=self.distilled)
        matching = match(k.astype(jnp.float32).mean(1), block.r, **kinds)
        if matching is not None:
            x, size = merge(x, size, matching)
            source = source_matrix(source, matching)
        y = block.mlp(block.mlp_norm(x), rngs=rngs)
        return Tokens(add_branch(x, y, block.mlp_scale, drop_path, rngs), size, source)

    def run(self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None) -> Tokens:
        """The tokens after the last block, before the final norm. A caller under jit that does not use
        `source` does not pay for it."""
        x = dropout(self.tokenize(images), self.dropout, rngs)
        source = jnp.broadcast_to(jnp.eye(x.shape[1])[None], (x.shape[0], x.shape[1], x.shape[1]))
        tokens = Tokens(x, jnp.ones(x.shape[:2]), source)
        stack = dict(drop_path=self.drop_path, rngs=rngs, remat=self.remat)
        tokens = run_blocks(self.blocks, self.block, tokens, **stack)
        return tokens._replace(source=self.tap("source", tokens.source))

    def with_aux(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, ""]]:
        """(merged tokens after the last block, 0)."""
        return self.run(images, rngs=rngs).x, jnp.zeros(())

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """A token for every original one (prefix tokens first), merged ones sharing their value."""
        tokens = self.run(images, rngs=rngs)
        return unmerge(tokens.x, tokens.source)

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t d"]:
        """Normalised merged tokens, without those that stand before the patches."""
        return self.norm(self.run(images, rngs=rngs).x[:, self.prefix :])

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Returns {"features": (b, d) pooled representation, "logits": (b, classes)}, float32.

        With `distilled`, also "logits_distilled"; "logits" is then the mean of both heads.
        """
        x = self.run(images, rngs=rngs).x
        pooled = self.pooled(x)
        out = {"features": pooled} | ({} if self.head is None else {"logits": self.head(pooled)})
        if self.head_dist is not None:
            second = self.head_dist(self.norm(x[:, 1]).astype(jnp.float32))
            out |= {"logits": 0.5 * (out["logits"] + second), "logits_distilled": second}
        return out


def create(variant: str, **overrides) -> ToMe:
    """Builds "b16_r8", "s16_r13", ...; any constructor argument can be overridden."""
    return ToMe(**(VARIANTS[variant] | overrides))
