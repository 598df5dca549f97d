"""CCAN (ICCV 2023, arXiv 2307.13254): one ViT, a separate embedding space for every attribute.

    image (b, H, W, c) -> class token + patches (b, 1 + N, D) -> L - 1 ViT blocks -> x
    condition i -> learned query e_i (D)
    conditional cross-attention: y = e_i + attn(query LN e_i, keys and values LN x);  y += mlp(LN y)
    embedding of the image under condition i = unit length of linear(LN y)   (b, E)

All conditions share the trunk, so the spaces of one image cost one trunk and one query each. The paper
repeats the query to N + 1 tokens; equal queries give equal answers, so one is enough.

There is no official code: the block's details, such as the residual of the query (`query_residual`), are
our data sheet's reading. `lookupjax.tasks.conditional_triplet` trains it.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.layers.embed import PatchEmbed
from lookupjax.layers.mlp import Mlp, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, dropout
from lookupjax.models.published import Published
from lookupjax.models.stack import run_blocks
from lookupjax.models.vit import SIZES, Block

VARIANTS: dict[str, dict] = {
    # the smallest, for tests
    "mu": dict(patch=(8, 8), pos_grid=(4, 4), dim=32, depth=3, num_heads=2, conditions=3, embedding=16),
    "t16": SIZES["t"],
    "s16": SIZES["s"],
    "b16": SIZES["b"],
}
INPUT_SIZE = {"mu": (32, 32)}
PUBLISHED = {
    "b16": Published(86_200_064, source="our data sheet's reference model", note="8 conditions, 512 numbers")
}


class ConditionalAttention(nnx.Module):
    """A transformer block whose queries are conditions and whose keys and values are image tokens."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        gelu: str,
        query_residual: bool,
        eps: float,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.query_norm = LayerNorm(dim, eps=eps, **common)
        self.token_norm = LayerNorm(dim, eps=eps, **common)
        self.attn = SoftmaxAttention(dim, num_heads, **common)
        self.mlp_norm = LayerNorm(dim, eps=eps, **common)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu=gelu, dropout=dropout, **common)
        self.query_residual, self.dropout = query_residual, dropout

    def __call__(
        self,
        query: Float[Array, "b m d"],
        tokens: Float[Array, "b n d"],
        *,
        rate: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        y = dropout(self.attn(self.query_norm(query), self.token_norm(tokens), rngs=rngs), self.dropout, rngs)
        if self.query_residual:
            y = query + drop_path(y, rate, rngs)
        return y + drop_path(self.mlp(self.mlp_norm(y), rngs=rngs), rate, rngs)


class CCAN(nnx.Module):
    """Embeds images of any size, in one space per condition.

    Args:
      depth: blocks in all, the last of which is the conditional one.
      conditions: number of attributes, each with a space of its own.
      embedding: numbers of an embedding.
      query_residual: whether the query is added to what it finds.
      pos_init: standard deviation of the initial position table; patches of few pixels need more.
      dtype: compute dtype; parameters, softmax, norms' statistics and embeddings stay float32.
    """

    loss_heads = ("embedding",)

    def __init__(
        self,
        *,
        patch: tuple[int, int] = (16, 16),
        channels: int = 3,
        pos_grid: tuple[int, int] = (14, 14),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        conditions: int = 8,
        embedding: int = 512,
        mlp_ratio: float = 4.0,
        gelu: str = "exact",
        eps: float = 1e-6,
        query_residual: bool = True,
        pos_resize: str = "cubic",
        pos_init: float = 0.02,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch, self.conditions, self.pos_resize = tuple(patch), conditions, pos_resize
        self.drop_path, self.dropout, self.dtype = drop_path, dropout, dtype
        common = dict(mlp_ratio=mlp_ratio, gelu=gelu, eps=eps, dropout=dropout, dtype=dtype, rngs=rngs)
        self.embed = PatchEmbed(self.patch, channels, dim, dtype=dtype, rngs=rngs)
        self.pos = position_table((*pos_grid, dim), rngs, pos_init)
        self.cls = position_table((dim,), rngs)
        self.cls_pos = position_table((dim,), rngs)
        mixer = dict(attention="softmax", attention_options={}, layer_scale=None)
        self.blocks = nnx.List(Block(dim, num_heads, **mixer, **common) for _ in range(depth - 1))
        self.query = position_table((conditions, dim), rngs)
        self.condition = ConditionalAttention(dim, num_heads, query_residual=query_residual, **common)
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.head = linear(dim, embedding, dtype=dtype, rngs=rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens that every condition asks: the trunk's output, class token first."""
        x = self.embed(images)
        pos = resize_grid(self.pos[...], x.shape[1:-1], method=self.pos_resize)
        x = flatten_grid(x + pos.astype(self.dtype)[None])
        cls = (self.cls[...] + self.cls_pos[...]).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls[None, None], (x.shape[0], 1, cls.size)), x], axis=1)

        def call(block, x, *, drop_path, rngs):
            return block(x, drop_path=drop_path, rngs=rngs)

        x = dropout(x, self.dropout, rngs)
        return run_blocks(self.blocks, call, x, drop_path=self.drop_path, rngs=rngs)

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised patch tokens: what another module attends to."""
        return self.condition.token_norm(self.features(images, rngs=rngs)[:, 1:])

    def embeddings(
        self,
        tokens: Float[Array, "b n d"],
        condition: Int[Array, "b m"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m e"]:
        """Unit vectors of the images behind `tokens`, each in the spaces of its m conditions; float32."""
        query = self.query[...].astype(self.dtype)[condition]
        y = self.condition(query, tokens, rate=self.drop_path, rngs=rngs)
        embedding = self.head(self.norm(y)).astype(jnp.float32)
        length = jnp.sqrt(jnp.square(embedding).sum(-1, keepdims=True))
        return embedding / jnp.maximum(length, 1e-12)

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        condition: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "b ..."]]:
        """Float32 {"embedding": (b, e) under each image's condition, or (b, conditions, e) under all of
        them, "features": the same as one row per image}."""
        tokens = self.features(images, rngs=rngs)
        if condition is None:
            every = jnp.broadcast_to(jnp.arange(self.conditions)[None], (tokens.shape[0], self.conditions))
            embedding = self.embeddings(tokens, every, rngs=rngs)
        else:
            embedding = self.embeddings(tokens, condition[:, None], rngs=rngs)[:, 0]
        return {"embedding": embedding, "features": embedding.reshape(embedding.shape[0], -1)}


def create(variant: str, **overrides) -> CCAN:
    """Builds "t16", "s16", "b16"; any constructor argument can be overridden."""
    return CCAN(**(VARIANTS[variant] | overrides))
