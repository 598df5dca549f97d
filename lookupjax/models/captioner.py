"""An image encoder and a decoder that writes a caption: LookupViT's third set-up (arXiv 2407.12753).

    image -> encoder.encode, frozen -> tokens (b, n, e): of LookupViT the compressed ones alone
      -> CaptionDecoder(tokens, text) -> logits of the next token

Any model of this room with `encode(images) -> (b, n, e)` can be the encoder. By default it computes as in
evaluation and no gradient reaches it; config.frozen=("^encoder/",) also leaves its parameters out of the
optimizer and of the moving average. Which decoder the paper used is not stated: pre-norm with
cross-attention is our choice, "git" and "cappa" are the decoders of those two (see `caption_decoder`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lookupjax.errors import UserError
from lookupjax.layers.decoding import Decoding, decode
from lookupjax.models import create_model, native_size
from lookupjax.models.caption_decoder import CAPPA, GIT, CaptionDecoder

SIZES: dict[str, dict] = {
    "mu": dict(encoder="lookupvit_mu", vocab_size=64, length=16, dim=32, depth=1, num_heads=2),
    "s": dict(encoder="lookupvit_s16", dim=384, num_heads=6),
    "b": dict(encoder="lookupvit_b16", dim=768, num_heads=12),
    "l": dict(encoder="lookupvit_l16", dim=1024, num_heads=16),
}
PUBLISHED_DECODERS = {"git": GIT, "cappa": CAPPA}


def published(size: str, options: dict[str, Any]) -> dict[str, Any]:
    """A size with the decoder of a published model."""
    own = {k: v for k, v in options.items() if k in ("vocab_size", "length", "depth")}
    return SIZES[size] | own | dict(decoder={k: v for k, v in options.items() if k not in own})


VARIANTS = SIZES | {
    f"{name}_{size}": published(size, options)
    for name, options in PUBLISHED_DECODERS.items()
    for size in ("b", "l")
}
INPUT_SIZE = {"mu": (32, 32)}


class Captioner(nnx.Module):
    """Encoder and decoder.

    Args:
      encoder, encoder_options: name and options of `create_model`.
      vocab_size, length: of the texts; training sets the first to the tokenizer's size.
      dim, depth, num_heads: of the decoder.
      decoder: further options of `CaptionDecoder`, such as dict(form="prefix").
      train_encoder: lets gradients reach the encoder, which then computes as in training.
      dropout: of the decoder.
    """

    loss_heads = ("logits",)
    frozen = ("^encoder/",)  # for config.frozen

    def __init__(
        self,
        *,
        encoder: str = "lookupvit_b16",
        encoder_options: dict | None = None,
        vocab_size: int = 8000,
        length: int = 40,
        dim: int = 768,
        depth: int = 6,
        num_heads: int = 12,
        decoder: dict | None = None,
        train_encoder: bool = False,
        channels: int = 3,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = dict(channels=channels) | dict(encoder_options or {})
        self.encoder = create_model(encoder, dtype=dtype, rngs=rngs, **options)
        if not hasattr(self.encoder, "encode"):
            raise UserError(f"{encoder} has no encode(images) -> tokens, so there is nothing to attend to")
        self.train_encoder = train_encoder
        image = jax.ShapeDtypeStruct((1, *native_size(encoder), channels), jnp.float32)
        tokens = jax.eval_shape(lambda x: self.encoder.encode(x), image)
        kwargs = dict(vocab_size=vocab_size, length=length, dim=dim, depth=depth, num_heads=num_heads)
        kwargs |= dict(dropout=dropout) | dict(decoder or {})
        self.decoder = CaptionDecoder(image_dim=tokens.shape[-1], **kwargs, dtype=dtype, rngs=rngs)

    def encode(
        self, images: Float[Array, "b *size c"], *, rngs: nnx.Rngs | None = None, **call: Any
    ) -> Float[Array, "b *n e"]:
        """The tokens that the decoder sees; of a video, where the decoder has `frames`, those of each frame.

        Args:
          call: of the encoder's call, such as compressed=(3, 3).
        """
        frames = self.decoder.frames is not None
        flat = images.reshape(-1, *images.shape[2:]) if frames else images
        tokens = self.encoder.encode(flat, rngs=rngs if self.train_encoder else None, **call)
        tokens = tokens if self.train_encoder else jax.lax.stop_gradient(tokens)
        return tokens.reshape(*images.shape[:2], *tokens.shape[1:]) if frames else tokens

    def features(
        self, images: Float[Array, "b *size c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *n e"]:
        """As `encode`."""
        return self.encode(images, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "b *size c"] | None,
        text: Int[Array, "b t"] | None = None,
        *,
        tokens: Float[Array, "b *n e"] | None = None,
        causal: bool | Bool[Array, "b"] = True,
        rngs: nnx.Rngs | None = None,
        **call: Any,
    ) -> dict[str, Float[Array, "b ..."]]:
        """{"logits": (b, t, vocabulary) after every token of `text`, "tokens": the encoder's}.

        Args:
          text: begins with the start token; None: as long as the decoder can take (to count costs).
          tokens: the encoder's, where they are known already; `images` may then be None.
          causal: see `CaptionDecoder`. call: of the encoder.
        """
        if tokens is None:
            tokens = self.encode(images, rngs=rngs, **call)
        if text is None:
            text = jnp.ones((tokens.shape[0], self.decoder.length), jnp.int32)
        return {"logits": self.decoder(tokens, text, causal=causal, rngs=rngs), "tokens": tokens}

    def write(
        self,
        images: Float[Array, "b *size c"] | None,
        options: Decoding,
        *,
        tokens: Float[Array, "b *n e"] | None = None,
        key: jax.Array | None = None,
        cached: bool = True,
        **call: Any,
    ) -> dict[str, Array]:
        """Captions: {"tokens": (b, length) int32, "score": (b,), "log_prob": (b,)}, see `layers.decoding`.

        Args:
          tokens: the encoder's, instead of images. key: of sampling. call: of the encoder.
          cached: False computes everything anew for each word (to check the cache).
        """
        image = self.encode(images, **call) if tokens is None else tokens
        d = self.decoder
        begin, step = (d.begin, d.step) if cached else (d.begin_plain, d.step_plain)
        return decode(
            step,
            lambda rows: begin(image, length=options.length, rows=rows),
            image.shape[0],
            options,
            key,
        )


def create(variant: str, **overrides) -> Captioner:
    """Builds "s", "b", "git_b", ...; any constructor argument can be overridden."""
    return Captioner(**(VARIANTS[variant] | overrides))
