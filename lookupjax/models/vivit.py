"""ViViT (arXiv 2103.15691, ICCV 2021): transformers for video, joint or factorised over space and time.

    clip (b, T, H, W, c) -> tubelets + positions (b, t, h, w, D), flattened time first
    joint                      cls + all t h w tokens -> L blocks -> LN -> cls or mean -> head
    factorised_encoder         every frame's cls + h w tokens, one position table for all frames -> L blocks
                               -> LN -> cls or mean (b, t, D) -> cls + t tokens -> 4 blocks -> LN -> head
    factorised_self_attention  x += attn_time(LN x); x += attn_space(LN x); x += mlp(LN x)   no cls
    factorised_dot_product     half of the heads attend over time, half within the frame     no cls

Reference: scenic's projects/vivit. With `sampled_frames` that many frames are picked evenly and cut into
patches of their own, patch=(1, height, width), instead of tubelets. Parameters are called as a ViT's, so an
image model's weights load (`interop/vivit.py`): `tubelet_init` says what becomes of the patch kernel, and
the position table is repeated over time. What differs: stochastic depth also acts on the factorised blocks
(the reference ignores its rate there).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import SoftmaxAttention, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, dropout
from lookupjax.models.published import Published
from lookupjax.models.stack import run_blocks

SIZES = {
    "b": dict(dim=768, depth=12, num_heads=12),
    "l": dict(dim=1024, depth=24, num_heads=16),
    "h": dict(dim=1280, depth=32, num_heads=16),
}
FORMS = ("joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product")
SHORT = dict(zip(("", "_fe", "_fsa", "_fdp"), FORMS))
VARIANTS: dict[str, dict] = {
    f"{size}16x2{short}": SIZES[size]
    | dict(form=form, head="token" if form in FORMS[:2] else "gap", patch=(2, 16, 16), pos_grid=(16, 14, 14))
    for size in SIZES
    for short, form in SHORT.items()
}
VARIANTS["mu"] = dict(dim=32, depth=1, num_heads=2, form="factorised_encoder", temporal_depth=1)  # for tests
VARIANTS["mu"] |= dict(patch=(2, 8, 8), pos_grid=(4, 4, 4))
INPUT_SIZE = {name: (32, 224, 224) for name in VARIANTS} | {"mu": (8, 32, 32)}
HEADS = ("token", "gap", "max", "sum")
ORDERS = ("time_space", "space_time")
TEMPORAL = ("transformer", "mean")

SOURCE = "scenic's projects/vivit, counted there; GMACs of this table"
CLIP = (32, 224, 224)
PUBLISHED = {
    name: Published(params, gmacs, size=CLIP, source=SOURCE, note=note)
    for name, params, gmacs, note in (
        ("b16x2", 88_954_000, 451.5, "Kinetics-400: 79.9 % (4x3 views)"),
        ("b16x2_fe", 115_062_928, 283.3, "Kinetics-400: 78.4 % (4x3 views)"),
        ("b16x2_fsa", 117_319_312, 371.1, "Kinetics-400: 77.4 % (one view, the paper's ablation)"),
        ("b16x2_fdp", 88_952_464, 276.2, "the joint model's parameters without the class token's"),
        ("l16x2", 307_508_624, 1436.0, ""),
        ("l16x2_fe", 354_903_440, 988.2, "Kinetics-400: 80.3 % (4x3 views)"),
    )
}


def within_frames(mixer: TokenMixer, x: Float[Array, "b n d"], frames: int, **call) -> Float[Array, "b n d"]:
    """Lets the tokens of each frame attend to each other; n = frames * tokens of one, time first."""
    b, n, d = x.shape
    return mixer(x.reshape(b * frames, n // frames, d), **call).reshape(b, n, d)


def across_frames(mixer: TokenMixer, x: Float[Array, "b n d"], frames: int, **call) -> Float[Array, "b n d"]:
    """Lets the tokens at each place of the frame attend to each other."""
    b, n, d = x.shape
    y = x.reshape(b, frames, n // frames, d).swapaxes(1, 2)
    y = mixer(y.reshape(-1, frames, d), **call).reshape(b, n // frames, frames, d)
    return y.swapaxes(1, 2).reshape(b, n, d)


class FactorisedHeads(SoftmaxAttention):
    """The first half of the heads attends across frames, the second half within each (model 4)."""

    supports_context = supports_mask = supports_causal = False
    needs_grid = True

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "..."] | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """`grid` is (frames, ...)."""
        self.check_call(context, mask, grid, causal)
        q = self.tap("q", split_heads(self.q(x), self.num_heads))
        k = self.tap("k", split_heads(self.k(x), self.num_heads))
        v = self.tap("v", split_heads(self.v(x), self.num_heads))
        halves, places = [], x.shape[1] // grid[0]
        for half in range(2):
            heads = slice(half * self.num_heads // 2, (half + 1) * self.num_heads // 2)
            # to (b, h/2, places, frames, c) for time, (b, h/2, frames, places, c) for space
            qh, kh, vh = (self.to_lines(z[:, heads], grid[0], across=half == 0) for z in (q, k, v))
            scores = jnp.einsum("bhlmc,bhlnc->bhlmn", qh, kh, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1)
            weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
            if self.tapped:
                halves.append(weights)
                continue
            mixed = jnp.einsum("bhlmn,bhlnc->bhlmc", weights, vh)
            mixed = mixed.swapaxes(2, 3) if half == 0 else mixed
            halves.append(mixed.reshape(*mixed.shape[:2], x.shape[1], -1))
        if self.tapped:  # whoever listens gets the whole map that multiplies v
            time, space = halves
            time = jnp.einsum("bhntu,nm->bhtnum", time, jnp.eye(places, dtype=time.dtype))
            space = jnp.einsum("bhtnm,tu->bhtnum", space, jnp.eye(grid[0], dtype=space.dtype))
            whole = jnp.concatenate([time, space], axis=1).reshape(*v.shape[:3], x.shape[1])
            halves = [jnp.einsum("bhmn,bhnc->bhmc", self.tap("weights", whole), v)]
        return self.tap("output", self.out(merge_heads(jnp.concatenate(halves, axis=1))))

    @staticmethod
    def to_lines(z: Float[Array, "b h n c"], frames: int, across: bool) -> Float[Array, "b h l m c"]:
        z = z.reshape(*z.shape[:2], frames, -1, z.shape[-1])
        return z.swapaxes(2, 3) if across else z


class Block(nnx.Module):
    """Pre-norm block; `attn_norm` and `attn` are those of space where space and time are apart."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        form: str,
        order: str,
        mlp_ratio: float,
        gelu: str,
        eps: float,
        dropout: float,
        attention_dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.form, self.order, self.dropout = form, order, dropout
        norm = dict(eps=eps, dtype=dtype, rngs=rngs)
        attention = dict(dropout=attention_dropout, dtype=dtype, rngs=rngs)
        divided = form == "factorised_self_attention"
        self.time_norm = LayerNorm(dim, **norm) if divided else None
        self.time_attn = SoftmaxAttention(dim, num_heads, **attention) if divided else None
        self.attn_norm = LayerNorm(dim, **norm)
        mixer = FactorisedHeads if form == "factorised_dot_product" else SoftmaxAttention
        self.attn = mixer(dim, num_heads, **attention)
        self.mlp_norm = LayerNorm(dim, **norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu=gelu, dropout=dropout, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: tuple[int, ...],
        drop_path: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """`grid`: (frames, ...) of the tokens, which stand time first."""

        def add(x: Float[Array, "b n d"], branch: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
            return add_branch(x, dropout(branch, self.dropout, rngs), drop_path, rngs)

        if self.time_attn is None:
            x = add(x, self.attn(self.attn_norm(x), grid=grid, rngs=rngs))
        else:
            for axis in self.order.split("_"):
                if axis == "time":
                    y = self.time_norm(x)
                    x = add(x, across_frames(self.time_attn, y, grid[0], rngs=rngs))
                else:
                    y = self.attn_norm(x)
                    x = add(x, within_frames(self.attn, y, grid[0], rngs=rngs))
        return add_branch(x, self.mlp(self.mlp_norm(x), rngs=rngs), drop_path, rngs)


def add_branch(
    x: Float[Array, "b n d"], branch: Float[Array, "b n d"], rate: Rate, rngs: nnx.Rngs | None
) -> Float[Array, "b n d"]:
    return x + drop_path(branch, rate, rngs, rescale=False)


def pool(x: Float[Array, "b n d"], head: str) -> Float[Array, "b d"]:
    """One vector per sequence, float32: its first token, or the mean, maximum or sum of all."""
    x = x.astype(jnp.float32)
    if head == "token":
        return x[:, 0]
    if head == "gap":
        return x.mean(1)
    return x.max(1) if head == "max" else x.sum(1)


class Tokens(nnx.Module):
    """Positions on a grid and, for the head "token", a class token with one of its own."""

    def __init__(self, grid: tuple[int, ...], dim: int, *, head: str, pos_init: float, rngs: nnx.Rngs):
        self.pos = position_table((*grid, dim), rngs, pos_init)
        self.cls = nnx.Param(jnp.zeros((dim,))) if head == "token" else None
        self.cls_pos = position_table((dim,), rngs, pos_init) if head == "token" else None

    def place(self, x: Float[Array, "b ..."], pos_resize: str) -> Float[Array, "b n d"]:
        """x (b, *grid, d) plus its positions, flattened, behind the class token."""
        pos = resize_grid(self.pos[...], x.shape[1:-1], method=pos_resize)
        x = flatten_grid(x + pos.astype(x.dtype)[None])
        if self.cls is None:
            return x
        cls = (self.cls[...] + self.cls_pos[...]).astype(x.dtype)[None, None]
        return jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[-1])), x], axis=1)


