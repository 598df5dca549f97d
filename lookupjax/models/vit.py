"""Vision Transformer (arXiv 2010.11929), the baseline of every comparison here.

    image (b, H, W, c) [-> ResNet -> map (b, h, w, c')] -> patches + positions (b, N, D)
      -> L x [x += attn(LN x); x += mlp(LN x)]
      -> LN -> class token, mean over tokens or attention pooling -> head

References: google-research/vision_transformer and big_vision (`gelu="tanh"`, `pool="norm_mean"`), and
timm's VisionTransformer (`gelu="exact"`, `pool="mean_norm"` for the average-pooled form). The defaults are
Google's. Any token mixer of `lookupjax.attention` can replace softmax attention (`attention=`). The
hybrids ("r26_s32", ...) take their patches from a ResNet's map. Published weights of all of them load:
docs/weights.md.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention import create_mixer
from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, dropout
from lookupjax.layers.resnet import ResNetStem
from lookupjax.models.published import Published
from lookupjax.models.stack import run_blocks

SIZES = {
    "mu": dict(dim=32, depth=1, num_heads=2),  # the smallest, for tests
    "t": dict(dim=192, depth=12, num_heads=3),
    "s": dict(dim=384, depth=12, num_heads=6),
    "b": dict(dim=768, depth=12, num_heads=12),
    "l": dict(dim=1024, depth=24, num_heads=16),
    "h": dict(dim=1280, depth=32, num_heads=16),
}
PATCHES = {"mu": (16,), "t": (16,), "s": (16, 32), "b": (8, 16, 32), "l": (16, 32), "h": (14,)}
VARIANTS: dict[str, dict] = {
    f"{size}{p}": SIZES[size] | dict(patch=(p, p), pos_grid=(224 // p, 224 // p))
    for size, patches in PATCHES.items()
    for p in patches
}
VARIANTS["mu"] = SIZES["mu"] | dict(patch=(4, 4), pos_grid=(8, 8))
VARIANTS |= {  # "AugReg" (arXiv 2106.10270); r50_b16 is the first paper's
    "r_t16": SIZES["t"] | dict(resnet=(), patch=(8, 8), pos_grid=(7, 7)),
    "r26_s32": SIZES["s"] | dict(resnet=(2, 2, 2, 2), patch=(1, 1), pos_grid=(7, 7)),
    "r50_b16": SIZES["b"] | dict(resnet=(3, 4, 9), patch=(1, 1), pos_grid=(14, 14)),
    "r50_l32": SIZES["l"] | dict(resnet=(3, 4, 6, 3), patch=(1, 1), pos_grid=(7, 7)),
}
INPUT_SIZE = {"mu": (32, 32)}
HEADS = ("token", "gap", "map")
POOLS = ("norm_mean", "mean_norm")

TIMM, AUGREG = "timm 1.0.31, counted", "AugReg, ImageNet-21k, fine-tuned at 384"
FUSED = "fvcore counts timm's fused attention as nothing: gmacs_extra is Q K^T and A V"
PUBLISHED = {
    "t16": Published(5_717_416, 1.080, 0.179, top1=78.22, source=AUGREG, note=FUSED),
    "s32": Published(22_878_952, 1.122, 0.023, top1=79.58, source=AUGREG, note=FUSED),
    "s16": Published(22_050_664, 4.251, 0.358, top1=83.73, source=AUGREG, note=FUSED),
    "b32": Published(88_224_232, 4.368, 0.046, top1=83.59, source=AUGREG, note=FUSED),
    "b16": Published(86_567_656, 16.867, 0.715, top1=85.49, source=AUGREG, note=FUSED),
    "b8": Published(86_576_872, top1=85.838, source=TIMM, note="top-1 at 224"),
    "l16": Published(304_326_632, top1=85.59, source=AUGREG),
    "l32": Published(306_535_400, source=TIMM),
    "h14": Published(632_045_800, source=TIMM),
    "r_t16": Published(6_337_704, top1=75.40, source=AUGREG),
    "r26_s32": Published(36_431_912, top1=83.85, source=AUGREG),
    "r50_b16": Published(98_659_112, source="google-research/vision_transformer, counted"),
    "r50_l32": Published(328_994_856, top1=85.99, source=AUGREG),
}


class LayerScale(nnx.Module):
    """Learned per-channel scale of a residual branch (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float):
        self.gamma = nnx.Param(jnp.full((dim,), init))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x * self.gamma[...].astype(x.dtype)[None, None]


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        gelu: str,
        eps: float,
        dropout: float,
        attention: str,
        attention_options: dict,
        layer_scale: float | None,
        prefix: int = 0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        mixer = dict(prefix=prefix, dtype=dtype, rngs=rngs)
        self.attn_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.attn = create_mixer(attention, dim, num_heads, **mixer, **attention_options)
        self.attn_scale = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu=gelu, dropout=dropout, dtype=dtype, rngs=rngs)
        self.mlp_scale = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.dropout = dropout

    def with_aux(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: tuple[int, ...] | None = None,
        drop_path: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        """(tokens, auxiliary loss of the mixer)."""
        branch, aux = self.attn.mix(self.attn_norm(x), grid=grid, rngs=rngs)
        x = add_branch(x, dropout(branch, self.dropout, rngs), self.attn_scale, drop_path, rngs)
        branch = self.mlp(self.mlp_norm(x), rngs=rngs)
        return add_branch(x, branch, self.mlp_scale, drop_path, rngs), aux

    def __call__(self, x: Float[Array, "b n d"], **call) -> Float[Array, "b n d"]:
        """The tokens alone; `call` as of `with_aux`."""
        self.attn.check_aux(call.get("rngs"))
        return self.with_aux(x, **call)[0]


def add_branch(
    x: Float[Array, "b n d"],
    branch: Float[Array, "b n d"],
    scale: LayerScale | None,
    rate: Rate,
    rngs: nnx.Rngs | None,
) -> Float[Array, "b n d"]:
    return x + drop_path(branch if scale is None else scale(branch), rate, rngs)


def per_block(name: str, value: Any, depth: int) -> tuple:
    """One entry for every block: a tuple (or list) as it is, anything else repeated."""
    if not isinstance(value, tuple | list):
        return (value,) * depth
    if len(value) != depth:
        raise UserError(f"{name} has {len(value)} entries, the model has {depth} blocks")
    return tuple(value)


def aux_layers(blocks: Iterable[nnx.Module]) -> int:
    """Blocks whose mixer adds to the training loss."""
    return sum(block.attn.has_aux_loss for block in blocks)


class MapHead(nnx.Module):
    """Attention pooling (big_vision): a learned probe attends to the tokens; x = a + mlp(LN a)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio, gelu, eps, dtype: DTypeLike, rngs: nnx.Rngs):
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, dim))[0])
        self.attn = SoftmaxAttention(dim, num_heads, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu=gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype)[None, None], (x.shape[0], 1, x.shape[-1]))
        x = self.attn(probe, x)
        return (x + self.mlp(self.norm(x)))[:, 0]


class ViT(nnx.Module):
    """Vision Transformer classifier over images of any size that holds at least one patch.

    Args:
      patch: patch size (height, width) in pixels.
      pos_grid: token grid of the learned position table; other grids resize it.
      num_classes: 0: no classifier, a call returns "features" only.
      head: "token" classifies a class token, "gap" the mean over patch tokens, "map" what a learned probe
        attends to (big_vision).
      class_token: whether there is one; default: for head "token" only.
      pool: order of the final LayerNorm and the mean for "gap" ("mean_norm" is timm's fc_norm).
      pos_token: whether the class token has a row of the position table (timm: not no_embed_class).
      resnet: bottlenecks per stage of a ResNet before the patches (hybrids), None for none.
      resnet_width, resnet_form: of its root; see `ResNetStem`.
      registers: extra learned tokens after the class token (arXiv 2309.16588).
      representation_size: width of a tanh pre-logits layer, None for none.
      pos_resize: how the position table meets another grid: "linear", "cubic" (timm), "bilinear" (timm
        reading npz files) or "zoom" (Google's fine-tuning).
      pos_init: standard deviation of the initial position tables; patches of few pixels need more.
      attention, attention_options: token mixer and its own options; tuples give every block its own.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
      remat, scan: see `run_blocks`.
    """

    loss_heads = ("logits",)

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
        head: str = "token",
        class_token: bool | None = None,
        pool: str = "norm_mean",
        gelu: str = "tanh",
        eps: float = 1e-6,
        pos_token: bool = True,
        resnet: tuple[int, ...] | None = None,
        resnet_width: int = 64,
        resnet_form: str = "google",
        registers: int = 0,
        representation_size: int | None = None,
        layer_scale: float | None = None,
        pos_resize: str = "linear",
        pos_init: float = 0.02,
        attention: str | tuple[str, ...] = "softmax",
        attention_options: dict | tuple[dict, ...] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        scan: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("head", head, HEADS), ("pool", pool, POOLS)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        self.patch, self.pos_grid = tuple(patch), tuple(pos_grid)
        self.dim, self.head_kind, self.pool = dim, head, pool
        self.pos_resize, self.dropout, self.drop_path = pos_resize, dropout, drop_path
        self.remat, self.scan, self.dtype = remat, scan, dtype
        if class_token is None:
            class_token = head == "token"
        if head == "token" and not class_token:
            raise UserError('head="token" classifies a class token; use head="gap" without one')
        root = dict(width=resnet_width, form=resnet_form, dtype=dtype, rngs=rngs)
        self.stem = None if resnet is None else ResNetStem(channels, tuple(resnet), **root)
        channels = channels if resnet is None else self.stem.d_out
        self.embed = PatchEmbed(self.patch, channels, dim, dtype=dtype, rngs=rngs)
        self.pos = position_table((*self.pos_grid, dim), rngs, pos_init)
        self.cls = nnx.Param(jnp.zeros((dim,))) if class_token else None
        self.cls_pos = position_table((dim,), rngs, pos_init) if class_token and pos_token else None
        self.registers = position_table((registers, dim), rngs) if registers else None
        self.blocks = nnx.List(
            Block(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                gelu=gelu,
                eps=eps,
                dropout=dropout,
                attention=mixer,
                attention_options=dict(options),
                layer_scale=layer_scale,
                prefix=self.prefix,
                dtype=dtype,
                rngs=rngs,
            )
            for mixer, options in zip(
                per_block("attention", attention, depth),
                per_block("attention_options", attention_options or {}, depth),
            )
        )
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        pooling = dict(mlp_ratio=mlp_ratio, gelu=gelu, eps=eps, dtype=dtype, rngs=rngs)
        self.map = MapHead(dim, num_heads, **pooling) if head == "map" else None
        self.pre_logits = nnx.Linear(dim, representation_size, rngs=rngs) if representation_size else None
        zeros = nnx.initializers.zeros
        width = representation_size or dim
        self.head = nnx.Linear(width, num_classes, kernel_init=zeros, rngs=rngs) if num_classes else None

    @property
    def prefix(self) -> int:
        """Tokens that stand before the patches: class token and registers."""
        return int(self.cls is not None) + (0 if self.registers is None else self.registers.shape[0])

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Patches along each axis of images of `size`."""
        return token_grid(size if self.stem is None else self.stem.grid(size), self.patch)

    def tokenize(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Patches plus positions, behind the class token and registers."""
        x = self.embed(images if self.stem is None else self.stem(images))
        pos = resize_grid(self.pos[...], x.shape[1:-1], method=self.pos_resize)
        x = flatten_grid(x + pos.astype(self.dtype)[None])
        prefix = []
        if self.cls is not None:
            cls = self.cls[...] if self.cls_pos is None else self.cls[...] + self.cls_pos[...]
            prefix.append(cls[None])
        if self.registers is not None:
            prefix.append(self.registers[...])
        for tokens in reversed(prefix):
            tokens = jnp.broadcast_to(tokens.astype(self.dtype)[None], (x.shape[0], *tokens.shape))
            x = jnp.concatenate([tokens, x], axis=1)
        return x

    def with_aux(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        """(tokens after the last block, mean auxiliary loss of the mixers that have one)."""
        x = dropout(self.tokenize(images), self.dropout, rngs)
        grid = self.grid(images.shape[1:-1])

        def call(block, carry, *, drop_path, rngs):
            x, total = carry
            alone = self.prefix == 0 or block.attn.supports_prefix
            x, aux = block.with_aux(x, grid=grid if alone else None, drop_path=drop_path, rngs=rngs)
            return x, total + aux

        x, total = run_blocks(
            self.blocks,
            call,
            (x, jnp.zeros(())),
            drop_path=self.drop_path,
            rngs=rngs,
            remat=self.remat,
            scan=self.scan,
        )
        return x, total / max(aux_layers(self.blocks), 1)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens after the last block, before the final norm (prefix tokens first)."""
        return self.with_aux(images, rngs=rngs)[0]

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised patch tokens: what another module attends to."""
        return self.norm(self.features(images, rngs=rngs)[:, self.prefix :])

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Returns {"features": (b, d) pooled representation, "logits": (b, classes)}, float32.

        In training also {"aux_loss": scalar} when the mixers have one.
        """
        x, aux = self.with_aux(images, rngs=rngs)
        pooled = self.pooled(x)
        out = {"features": pooled} | ({} if self.head is None else {"logits": self.head(pooled)})
        return out | ({"aux_loss": aux} if rngs is not None and aux_layers(self.blocks) else {})

    def pooled(self, x: Float[Array, "b n d"]) -> Float[Array, "b _"]:
        """The representation that the head classifies, float32, from the tokens after the last block."""
        patches = x[:, self.prefix :]
        if self.head_kind == "token":
            pooled = self.norm(x[:, 0])
        elif self.map is not None:
            pooled = self.map(self.norm(patches))
        elif self.pool == "norm_mean":
            pooled = self.norm(patches).astype(jnp.float32).mean(1)
        else:
            pooled = self.norm(patches.mean(1))
        pooled = pooled.astype(jnp.float32)
        return pooled if self.pre_logits is None else jnp.tanh(self.pre_logits(pooled))

    def macs(self, size: tuple[int, int]) -> int:
        """Multiply-accumulates of the matrix products of one image of `size` (softmax attention).

        N patches and the prefix tokens T = N + prefix: L (2 T^2 D + (4 + 2 r) T D^2) + N p D + D classes,
        and those of the ResNet.
        """
        grid = self.grid(size)
        n, d = grid[0] * grid[1], self.dim
        t = n + self.prefix
        hidden = self.blocks[0].mlp.fc1.out_features
        layer = 2 * t * t * d + 4 * t * d * d + 2 * t * d * hidden
        rep = 0 if self.pre_logits is None else d * self.pre_logits.out_features
        embed = n * self.embed.kernel.size + (0 if self.stem is None else self.stem.macs(size))
        head = 0 if self.head is None else self.head.kernel.size
        if self.map is not None:  # one query; keys and values of every patch
            head += 2 * n * d * (d + 1) + 2 * d * d + 2 * d * hidden
        return len(self.blocks) * layer + embed + rep + head


def create(variant: str, **overrides) -> ViT:
    """Builds "s16", "b16", "r26_s32", ...; any constructor argument can be overridden."""
    return ViT(**(VARIANTS[variant] | overrides))
