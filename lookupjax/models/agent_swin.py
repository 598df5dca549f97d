"""Agent-Swin (Agent Attention, ECCV 2024, arXiv 2312.08874): Swin Transformer with agent attention.

    image (b, H, W, c) -> 4x4 patches -> LN -> (b, H/4, W/4, 96)
    4 stages of blocks on maps; between them 2x2 neighbours are concatenated -> LN -> linear to twice
    the channels on half the grid
    LN -> mean over tokens -> head
    block:  x += attention in windows (LN x);  x += mlp(LN x)

Stages of kind "A" have agent attention in windows of `window` tokens (56: at 224 pixels the whole map),
stages of kind "B" Swin's softmax attention in windows of max(7, window // 8), every other block shifted
by half a window. A window at least as large as the map becomes the map, without shift. In kind "M" the
first `mixed` blocks are "A", the rest "B". Reference: LeapLabTHU/Agent-Attention. As there, agents of
shifted windows attend across the wrap-around. Unlike there, inputs of other sizes work: agent attention
that was global stays so, and maps are padded to whole windows as in Swin's detectors.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.agent import AgentAttention
from lookupjax.attention.dense import token_numbers
from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import Mlp, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table
from lookupjax.layers.regularise import Rate, drop_path, drop_path_rates, dropout
from lookupjax.layers.windows import from_windows, pad_to_multiple, to_windows
from lookupjax.models.published import Published

TINY, SMALL = dict(depths=(2, 2, 6, 2)), dict(depths=(2, 2, 18, 2), kinds="AABB")
BASE = dict(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), kinds="AAMB", mixed=2)
VARIANTS: dict[str, dict] = {
    "mu": dict(
        size=(32, 32),
        dim=16,
        depths=(1, 2),
        num_heads=(1, 2),
        window=8,
        mlp_ratio=2.0,
        agents=(9, 4),
        kinds="AM",
        mixed=1,
    ),
    "t": TINY,
    "s": SMALL,
    "s_288": SMALL | dict(size=(288, 288), window=72),
    "b": BASE,
    "b_384": BASE | dict(size=(384, 384), window=96),
}
INPUT_SIZE = {name: options["size"] for name, options in VARIANTS.items() if "size" in options}
REPO = "LeapLabTHU/Agent-Attention: params and MACs measured, top-1 of the README"
PUBLISHED = {
    "t": Published(params=28_902_964, gmacs=4.528, top1=82.6, source=REPO),
    "s": Published(params=49_666_684, gmacs=8.733, top1=83.7, source=REPO),
    "s_288": Published(params=49_707_964, gmacs=14.6, top1=84.1, size=(288, 288), source=REPO),
    "b": Published(params=88_095_096, gmacs=15.4, top1=84.0, source=REPO),
    "b_384": Published(params=88_305_016, gmacs=46.3, top1=84.9, size=(384, 384), source=REPO),
}


@lru_cache
def relative_index(window: tuple[int, int]) -> np.ndarray:
    """(n, n): the row of the bias table for each pair of tokens of a window, by their offset."""
    place = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(2, -1)
    offset = place[:, :, None] - place[:, None, :] + np.array(window)[:, None, None] - 1
    return offset[0] * (2 * window[1] - 1) + offset[1]


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: int) -> np.ndarray:
    """(windows, n, n), True where two tokens were neighbours before the map of `size` was rolled."""
    parts = [np.digitize(np.arange(n), (n - w, n - shift)) for n, w in zip(size, window)]
    region = 3 * parts[0][:, None] + parts[1][None]
    region = region.reshape(size[0] // window[0], window[0], size[1] // window[1], window[1])
    region = region.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    return region[:, :, None] == region[:, None, :]


class WindowAttention(TokenMixer):
    """Softmax attention within one window, with a learned bias for every offset between two tokens."""

    supports_mask = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: tuple[int, int],
        qkv_bias: bool,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads, self.window, self.dropout = num_heads, window, dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.bias = position_table(((2 * window[0] - 1) * (2 * window[1] - 1), num_heads), rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n m"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """Mixes the tokens of each window, x (batch x windows, n, d)."""
        self.check_call(context, mask, grid, causal)
        q, k, v = (
            self.tap(name, split_heads(layer(x), self.num_heads))
            for name, layer in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        bias = self.bias[...][relative_index(self.window)].transpose(2, 0, 1)
        scores = self.tap("scores", attention_scores(q, k) + bias[None])
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        return self.tap("output", self.out(merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))))


class Block(nnx.Module):
    """Pre-norm block whose attention works in windows of a map.

    Args:
      grid: the map's at the training size; decides whether the window is the whole map.
      window: side of the windows; smaller maps make it smaller.
      shifted: whether the windows are displaced by half their side, unless one of them is the map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        window: int,
        shifted: bool,
        kind: str,
        agents: int,
        mlp_ratio: float,
        eps: float,
        qkv_bias: bool,
        attention_dropout: float,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.window = min(window, *grid)
        self.shift = self.window // 2 if shifted and min(grid) > window else 0
        self.whole = kind == "A" and grid == (self.window, self.window)
        self.agents, self.dropout = kind == "A", dropout
        common = dict(dtype=dtype, rngs=rngs)
        attn = dict(window=(self.window,) * 2, qkv_bias=qkv_bias, dropout=attention_dropout, **common)
        self.attn_norm = LayerNorm(dim, eps=eps, **common)
        self.attn: TokenMixer
        if self.agents:
            self.attn = AgentAttention(dim, num_heads, agents=agents, **attn)
        else:
            self.attn = WindowAttention(dim, num_heads, **attn)
        self.mlp_norm = LayerNorm(dim, eps=eps, **common)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="exact", dropout=dropout, **common)

    def cut(
        self, x: Float[Array, "b h w d"], window: tuple[int, int]
    ) -> tuple[Float[Array, "b h2 w2 d"], Float[Array, "b k n d"]]:
        """(the map, padded and displaced, its windows)."""
        padded, _ = pad_to_multiple(x, window)
        if self.shift:
            padded = jnp.roll(padded, (-self.shift, -self.shift), axis=(1, 2))
        return padded, to_windows(padded, window)

    def attend(self, x: Float[Array, "b h w d"], *, rngs: nnx.Rngs | None) -> Float[Array, "b h w d"]:
        """Cut into windows, attention in each, back."""
        window = x.shape[1:3] if self.whole else (self.window, self.window)
        padded, windows = self.cut(x, window)
        tokens = windows.reshape(-1, *windows.shape[2:])
        if self.attn.tapped:
            self.attn.tap("places", self.cut(token_numbers(x.shape[1:3]), window)[1][..., 0])
        mask = None
        if self.shift and not self.agents:
            near = jnp.asarray(shift_mask(padded.shape[1:3], window, self.shift))
            mask = jnp.tile(near[:, None], (x.shape[0], 1, 1, 1))
        mixed = self.attn(tokens, mask=mask, grid=window, rngs=rngs)
        full = from_windows(mixed.reshape(windows.shape), window, padded.shape[1:3])
        if self.shift:
            full = jnp.roll(full, (self.shift, self.shift), axis=(1, 2))
        return full[:, : x.shape[1], : x.shape[2]]

    def __call__(
        self, x: Float[Array, "b h w d"], *, drop: Rate = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        update = dropout(self.attend(self.attn_norm(x), rngs=rngs), self.dropout, rngs)
        x = x + drop_path(update, drop, rngs)
        return x + drop_path(self.mlp(self.mlp_norm(x), rngs=rngs), drop, rngs)


class Merge(nnx.Module):
    """Patch merging: linear(LN([even even, odd even, even odd, odd odd])), named by (row, column)."""

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * dim, eps=eps, dtype=dtype, rngs=rngs)
        self.reduction = linear(4 * dim, 2 * dim, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 e"]:
        x, _ = pad_to_multiple(x, (2, 2))
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(quarters, axis=-1)))


