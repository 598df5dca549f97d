"""Text decoders over image tokens: causal transformers that write a caption word by word.

    image tokens (b, n, e) -> bridge -> (b, n, d)                          text (b, t) -> words + positions
      form "cross":  L x [x += attn(LN x), causal; x += cross(LN x, image); x += mlp(LN x)] -> LN
      form "prefix": the same blocks without cross over [image, text]; the image sees no text
      -> logits (b, t, vocabulary): row i tells the token after token i

With the defaults: pre-norm, one table for words in and out (tied), learned positions. `CAPPA` and `GIT` are
the options of the two published decoders: CapPa's (arXiv 2306.07915; big_vision, models/proj/cappa) and
GIT's (arXiv 2205.14100; post-norm BERT blocks, microsoft/GenerativeImage2Text). Both are verified against
their code (`captioning` fixtures).

Writing one token at a time, `begin` computes what depends on the image alone and `step` appends one token
per row: keys and values of the image and of the text so far are kept. `begin_plain` and `step_plain` do the
same without keeping anything but the tokens. All shapes are static.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.errors import UserError
from lookupjax.layers.mlp import Mlp, linear
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import position_table
from lookupjax.layers.regularise import dropout

FORMS, NORMS, BRIDGES = ("cross", "prefix"), ("pre", "post"), ("none", "linear", "linear_norm")
CAPPA: dict[str, Any] = dict(
    vocab_size=32_000,
    length=64,
    depth=6,
    tied=False,
    attn_bias=False,
    bias=False,
    mask_token=True,
    word_std=1.0,
)
GIT: dict[str, Any] = dict(
    vocab_size=30_522,
    length=1024,
    depth=6,
    form="prefix",
    norm="post",
    bridge="linear_norm",
    embed_eps=1e-8,
    eps=1e-12,
    gelu="exact",
    head_bias=True,
    dropout=0.1,
)
KeysValues = tuple[Float[Array, "_ h _ c"], Float[Array, "_ h _ c"]]
Cache = dict[str, Any]


class DecoderBlock(nnx.Module):
    """Self-attention, cross-attention (where there is an image to look at), MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        hidden: int,
        cross: bool,
        norm: str,
        attn_bias: bool,
        bias: bool,
        gelu: str,
        eps: float,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        make_norm = partial(LayerNorm, dim, eps=eps, bias=bias, dtype=dtype, rngs=rngs)
        attention = dict(qkv_bias=attn_bias, out_bias=attn_bias, dropout=dropout, dtype=dtype, rngs=rngs)
        self.attn_norm, self.attn = make_norm(), SoftmaxAttention(dim, num_heads, **attention)
        self.cross_norm = make_norm() if cross else None
        self.cross = SoftmaxAttention(dim, num_heads, **attention) if cross else None
        self.mlp_norm, self.mlp = make_norm(), Mlp(dim, hidden, gelu=gelu, bias=bias, dtype=dtype, rngs=rngs)
        self.pre, self.dropout = norm == "pre", dropout

    def __call__(
        self,
        x: Float[Array, "b m d"],
        *,
        mask: Bool[Array, "#b 1 m n"],
        image: KeysValues | None = None,
        image_mask: Bool[Array, "e n2"] | None = None,
        past: KeysValues | None = None,
        place: Int[Array, ""] | int = 0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], KeysValues]:
        """Returns the tokens and the keys and values of the self-attention.

        Args:
          image: keys and values of e images; b / e consecutive rows of x look at the same one.
          past: keys and values of n tokens, those of x being written into them from `place` on.
        """

        def before(norm: LayerNorm) -> Float[Array, "b m d"]:
            return norm(x) if self.pre else x

        def add(branch: Float[Array, "b m d"], norm: LayerNorm) -> Float[Array, "b m d"]:
            total = x + dropout(branch, self.dropout, rngs)
            return total if self.pre else norm(total)

        inputs = before(self.attn_norm)
        own = self.attn.keys_values(inputs)
        if past is not None:
            write = partial(lax.dynamic_update_slice_in_dim, start_index=place, axis=2)
            own = (write(past[0], own[0]), write(past[1], own[1]))
        x = add(self.attn.attend(self.attn.queries(inputs), *own, mask=mask, rngs=rngs), self.attn_norm)
        if self.cross is not None:
            inputs = before(self.cross_norm).reshape(image[0].shape[0], -1, x.shape[-1])
            columns = None if image_mask is None else image_mask[:, None, None]
            seen = self.cross.attend(self.cross.queries(inputs), *image, mask=columns, rngs=rngs)
            x = add(seen.reshape(x.shape), self.cross_norm)
        return add(self.mlp(before(self.mlp_norm)), self.mlp_norm), own


