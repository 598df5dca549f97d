"""Dynamic Perceiver (arXiv 2306.11248, ICCV 2023): early exits on a latent branch beside a CNN.

    X = stem(image) (b, h, w, C_0);  Z = latent (b, L, C_0)
    Z = SA_1(x2z_1(Z, X));  X = stage_1(X)
    for i = 2, 3, 4:
      Z = expand(mix(Z))        (b, L / 2^(i-1), C_(i-1))    half the tokens, the next stage's width
      X = z2x_i(X, Z)           every position reads the latent tokens
      Z = SA_i(x2z_i(Z, X))     latent tokens read the (updated) map, pooled to 7x7
      after SA_3: exit "early3" = linear(mean Z);  after SA_4: exit "att" = linear([mean Z, r_3])
      X = stage_i(X)
    exit "cnn" = linear(mean X);  X = z2x_last(X, Z);  exit "logits" = linear(BN [mean X, mean Z, r_4])

r_3, r_4 = ReLU(BN(linear(logits of "early3", "att"))): the shortcut between classifiers. The exits come in
the order early3, att, cnn, logits of the computation, so an image may stop at any of them: `run_segment`
goes from one exit to the next. The CNN ("host") is any `Staged` network: RegNetY, ResNet, MobileNet V3.

Reference: LeapLabTHU/Dynamic_Perceiver.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import (
    SoftmaxAttention,
    attention_scores,
    check_heads,
    merge_heads,
    split_heads,
)
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.mlp import Mlp, linear
from lookupjax.layers.norm import BatchNorm, LayerNorm
from lookupjax.layers.pool import adaptive_avg_pool
from lookupjax.layers.regularise import dropout
from lookupjax.models import create_model
from lookupjax.models.published import Published

CUTS = (3, 5, 8, 14)  # of MobileNet V3 large into a stem and four stages
VARIANTS: dict[str, dict] = {
    "mu": dict(
        host="regnet_mu",
        latents=16,
        latent_init=1.0,
        sa_heads=(1, 1, 2, 2),
        sa_widening=1,
        depth_factor=(0.4, 0.4, 0.2, 0.4),
    ),  # the smallest, for tests
    "reg400m_t128": dict(host="regnet_y400mf"),
    "reg800m_t128": dict(host="regnet_y800mf"),
    "reg1_6g_t256": dict(host="regnet_y1_6gf", latents=256),
    "reg3_2g_t256": dict(host="regnet_y3_2gf", latents=256),
    "resnet50_0375_t128": dict(
        host="resnet_50",
        host_options=dict(width=24, drop_path=0.2),
        depth_factor=(1.0, 1.0, 1.0, 1.0),
        exit_dropout=0.2,
    ),
    "mbv3_0x75_t128": dict(
        host="mobilenet_v3_large",
        host_options=dict(width=0.75, cuts=CUTS),
        depth_factor=(1.0, 1.0, 1.0, 3.0),
        hidden=960,
        exit_dropout=0.2,
    ),
}
INPUT_SIZE = {"mu": (64, 64)}
README = "README of LeapLabTHU/Dynamic_Perceiver; parameters and MACs by its own counter"
PUBLISHED = {
    "reg400m_t128": Published(params=11_606_544, gmacs=0.634, source=README),
    "reg800m_t128": Published(params=21_798_360, gmacs=1.298, top1=79.86, source=README),
    "reg1_6g_t256": Published(params=27_198_158, gmacs=2.289, source=README),
    "reg3_2g_t256": Published(params=62_780_258, gmacs=5.038, source=README),
    "resnet50_0375_t128": Published(params=20_283_336, top1=77.70, source=README),
    "mbv3_0x75_t128": Published(params=9_299_040, gmacs=0.266, top1=74.59, source=README),
}
SA_DEPTHS = (3, 3, 9, 3)
GRID = (7, 7)  # of the map that latent tokens read, whatever the image size
EXITS = ("logits_early3", "logits_att", "logits_cnn", "logits")  # in the order of computation


class CrossAttention(TokenMixer):
    """out(softmax(q k^T / sqrt(c)) v) from x (b, m, dim) to a context (b, n, context_dim), of inner width.

    `positions` learned rows, zero at first, are added to the projected keys.
    """

    supports_context = True

    def __init__(
        self,
        dim: int,
        context_dim: int,
        inner: int,
        num_heads: int,
        *,
        positions: int = 0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_heads(inner, num_heads)
        options = dict(bias=False, dtype=dtype, rngs=rngs)
        self.q = linear(dim, inner, **options)
        self.k = linear(context_dim, inner, **options)
        self.v = linear(context_dim, inner, **options)
        self.out = linear(inner, dim, dtype=dtype, rngs=rngs)
        self.pos = nnx.Param(jnp.zeros((positions, inner))) if positions else None
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "b m d"],
        context: Float[Array, "b n e"],
        *,
        mask: Bool[Array, "#b #h m n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        self.check_call(context, mask, grid, causal)
        k = self.k(context)
        if self.pos is not None:
            k = k + self.pos[...].astype(k.dtype)[None]
        q, k, v = (split_heads(t, self.num_heads) for t in (self.q(x), k, self.v(context)))
        weights = self.tap("weights", jax.nn.softmax(attention_scores(q, k), axis=-1)).astype(v.dtype)
        return self.out(merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v)))


class CrossLayer(nnx.Module):
    """x += attention(LN x, LN context); x += MLP(LN x)."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        inner: int,
        num_heads: int,
        *,
        widening: int = 1,
        positions: int = 0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.q_norm = LayerNorm(dim, eps=1e-5, **options)
        self.kv_norm = LayerNorm(context_dim, eps=1e-5, **options)
        self.attn = CrossAttention(dim, context_dim, inner, num_heads, positions=positions, **options)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, **options)
        self.mlp = Mlp(dim, dim * widening, gelu="exact", **options)

    def __call__(self, x: Float[Array, "b m d"], context: Float[Array, "b n e"]) -> Float[Array, "b m d"]:
        x = x + self.attn(self.q_norm(x), self.kv_norm(context)).astype(x.dtype)
        return x + self.mlp(self.mlp_norm(x)).astype(x.dtype)


