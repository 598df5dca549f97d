"""Vision Transformer (arXiv 2010.11929), the baseline of every comparison here.

    image (b, H, W, c) -> patches + positions (b, N, D) -> L x [x += attn(LN x); x += mlp(LN x)]
      -> LN -> class token or mean over tokens -> head

References: google-research/vision_transformer (`gelu="tanh"`, `pool="norm_mean"`) and timm's
VisionTransformer (`gelu="exact"`, `pool="mean_norm"` for the average-pooled form). The defaults are
Google's. Any token mixer of `lookupjax.attention` can replace softmax attention (`attention=`).
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention import create_mixer
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, dropout
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
VARIANTS = {
    f"{size}{p}": SIZES[size] | dict(patch=(p, p)) for size, patches in PATCHES.items() for p in patches
}
VARIANTS["mu"] = SIZES["mu"] | dict(patch=(4, 4), pos_grid=(8, 8))
INPUT_SIZE = {"mu": (32, 32)}
HEADS = ("token", "gap")
POOLS = ("norm_mean", "mean_norm")


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


class ViT(nnx.Module):
    """Vision Transformer classifier over images of any size that holds at least one patch.

    Args:
      patch: patch size (height, width) in pixels.
      pos_grid: token grid of the learned position table; other grids resize it.
      head: "token" classifies a class token, "gap" the mean over patch tokens.
      pool: order of the final LayerNorm and the mean for "gap" ("mean_norm" is timm's fc_norm).
      pos_token: whether the class token has a row of the position table (timm: not no_embed_class).
      registers: extra learned tokens after the class token (arXiv 2309.16588).
      representation_size: width of a tanh pre-logits layer, None for none.
      pos_resize: "linear", "cubic" (timm) or "zoom" (Google's fine-tuning).
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
        pool: str = "norm_mean",
        gelu: str = "tanh",
        eps: float = 1e-6,
        pos_token: bool = True,
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
        self.embed = PatchEmbed(self.patch, channels, dim, dtype=dtype, rngs=rngs)
        self.pos = position_table((*self.pos_grid, dim), rngs, pos_init)
        self.cls = nnx.Param(jnp.zeros((dim,))) if head == "token" else None
        self.cls_pos = position_table((dim,), rngs, pos_init) if head == "token" and pos_token else None
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
        self.pre_logits = nnx.Linear(dim, representation_size, rngs=rngs) if representation_size else None
        zeros = nnx.initializers.zeros
        self.head = nnx.Linear(representation_size or dim, num_classes, kernel_init=zeros, rngs=rngs)

    @property
    def prefix(self) -> int:
        """Tokens that stand before the patches: class token and registers."""
        return int(self.cls is not None) + (0 if self.registers is None else self.registers.shape[0])

    def tokenize(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Patches plus positions, behind the class token and registers."""
        x = self.embed(images)
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
        grid = token_grid(images.shape[1:-1], self.patch)

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
        if self.head_kind == "token":
            pooled = self.norm(x[:, 0]).astype(jnp.float32)
        elif self.pool == "norm_mean":
            pooled = self.norm(x).astype(jnp.float32)[:, self.prefix :].mean(1)
        else:
            pooled = self.norm(x[:, self.prefix :].mean(1)).astype(jnp.float32)
        if self.pre_logits is not None:
            pooled = jnp.tanh(self.pre_logits(pooled))
        out = {"features": pooled, "logits": self.head(pooled)}
        return out | ({"aux_loss": aux} if rngs is not None and aux_layers(self.blocks) else {})

    def macs(self, size: tuple[int, int]) -> int:
        """Multiply-accumulates of the matrix products of one image of `size` (softmax attention).

        N patches and the prefix tokens T = N + prefix: L (2 T^2 D + (4 + 2 r) T D^2) + N p D + D classes.
        """
        grid = token_grid(size, self.patch)
        n, d = grid[0] * grid[1], self.dim
        t = n + self.prefix
        hidden = self.blocks[0].mlp.fc1.out_features
        layer = 2 * t * t * d + 4 * t * d * d + 2 * t * d * hidden
        rep = 0 if self.pre_logits is None else d * self.pre_logits.out_features
        embed = n * self.embed.kernel.size
        return len(self.blocks) * layer + embed + rep + self.head.kernel.size


def create(variant: str, **overrides) -> ViT:
    """Builds "s16", "b16", ...; any constructor argument can be overridden."""
    return ViT(**(VARIANTS[variant] | overrides))