class CaptionDecoder(nnx.Module):
    """Logits of the next token, given image tokens and the text so far.

    Args:
      vocab_size: number of tokens.
      length: rows of the position table: the longest text.
      image_dim: width of the image tokens.
      form: "cross" attends to the image, "prefix" continues it.
      norm: "pre" with a last LayerNorm, or "post" without.
      tied: the output projection is the table of words; otherwise one of its own, starting at zero.
      head_bias: of a tied output (an untied one has it always).
      bridge: what comes before the image tokens: nothing, a linear layer, or that and a LayerNorm; default:
        a linear layer where the widths differ. `bridge_eps`: of that LayerNorm.
      embed_eps: epsilon of a LayerNorm over words + positions; None: there is none.
      attn_bias, bias: biases of the attention projections, and of the blocks' LayerNorms and MLPs.
      mask_token: one more word, which the task's `parallel` puts in place of all (CapPa).
      word_std, pos_std: of the initial tables.
      frames: videos of so many frames, whose tokens get a learned embedding of their frame (GIT); 0: images.
      dropout: of embeddings, branches and attention weights.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        image_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int | None = None,
        form: str = "cross",
        norm: str = "pre",
        tied: bool = True,
        head_bias: bool = False,
        bridge: str | None = None,
        bridge_eps: float = 1e-5,
        embed_eps: float | None = None,
        attn_bias: bool = True,
        bias: bool = True,
        gelu: str = "tanh",
        eps: float = 1e-6,
        mask_token: bool = False,
        word_std: float = 0.02,
        pos_std: float = 0.02,
        frames: int = 0,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if bridge is None:
            bridge = "none" if image_dim == dim else "linear"
        for name, value, known in (("form", form, FORMS), ("norm", norm, NORMS), ("bridge", bridge, BRIDGES)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown; choose one of {known}")
        if bridge == "none" and image_dim != dim:
            raise UserError(f'image tokens of width {image_dim} need a bridge="linear" to a decoder of {dim}')
        self.vocab_size, self.length, self.dim, self.form = vocab_size, length, dim, form
        self.dropout, self.dtype, self.mask_token = dropout, dtype, vocab_size if mask_token else None
        common = dict(dtype=dtype, rngs=rngs)
        self.frames = nnx.Param(jnp.zeros((frames, image_dim))) if frames else None
        self.bridge = None if bridge == "none" else linear(image_dim, dim, **common)
        self.bridge_norm = LayerNorm(dim, eps=bridge_eps, **common) if bridge == "linear_norm" else None
        self.words = position_table((vocab_size + mask_token, dim), rngs, word_std)
        self.pos = position_table((length, dim), rngs, pos_std)
        self.embed_norm = None if embed_eps is None else LayerNorm(dim, eps=embed_eps, **common)
        self.blocks = nnx.List(
            DecoderBlock(
                dim,
                num_heads,
                hidden=mlp_dim or 4 * dim,
                cross=form == "cross",
                norm=norm,
                attn_bias=attn_bias,
                bias=bias,
                gelu=gelu,
                eps=eps,
                dropout=dropout,
                **common,
            )
            for _ in range(depth)
        )
        self.norm = LayerNorm(dim, eps=eps, **common) if norm == "pre" else None
        zeros = nnx.initializers.zeros
        self.head = None if tied else nnx.Linear(dim, vocab_size, kernel_init=zeros, **common)
        self.head_bias = nnx.Param(jnp.zeros((vocab_size,))) if tied and head_bias else None

    def memory(self, image: Float[Array, "b *n e"]) -> Float[Array, "b n2 d"]:
        """What the blocks see of the image tokens (b, n, e), or of a video's (b, frames, n, e)."""
        x = image.astype(self.dtype)
        if self.frames is not None:
            x = x + self.frames[...].astype(self.dtype)[None, :, None]
            x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x if self.bridge is None else self.bridge(x)
        return x if self.bridge_norm is None else self.bridge_norm(x)

    def embed(
        self, tokens: Int[Array, "b m"], first: Int[Array, ""] | int = 0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b m d"]:
        """Words and their positions, counted from `first`."""
        positions = lax.dynamic_slice_in_dim(self.pos[...], first, tokens.shape[1])
        x = (self.words[...][tokens] + positions[None]).astype(self.dtype)
        x = x if self.embed_norm is None else self.embed_norm(x)
        return dropout(x, self.dropout, rngs)

    def logits(self, x: Float[Array, "b m d"]) -> Float[Array, "b m v"]:
        """Float32 logits of every word but the mask token."""
        x = x if self.norm is None else self.norm(x)
        if self.head is not None:
            return self.head(x).astype(jnp.float32)
        words = self.words[...][: self.vocab_size].astype(self.dtype)
        logits = jnp.einsum("bmd,vd->bmv", x, words, preferred_element_type=jnp.float32)
        return logits if self.head_bias is None else logits + self.head_bias[...][None, None]

    def check_length(self, length: int) -> None:
        if length > self.length:
            raise UserError(
                f"a text of {length} tokens does not fit the decoder's {self.length} positions: raise length"
            )

    def __call__(
        self,
        image: Float[Array, "b *n e"],
        tokens: Int[Array, "b t"],
        *,
        image_mask: Bool[Array, "b n2"] | None = None,
        causal: bool | Bool[Array, "b"] = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t v"]:
        """Logits after every token of texts that begin with the start token.

        Args:
          image_mask: False for image tokens that nothing may look at (padding).
          causal: False, for all or per example, lets every token see all others (CapPa predicts so).
        """
        b, t = tokens.shape
        self.check_length(t)
        memory, x = self.memory(image), self.embed(tokens, rngs=rngs)
        freely = ~jnp.broadcast_to(causal, (b,))[:, None, None]
        order = jnp.tril(jnp.ones((1, t, t), bool)) | freely
        if self.form == "cross":
            for block in self.blocks:
                keys_values = block.cross.keys_values(memory)
                x, _ = block(x, mask=order[:, None], image=keys_values, image_mask=image_mask, rngs=rngs)
            return self.logits(x)
        x, n = jnp.concatenate([memory, x], axis=1), memory.shape[1]
        mask = (
            jnp.pad(order, ((0, 0), (n, 0), (n, 0)), constant_values=True).at[:, :n, n:].set(False)[:, None]
        )
        if image_mask is not None:
            mask = mask & jnp.pad(image_mask, ((0, 0), (0, t)), constant_values=True)[:, None, None]
        for block in self.blocks:
            x, _ = block(x, mask=mask, rngs=rngs)
        return self.logits(x[:, n:])

    def begin(
        self,
        image: Float[Array, "b *n e"],
        *,
        length: int,
        rows: int = 1,
        image_mask: Bool[Array, "b n2"] | None = None,
    ) -> Cache:
        """What `step` needs for `rows` texts (beams) of at most `length` tokens about each image.

        "own": per row and block, keys and values of the text so far (behind those of the image, form
        "prefix"); this is what follows a beam. "image": per image and block (form "cross").
        """
        self.check_length(length)
        memory, x = self.memory(image), None
        b, n, heads = memory.shape[0], memory.shape[1], self.blocks[0].attn.num_heads
        if self.form == "cross":
            zeros = jnp.zeros((b * rows, heads, length, self.dim // heads), self.dtype)
            own = [(zeros, zeros) for _ in self.blocks]
            image_kv = [block.cross.keys_values(memory) for block in self.blocks]
            visible = jnp.ones((b * rows, length), bool)
            return {"own": own, "image": image_kv, "image_mask": image_mask, "visible": visible, "before": 0}
        own, x = [], memory
        columns = jnp.ones((b, n), bool) if image_mask is None else image_mask
        for block in self.blocks:
            x, keys_values = block(x, mask=jnp.broadcast_to(columns[:, None, None], (b, 1, n, n)))
            pad = ((0, 0), (0, 0), (0, length), (0, 0))
            own.append(tuple(jnp.repeat(jnp.pad(y, pad), rows, axis=0) for y in keys_values))
        visible = jnp.pad(columns, ((0, 0), (0, length)), constant_values=True)
        visible = jnp.repeat(visible, rows, axis=0)
        return {"own": own, "image": None, "image_mask": None, "visible": visible, "before": n}

    def step(
        self, cache: Cache, token: Int[Array, "r"], place: Int[Array, ""]
    ) -> tuple[Float[Array, "r v"], Cache]:
        """Logits after the token at `place` (0: the start token) of every row, and the cache with it."""
        x, column = self.embed(token[:, None], place), cache["before"] + place
        mask = cache["visible"] & (jnp.arange(cache["visible"].shape[1]) <= column)[None]
        own = []
        for i, block in enumerate(self.blocks):
            image = None if cache["image"] is None else cache["image"][i]
            x, keys_values = block(
                x,
                mask=mask[:, None, None],
                image=image,
                image_mask=cache["image_mask"],
                past=cache["own"][i],
                place=column,
            )
            own.append(keys_values)
        return self.logits(x)[:, 0], cache | {"own": own}

    def begin_plain(
        self,
        image: Float[Array, "b *n e"],
        *,
        length: int,
        rows: int = 1,
        image_mask: Bool[Array, "b n2"] | None = None,
    ) -> Cache:
        """As `begin`, for `step_plain`."""
        own = jnp.zeros((image.shape[0] * rows, length), jnp.int32)
        image_mask = None if image_mask is None else jnp.repeat(image_mask, rows, axis=0)
        return {"own": own, "image": jnp.repeat(image, rows, axis=0), "image_mask": image_mask}

    def step_plain(
        self, cache: Cache, token: Int[Array, "r"], place: Int[Array, ""]
    ) -> tuple[Float[Array, "r v"], Cache]:
        """As `step`, computing everything anew from the image and the tokens."""
        tokens = lax.dynamic_update_slice_in_dim(cache["own"], token[:, None], place, axis=1)
        logits = self(cache["image"], tokens, image_mask=cache["image_mask"])
        return lax.dynamic_index_in_dim(logits, place, axis=1, keepdims=False), cache | {"own": tokens}

    def macs(self, n: int, t: int) -> int:
        """Multiply-accumulates of writing t tokens about n image tokens with the cache.

        Each text token attends to the i tokens so far and to n of the image.
        """
        d, block = self.dim, self.blocks[0]
        per_token = 4 * d * d + 2 * d * block.mlp.fc1.out_features
        attended = 2 * d * t * (t + 1) // 2
        if self.form == "cross":
            image, per_token = 2 * n * d * d, per_token + 2 * d * d
            attended += 2 * d * n * t
        else:
            image = n * per_token + 2 * n * n * d
            attended += 2 * d * n * t
        bridge = 0 if self.bridge is None else n * self.bridge.kernel.size
        return bridge + len(self.blocks) * (image + t * per_token + attended) + t * d * self.vocab_size