class SelfLayer(nnx.Module):
    """z += attention(LN z); z += MLP(LN z)."""

    def __init__(self, dim: int, num_heads: int, widening: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        self.attn_norm = LayerNorm(dim, eps=1e-5, **options)
        self.attn = SoftmaxAttention(dim, num_heads, qkv_bias=False, **options)
        self.mlp_norm = LayerNorm(dim, eps=1e-5, **options)
        self.mlp = Mlp(dim, dim * widening, gelu="exact", **options)

    def __call__(self, z: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        z = z + self.attn(self.attn_norm(z)).astype(z.dtype)
        return z + self.mlp(self.mlp_norm(z)).astype(z.dtype)


class X2Z(nnx.Module):
    """Latent tokens read the map: X + depthwise 7x7 of X, pooled to `GRID`, its positions on the keys."""

    def __init__(self, dim: int, dwc: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        self.dwc = conv(dim, dim, 7, padding=3, groups=dim, **options) if dwc else None
        self.cross = CrossLayer(dim, dim, dim, 1, positions=GRID[0] * GRID[1], **options)

    def __call__(self, z: Float[Array, "b n d"], x: Float[Array, "b h w d"]) -> Float[Array, "b n d"]:
        if self.dwc is not None:
            x = x + self.dwc(x)
        x = adaptive_avg_pool(x, GRID)
        return self.cross(z, x.reshape(x.shape[0], -1, x.shape[-1]))


class Z2X(nnx.Module):
    """Every position of the map reads the latent tokens, through an eighth of its channels."""

    def __init__(self, dim: int, latent_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.cross = CrossLayer(dim, latent_dim, dim // 8, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"], z: Float[Array, "b n e"]) -> Float[Array, "b h w d"]:
        return self.cross(x.reshape(x.shape[0], -1, x.shape[-1]), z).reshape(x.shape)


class Shrink(nnx.Module):
    """Half the tokens, by a LayerNorm and a linear layer over tokens; then the same over channels."""

    def __init__(self, tokens: int, dim: int, d_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        self.mix_norm = LayerNorm(tokens, eps=1e-5, **options)
        self.mix = linear(tokens, tokens // 2, **options)
        self.expand_norm = LayerNorm(dim, eps=1e-5, **options)
        self.expand = linear(dim, d_out, **options)

    def __call__(self, z: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        mixed = self.mix(self.mix_norm(z.transpose(0, 2, 1))).transpose(0, 2, 1)
        return self.expand(self.expand_norm(mixed)).astype(z.dtype)


class Shortcut(nnx.Module):
    """ReLU(BN(linear(logits))): what a later classifier learns from an earlier one's logits."""

    def __init__(self, num_classes: int, dim: int, *, rngs: nnx.Rngs):
        self.linear = linear(num_classes, dim, rngs=rngs)
        self.norm = BatchNorm(dim, rngs=rngs)

    def __call__(self, logits: Float[Array, "b k"], *, train: bool) -> Float[Array, "b d"]:
        return jax.nn.relu(self.norm(self.linear(logits), train=train))


class Exit(nnx.Module):
    """[BN,] [linear, h-swish,] dropout, linear, in float32."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        norm: bool = False,
        hidden: int = 0,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.norm = BatchNorm(dim, rngs=rngs) if norm else None
        self.hidden = linear(dim, hidden, rngs=rngs) if hidden else None
        self.head = linear(hidden or dim, num_classes, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: Float[Array, "b d"], *, rngs: nnx.Rngs | None) -> Float[Array, "b k"]:
        if self.norm is not None:
            x = self.norm(x, train=rngs is not None)
        if self.hidden is not None:
            x = jax.nn.hard_swish(self.hidden(x))
        return self.head(dropout(x, self.dropout, rngs))


class DynPerceiver(nnx.Module):
    """Dynamic Perceiver over images of any size.

    Args:
      host, host_options: the CNN: a name of `create_model` with four stages, and its options.
      latents: latent tokens at first, a multiple of 8; halved before stages 2, 3 and 4.
      latent_init: standard deviation of their initial values.
      sa_heads, sa_widening: heads per stage and MLP ratio of the latent self-attention.
      depth_factor: self-attention layers per stage, relative to (3, 3, 9, 3).
      x2z, z2x, last_z2x, dwc, shortcuts: whether the latent tokens read the map, the map reads them, also
        after the last stage, the 7x7 convolution before x2z, the links between classifiers.
      hidden: width of a hidden layer of the exits "cnn" and "logits", 0 for none (MobileNet's form).
      exit_dropout: before the classifier of "cnn", with `hidden` also of "logits".
      dtype: compute dtype; parameters, softmax, statistics and exits stay float32.
    """

    loss_heads = EXITS

    def __init__(
        self,
        *,
        host: str = "regnet_y400mf",
        host_options: dict | None = None,
        latents: int = 128,
        latent_init: float = 0.02,
        sa_heads: tuple[int, ...] = (1, 2, 4, 8),
        sa_widening: int = 4,
        depth_factor: tuple[float, ...] = (1.0, 1.0, 1.0, 2.0),
        x2z: bool = True,
        z2x: bool = True,
        last_z2x: bool = True,
        dwc: bool = True,
        shortcuts: bool = True,
        hidden: int = 0,
        exit_dropout: float = 0.0,
        num_classes: int = 1000,
        channels: int = 3,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = dict(channels=channels, num_classes=0) | dict(host_options or {})
        self.cnn = create_model(host, dtype=dtype, rngs=rngs, **options)
        if len(getattr(self.cnn, "widths", ())) != 5:
            raise UserError(f"host={host!r} must be a convolutional network of four stages")
        if latents % 8:
            raise UserError(f"latents={latents} must be a multiple of 8: their number is halved three times")
        *dims, d_out = self.cnn.widths
        both = dict(dtype=dtype, rngs=rngs)
        draw = jnp.clip(latent_init * jax.random.normal(rngs.params(), (latents, dims[0])), -2.0, 2.0)
        self.latent = nnx.Param(draw)
        self.x2z = nnx.List(X2Z(dim, dwc, **both) for dim in dims) if x2z else None
        self.z2x = nnx.List(Z2X(dim, dim, **both) for dim in dims[1:]) if z2x else None
        self.last_z2x = Z2X(d_out, dims[3], **both) if last_z2x else None
        self.shrink = nnx.List(Shrink(latents // 2**i, dims[i], dims[i + 1], **both) for i in range(3))
        self.blocks = nnx.List(
            nnx.List(SelfLayer(dim, heads, sa_widening, **both) for _ in range(int(depth * factor)))
            for dim, heads, depth, factor in zip(dims, sa_heads, SA_DEPTHS, depth_factor)
        )
        link = dims[3] if shortcuts else 0
        self.shortcut3 = Shortcut(num_classes, link, rngs=rngs) if shortcuts else None
        self.shortcut4 = Shortcut(num_classes, link, rngs=rngs) if shortcuts else None
        head = dict(hidden=hidden, rngs=rngs)
        self.exit_early3 = Exit(dims[2], num_classes, rngs=rngs)
        self.exit_att = Exit(dims[3] + link, num_classes, rngs=rngs)
        self.exit_cnn = Exit(d_out, num_classes, dropout=exit_dropout, **head)
        self.exit_merge = Exit(
            d_out + dims[3] + link, num_classes, norm=True, dropout=exit_dropout if hidden else 0.0, **head
        )

    def latent_stage(
        self, i: int, x: Float[Array, "b h w c"], z: Float[Array, "b n _"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b m c"]]:
        """The exchange before CNN stage i (0 to 3): (x, z) updated."""
        if i > 0:
            z = self.shrink[i - 1](z)
            x = x if self.z2x is None else self.z2x[i - 1](x, z)
        z = z if self.x2z is None else self.x2z[i](z, x)
        for block in self.blocks[i]:
            z = block(z)
        return x, z

    def run_segment(
        self, exit: int, carry: tuple[Array, ...], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b k"], tuple[Array, ...]]:
        """From exit - 1 to `exit` (0 to 3, in the order of `EXITS`): (its logits, the carry for the next).

        The carry is (images,) before exit 0, (map, latent tokens, logits of the previous latent exit) after.
        """
        train = rngs is not None
        if exit == 0:
            (images,) = carry
            x, z = self.start(images, rngs)
            for i in range(2):
                x, z = self.latent_stage(i, x, z)
                x = self.cnn.run_stage(i, x, rngs=rngs)
            x, z = self.latent_stage(2, x, z)
            logits = self.exit_early3(mean(z), rngs=rngs)
            return logits, (x, z, logits)
        x, z, previous = carry
        if exit == 1:
            x, z = self.latent_stage(3, self.cnn.run_stage(2, x, rngs=rngs), z)
            linked = () if self.shortcut3 is None else (self.shortcut3(previous, train=train),)
            logits = self.exit_att(jnp.concatenate([mean(z), *linked], axis=-1), rngs=rngs)
            return logits, (x, z, logits)
        if exit == 2:
            x = self.cnn.run_stage(3, x, rngs=rngs)
            return self.exit_cnn(mean(x), rngs=rngs), (x, z, previous)
        x = x if self.last_z2x is None else self.last_z2x(x, z)
        linked = () if self.shortcut4 is None else (self.shortcut4(previous, train=train),)
        pooled = jnp.concatenate([mean(x), mean(z), *linked], axis=-1)
        return self.exit_merge(pooled, rngs=rngs), (pooled,)

    def start(
        self, images: Float[Array, "b h w c"], rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b h2 w2 d"], Float[Array, "b n d"]]:
        """The stem's map and the latent tokens, before stage 0.

        The tokens start nearly equal, and the LayerNorm over tokens sees their differences alone: they stay
        float32, only what is added to them is computed in `dtype`.
        """
        x, z = self.cnn.run_stem(images, rngs=rngs), self.latent[...]
        return x, jnp.broadcast_to(z[None], (x.shape[0], *z.shape))

    def stages(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[tuple[Float[Array, "b _ _ _"], Float[Array, "b _ _"]]]:
        """(map, latent tokens) after each of the four stages, before the last z2x."""
        x, z = self.start(images, rngs)
        both = []
        for i in range(4):
            x, z = self.latent_stage(i, x, z)
            x = self.cnn.run_stage(i, x, rngs=rngs)
            both.append((x, z))
        return both

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The output of every CNN stage, as the latent tokens changed its input; finest first."""
        return [x for x, _ in self.stages(images, rngs=rngs)]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """The latent tokens after the last stage."""
        return self.stages(images, rngs=rngs)[-1][1]

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"logits": of the last exit, "logits_early3", "logits_att", "logits_cnn", "features": what
        the last exit reads (b, d)}."""
        carry: tuple[Array, ...] = (images,)
        outputs = {}
        for i, name in enumerate(EXITS):
            outputs[name], carry = self.run_segment(i, carry, rngs=rngs)
        return outputs | {"features": carry[0]}


def mean(x: Float[Array, "b *s d"]) -> Float[Array, "b d"]:
    """Over all axes between batch and channels, in float32."""
    return x.astype(jnp.float32).mean(tuple(range(1, x.ndim - 1)))


def create(variant: str, **overrides) -> DynPerceiver:
    """Builds "reg800m_t128", "mbv3_0x75_t128", ...; any constructor argument can be overridden."""
    return DynPerceiver(**(VARIANTS[variant] | overrides))