class TemporalTransformer(Tokens):
    """Blocks over one vector per frame (model 2): (b, t, d) -> (b, d)."""

    def __init__(
        self,
        frames: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        head: str,
        pos_init: float,
        pos_resize: str,
        eps: float,
        dropout: float,
        drop_path: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        **block,
    ):
        super().__init__((frames,), dim, head=head, pos_init=pos_init, rngs=rngs)
        self.head, self.pos_resize, self.dropout, self.drop_path = head, pos_resize, dropout, drop_path
        self.dtype = dtype
        block |= dict(eps=eps, dropout=dropout, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            Block(dim, num_heads, form="joint", order="time_space", **block) for _ in range(depth)
        )
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b d"]:
        grid = (x.shape[1],)
        x = dropout(self.place(x.astype(self.dtype), self.pos_resize), self.dropout, rngs)

        def call(block, x, *, drop_path, rngs):
            return block(x, grid=grid, drop_path=drop_path, rngs=rngs)

        x = run_blocks(self.blocks, call, x, drop_path=self.drop_path, rngs=rngs)
        return pool(self.norm(x), self.head)


def even_frames(frames: int, wanted: int) -> tuple[int, ...]:
    """Places of `wanted` frames picked evenly among `frames`, as the reference picks them."""
    step = frames / (wanted + 1)
    places = np.arange(step, frames, step) if wanted < frames else np.arange(frames)
    return tuple(np.minimum(np.round(places).astype(int), frames - 1).tolist())


