"""TokenLearner (arXiv 2106.11297, NeurIPS 2021): a ViT that goes on with a few learned tokens.

    image (b, H, W, c) -> patches + positions (b, N, D) -> blocks 0 .. loc - 1
    without fuser, once:     S = learner(x) (b, S, D), blocks loc .. L - 1 on the S tokens
    with fuser, every block: x += fuser(block(learner(x)), x)          (b, N, D) stays
    LN -> mean over tokens -> head

    learner: S maps over the positions; token s = weighted sum of x by map s
      "v1"    LN, four 3x3 convolutions of the map to S channels, sigmoid
      "v1.1"  LN, MLP D -> 64 -> S, softmax over the positions
    fuser: tokens mixed by a dense S x S map, spread over the positions by sigmoid(MLP(LN x)) (b, N, S)

Reference: google-research/scenic, projects/token_learner. For videos it is applied to each frame.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.mixer import Tapped
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.embed import PatchEmbed
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import drop_path_rates, dropout
from lookupjax.layers.rngs import Keys
from lookupjax.models.published import Published
from lookupjax.models.vit import SIZES, Block

FORMS = ("v1", "v1.1")
VARIANTS: dict[str, dict] = {
    "mu": SIZES["mu"] | dict(patch=(4, 4), pos_grid=(8, 8), depth=2, num_tokens=4, loc=1, bottleneck=16),
    **{f"{size}16": SIZES[size] | dict(loc=SIZES[size]["depth"] // 2) for size in ("s", "b", "l")},
    **{
        f"{size}16_fuser": SIZES[size] | dict(loc=SIZES[size]["depth"] // 2, fuser=True)
        for size in ("s", "b", "l")
    },
}
INPUT_SIZE = {"mu": (32, 32)}
PUBLISHED = {
    "b16": Published(
        gmacs=9.1,
        source="MACs counted from the definition; no weights are public",
        note="8 tokens from the middle block on",
    )
}


class TokenLearner(Tapped):
    """S tokens out of a map: x (b, h, w, d) -> (b, S, d). The tap "weights" is (b, 1, S, h w).

    Args:
      form: "v1" (convolutions, sigmoid) or "v1.1" (MLP, softmax).
      bottleneck: width of the MLP of "v1.1".
      pool: "sum" or "mean" over the positions, of "v1"; "v1.1" always sums.
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        *,
        form: str = "v1.1",
        bottleneck: int = 64,
        pool: str = "sum",
        dropout: float = 0.0,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("learner", form, FORMS), ("learner_pool", pool, ("sum", "mean"))):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        self.form, self.pool = form, pool
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        if form == "v1":
            widths, common = (dim, *(num_tokens,) * 3), dict(padding=1, bias=False, dtype=dtype, rngs=rngs)
            self.convs = nnx.List(conv(width, num_tokens, 3, **common) for width in widths)
        else:
            self.mlp = Bottleneck(dim, bottleneck, num_tokens, dropout=dropout, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b s d"]:
        y = self.norm(x)
        if self.form == "v1":
            for layer in self.convs[:-1]:
                y = jax.nn.gelu(layer(y), approximate=True)
            maps = jax.nn.sigmoid(self.convs[-1](y).astype(jnp.float32))
            if self.pool == "mean":
                maps = maps / (x.shape[1] * x.shape[2])
        else:
            maps = jax.nn.softmax(self.mlp(y, rngs=rngs).astype(jnp.float32), axis=(1, 2))
        maps = maps.reshape(x.shape[0], 1, -1, maps.shape[-1]).swapaxes(2, 3)
        maps = self.tap("weights", maps.astype(x.dtype))
        return jnp.einsum("bsn,bnd->bsd", maps[:, 0], flatten_grid(x))


class Bottleneck(nnx.Module):
    """MLP of another output width: d -> hidden -> d_out, tanh GELU."""

    def __init__(
        self, dim: int, hidden: int, d_out: int, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.fc1 = linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, d_out, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: Float[Array, "*s d"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "*s e"]:
        hidden = dropout(jax.nn.gelu(self.fc1(x), approximate=True), self.dropout, rngs)
        return dropout(self.fc2(hidden), self.dropout, rngs)


class TokenFuser(Tapped):
    """Spreads S tokens over the N positions that they were learned from; the caller adds the residual.

    The tap "weights" is (b, 1, N, S).

    Args:
      normalize: LayerNorms around the mixing of the tokens.
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        *,
        bottleneck: int = 64,
        normalize: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        norm, common = dict(eps=eps, dtype=dtype, rngs=rngs), dict(dtype=dtype, rngs=rngs)
        self.mix_norm1 = LayerNorm(dim, **norm) if normalize else None
        self.mix_norm2 = LayerNorm(dim, **norm) if normalize else None
        self.mix = nnx.Linear(num_tokens, num_tokens, kernel_init=nnx.initializers.zeros, **common)
        self.norm = LayerNorm(dim, **norm)
        self.mlp = Bottleneck(dim, bottleneck, num_tokens, dropout=dropout, **common)

    def __call__(
        self,
        tokens: Float[Array, "b s d"],
        x: Float[Array, "b *n d"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *n d"]:
        tokens = tokens if self.mix_norm1 is None else self.mix_norm1(tokens)
        tokens = self.mix(tokens.swapaxes(1, 2)).swapaxes(1, 2)
        tokens = tokens if self.mix_norm2 is None else self.mix_norm2(tokens)
        maps = jax.nn.sigmoid(self.mlp(self.norm(x), rngs=rngs).astype(jnp.float32))
        flat = maps.reshape(x.shape[0], 1, -1, maps.shape[-1]).astype(tokens.dtype)
        spread = jnp.einsum("bns,bsd->bnd", self.tap("weights", flat)[:, 0], tokens)
        return spread.reshape(*x.shape[:-1], -1)


class TokenLearnerViT(nnx.Module):
    """ViT classifier, averaging its tokens, with TokenLearner before block `loc`.

    Args:
      num_tokens: learned tokens S.
      loc: the block, from 0, before which tokens are learned; `depth` for never.
      fuser: learn, run the block and fuse in every block from `loc` on, so that all N tokens stay.
      learner, learner_pool, bottleneck: see `TokenLearner`.
      others: as of `models.vit.ViT`.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        num_tokens: int = 8,
        loc: int = 6,
        fuser: bool = False,
        learner: str = "v1.1",
        learner_pool: str = "sum",
        bottleneck: int = 64,
        patch: tuple[int, int] = (16, 16),
        channels: int = 3,
        pos_grid: tuple[int, int] = (14, 14),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        gelu: str = "tanh",
        eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= loc <= depth:
            raise UserError(f"loc={loc} must be one of the model's {depth} blocks, or {depth} for none")
        self.patch, self.loc, self.dtype, self.num_tokens = tuple(patch), loc, dtype, num_tokens
        self.dropout, self.drop_path = dropout, drop_path
        norm = dict(eps=eps, dtype=dtype, rngs=rngs)
        self.embed = PatchEmbed(self.patch, channels, dim, dtype=dtype, rngs=rngs)
        self.pos = position_table((*pos_grid, dim), rngs)
        layer = dict(mlp_ratio=mlp_ratio, gelu=gelu, dropout=dropout, layer_scale=None)
        layer |= dict(attention="softmax", attention_options={})
        self.blocks = nnx.List(Block(dim, num_heads, **layer, **norm) for _ in range(depth))
        small = dict(bottleneck=bottleneck, dropout=dropout, **norm)
        learn = small | dict(form=learner, pool=learner_pool)
        uses = 0 if loc == depth else depth - loc if fuser else 1
        self.learners = nnx.List(TokenLearner(dim, num_tokens, **learn) for _ in range(uses))
        self.fusers = nnx.List(TokenFuser(dim, num_tokens, **small) for _ in range(uses if fuser else 0))
        self.norm = LayerNorm(dim, **norm)
        self.head = nnx.Linear(dim, num_classes, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def run(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b h2 w2 d"]]:
        """(tokens after the last block, the last map of all N tokens)."""
        x = self.embed(images)
        grid = x.shape[1:-1]
        x = x + resize_grid(self.pos[...], grid).astype(self.dtype)[None]
        x = dropout(flatten_grid(x), self.dropout, rngs)
        rates = drop_path_rates(self.drop_path, len(self.blocks))
        keys = (
            [None] * len(rates)
            if rngs is None
            else [Keys(k) for k in jax.random.split(rngs.blocks(), len(rates))]
        )

        def to_map(x):
            return x.reshape(x.shape[0], *grid, x.shape[-1])

        last_map = x
        for i, (block, rate, key) in enumerate(zip(self.blocks, rates, keys)):
            call, after = dict(drop_path=rate, rngs=key), i - self.loc
            if self.fusers and after >= 0:
                tokens = block(self.learners[after](to_map(x), rngs=key), **call)
                x = x + self.fusers[after](tokens, x, rngs=key)
            else:
                x = block(self.learners[0](to_map(x), rngs=key) if after == 0 else x, **call)
            last_map = x if self.fusers or after < 0 else last_map
        return x, to_map(last_map)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b h2 w2 d"]]:
        """The one stage output: the last map of all patches (with fuser: after the last block)."""
        return [self.run(images, rngs=rngs)[1]]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t d"]:
        """Normalised tokens."""
        return self.norm(self.run(images, rngs=rngs)[0])

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Returns {"features": (b, d) pooled representation, "logits": (b, classes)}, float32."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> TokenLearnerViT:
    """Builds "s16", "b16", "b16_fuser", ...; any constructor argument can be overridden."""
    return TokenLearnerViT(**(VARIANTS[variant] | overrides))