class Stage(nnx.Module):
    """Blocks on one map, then patch merging unless it is the last stage."""

    def __init__(self, dim: int, num_heads: int, kinds: str, window: int, merge: bool, **options):
        self.blocks = nnx.List(
            Block(
                dim,
                num_heads,
                window=window if kind == "A" else max(7, window // 8),
                shifted=i % 2 == 1,
                kind=kind,
                **options,
            )
            for i, kind in enumerate(kinds)
        )
        common = {key: options[key] for key in ("eps", "dtype", "rngs")}
        self.merge = Merge(dim, **common) if merge else None


def block_kinds(kind: str, depth: int, mixed: int) -> str:
    """The kind of each block of a stage: "M" is `mixed` times "A", then "B"."""
    return "A" * min(mixed, depth) + "B" * (depth - mixed) if kind == "M" else kind * depth


class AgentSwin(nnx.Module):
    """Agent-Swin classifier.

    Args:
      size: image size (height, width) that windows and agent biases are made for.
      dim: channels of the first stage; each later one has twice as many.
      kinds: attention of each stage: "A", "B" or "M".
      mixed: blocks with agent attention in a stage of kind "M".
      window: side of the windows of agent attention, in tokens.
      agents: number of agent tokens of each stage.
      attention_dropout: of the attention maps.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        size: tuple[int, int] = (224, 224),
        patch: int = 4,
        channels: int = 3,
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        kinds: str = "AAAB",
        mixed: int = 0,
        window: int = 56,
        agents: tuple[int, ...] = (9, 16, 49, 49),
        qkv_bias: bool = True,
        eps: float = 1e-5,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(kinds) != len(depths) or set(kinds) - set("ABM"):
            raise UserError(f"kinds={kinds!r} needs a letter A, B or M for each of the {len(depths)} stages")
        self.drop_path, self.dropout = drop_path, dropout
        common = dict(eps=eps, dtype=dtype, rngs=rngs)
        shared = dict(mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, attention_dropout=attention_dropout)
        self.embed = PatchEmbed((patch, patch), channels, dim, dtype=dtype, rngs=rngs)
        self.embed_norm = LayerNorm(dim, **common)
        grid, stages = token_grid(size, (patch, patch)), []
        for i, depth in enumerate(depths):
            stages.append(
                Stage(
                    dim * 2**i,
                    num_heads[i],
                    block_kinds(kinds[i], depth, mixed),
                    window,
                    i < len(depths) - 1,
                    grid=grid,
                    agents=agents[i],
                    dropout=dropout,
                    **shared,
                    **common,
                )
            )
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(dim * 2 ** (len(depths) - 1), **common)
        self.head = nnx.Linear(dim * 2 ** (len(depths) - 1), num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, before patch merging, finest first."""
        x = dropout(self.embed_norm(self.embed(images)), self.dropout, rngs)
        rates = iter(drop_path_rates(self.drop_path, sum(len(stage.blocks) for stage in self.stages)))
        maps = []
        for stage in self.stages:
            for block in stage.blocks:
                x = block(x, drop=next(rates), rngs=rngs)
            maps.append(x)
            x = x if stage.merge is None else stage.merge(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens of the last stage: what another module attends to."""
        return self.norm(flatten_grid(self.features(images, rngs=rngs)[-1]))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": mean of the normalised tokens, "logits"}."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> AgentSwin:
    """Builds "t", "s", "s_288", "b", "b_384"; any constructor argument can be overridden."""
    return AgentSwin(**(VARIANTS[variant] | overrides))