class ViViT(Tokens):
    """Video classifier over clips of any size that hold at least one tubelet.

    Args:
      patch: tubelet (frames, height, width); a number of frames that it does not divide loses the rest.
      pos_grid: token grid (t, h, w) of the learned position table; other grids resize it. The factorised
        encoder's has no t, its temporal transformer's nothing else.
      form: one of FORMS, see the module.
      head: "token" classifies a class token ("joint" and "factorised_encoder"), "gap", "max" and "sum" what
        is so pooled over the tokens; the factorised encoder pools each frame, then the frames.
      temporal: what follows the frames of the factorised encoder, a "transformer" of `temporal_depth` blocks
        or their "mean" (the paper's frame baseline).
      order: of the factorised self-attention's two.
      sampled_frames: 0 for tubelets, see the module.
      tubelet_init: "central" puts the kernel into the middle frame of the tubelet (index t // 2) with zeros
        around, "average" into all, "random" draws each; also of an image model's kernel.
      pos_resize: how position tables meet another grid; "zoom" is the reference's.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
      remat, scan: see `run_blocks`.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        patch: tuple[int, int, int] = (2, 16, 16),
        channels: int = 3,
        pos_grid: tuple[int, int, int] = (16, 14, 14),
        form: str = "joint",
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 400,
        mlp_ratio: float = 4.0,
        head: str = "token",
        temporal: str = "transformer",
        temporal_depth: int = 4,
        order: str = "time_space",
        sampled_frames: int = 0,
        tubelet_init: str = "central",
        gelu: str = "tanh",
        eps: float = 1e-6,
        pos_resize: str = "zoom",
        pos_init: float = 0.02,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        scan: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (
            ("form", form, FORMS),
            ("head", head, HEADS),
            ("temporal", temporal, TEMPORAL),
            ("order", order, ORDERS),
        ):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        if head == "token" and form not in FORMS[:2]:
            raise UserError(f'form={form!r} has no class token; use head="gap"')
        if form == "factorised_dot_product" and num_heads % 2:
            raise UserError(
                f"form={form!r} gives half of the heads to each axis; num_heads={num_heads} is odd"
            )
        if sampled_frames and patch[0] != 1:
            raise UserError(f"sampled_frames cuts single frames into patches: use patch={(1, *patch[1:])}")
        self.patch, self.pos_grid, self.form = tuple(patch), tuple(pos_grid), form
        self.head_kind, self.dim, self.sampled_frames = head, dim, sampled_frames
        self.tubelet_init, self.pos_resize = tubelet_init, pos_resize
        self.dropout, self.drop_path, self.remat, self.scan, self.dtype = (
            dropout,
            drop_path,
            remat,
            scan,
            dtype,
        )
        self.embed = PatchEmbed(self.patch, channels, dim, time=tubelet_init, dtype=dtype, rngs=rngs)
        encoder = form == "factorised_encoder"
        super().__init__(
            self.pos_grid[1:] if encoder else self.pos_grid, dim, head=head, pos_init=pos_init, rngs=rngs
        )
        block = dict(mlp_ratio=mlp_ratio, gelu=gelu, eps=eps, dropout=dropout)
        block |= dict(attention_dropout=attention_dropout, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(Block(dim, num_heads, form=form, order=order, **block) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        of_time = dict(head=head, pos_init=pos_init, pos_resize=pos_resize, drop_path=drop_path)
        temporal_transformer = encoder and temporal == "transformer"
        self.temporal = (
            TemporalTransformer(self.pos_grid[0], dim, temporal_depth, num_heads, **of_time, **block)
            if temporal_transformer
            else None
        )
        zeros = nnx.initializers.zeros
        self.head = nnx.Linear(dim, num_classes, kernel_init=zeros, rngs=rngs)

    def tokenize(self, clips: Float[Array, "b t h w c"]) -> Float[Array, "b2 n d"]:
        """Tokens plus positions, behind the class token; one sequence per clip, or per frame."""
        if self.sampled_frames:
            clips = clips[:, np.asarray(even_frames(clips.shape[1], self.sampled_frames))]
        x = self.embed(clips)
        if self.form == "factorised_encoder":
            x = x.reshape(-1, *x.shape[2:])
        return self.place(x, self.pos_resize)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens along time, height and width of clips of `size`."""
        frames = len(even_frames(size[0], self.sampled_frames)) if self.sampled_frames else size[0]
        return token_grid((frames, *size[1:]), self.patch)

    def sequences(
        self, clips: Float[Array, "b t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b2 n d"]:
        """The tokens of `tokenize` after the last block, before the final norm."""
        grid = self.grid(clips.shape[1:-1])
        x = dropout(self.tokenize(clips), self.dropout, rngs)

        def call(block, x, *, drop_path, rngs):
            return block(x, grid=grid, drop_path=drop_path, rngs=rngs)

        return run_blocks(
            self.blocks,
            call,
            x,
            drop_path=self.drop_path,
            rngs=rngs,
            remat=self.remat,
            scan=self.scan,
        )

    def features(
        self, clips: Float[Array, "b t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """The tubelets' tokens on their grid after the last block over space, before the norm."""
        x = self.sequences(clips, rngs=rngs)[:, int(self.cls is not None) :]
        return x.reshape(clips.shape[0], *self.grid(clips.shape[1:-1]), self.dim)

    def encode(
        self, clips: Float[Array, "b t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tubelet tokens: what another module attends to."""
        return flatten_grid(self.norm(self.features(clips, rngs=rngs)))

    def __call__(
        self, clips: Float[Array, "b t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Returns {"features": (b, d) pooled representation, "logits": (b, classes)}, float32."""
        pooled = pool(self.norm(self.sequences(clips, rngs=rngs)), self.head_kind)
        if self.form == "factorised_encoder":
            frames = pooled.reshape(clips.shape[0], -1, self.dim)
            pooled = frames.mean(1) if self.temporal is None else self.temporal(frames, rngs=rngs)
        return {"features": pooled, "logits": self.head(pooled)}

    def macs(self, size: tuple[int, ...]) -> int:
        """Multiply-accumulates of the matrix products of one clip of `size`.

        With N = t s tokens (s in a frame): joint 2 N^2 D per block for scores and sums, factorised
        2 N s D over space and 2 N t D over time (dot product: half of each), and 12 N D^2 (16 N D^2 with
        two attentions) for the projections and the MLP.
        """
        t, h, w = self.grid(size)
        s, d, cls = h * w, self.dim, int(self.cls is not None)
        hidden = self.blocks[0].mlp.fc1.out_features

        def block(n: int, pairs: int, attentions: int = 1) -> int:
            return 2 * pairs * d + (4 * attentions * d + 2 * hidden) * n * d

        if self.form == "factorised_encoder":
            blocks = len(self.blocks) * t * block(s + cls, (s + cls) ** 2)
            if self.temporal is not None:
                blocks += len(self.temporal.blocks) * block(t + cls, (t + cls) ** 2)
        else:
            n = t * s + cls
            each = {
                "joint": block(n, n * n),
                "factorised_self_attention": block(n, n * (s + t), 2),
                "factorised_dot_product": block(n, n * (s + t) // 2),
            }
            blocks = len(self.blocks) * each[self.form]
        return blocks + t * s * self.embed.kernel.size + self.head.kernel.size


def create(variant: str, **overrides) -> ViViT:
    """Builds "b16x2", "l16x2_fe", ...; any constructor argument can be overridden."""
    return ViViT(**(VARIANTS[variant] | overrides))
