"""Captioning: GIT's text head (PyTorch names), CapPa's decoder (Flax names) and caption scores."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.evaluation.caption_scores import score
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import StateDict, torch_value
from lookupjax.layers.decoding import Decoding, decode
from lookupjax.layers.rngs import Keys
from lookupjax.models.caption_decoder import CaptionDecoder
from lookupjax.tasks.captioning import mean_over, token_losses

GIT_BLOCK = {
    "blocks": "transformer.encoder.layer",
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.out": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "mlp_norm": "output.LayerNorm",
    "bridge": "visual_projection.0",
    "bridge_norm": "visual_projection.1",
    "embed_norm": "embedding.layer_norm",
}
GIT_TABLES = {
    "words": "embedding.words.weight",
    "pos": "embedding.positions.weight",
    "head_bias": "output.bias",
}
CAPPA_BLOCK = {
    "attn_norm": "LayerNorm1",
    "cross_norm": "LayerNorm2",
    "mlp_norm": "LayerNorm3",
    "attn": "SelfAttn",
    "cross": "CrossAttn",
    "mlp": "MLP",
    "q": "query",
    "k": "key",
    "v": "value",
    "fc1": "Dense_0",
    "fc2": "Dense_1",
}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from either reference's."""
    if "EmbedTargets/embedding" in params:
        return cappa_parameter(params, path, shape)
    if path in GIT_TABLES:
        if path == "words" and "output.weight" in params:
            params["output.weight"]  # tied: the same array under a second name
        return params[GIT_TABLES[path]]
    return torch_value(params, path, GIT_BLOCK)


def cappa_parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    tops = {"words": "EmbedTargets/embedding", "norm": "LayerNorm", "head": "LogitsDense"}
    head, _, rest = path.partition("/")
    if head != "blocks":
        return params[f"{tops[head]}/{rest}" if rest else tops[head]]
    number, *parts = rest.split("/")
    name = "/".join(CAPPA_BLOCK.get(part, part) for part in parts)
    return params[f"EncDecBlock{number}/{name}"].reshape(shape)  # heads and their channels are one axis here


def git(fixture: Fixture) -> dict[str, jax.Array]:
    """GIT's text head: logits, loss, beam search and greedy decoding."""
    config, x = fixture.config, fixture.inputs
    eps = dict(embedding=1e-8, blocks=1e-12, visual_projection=1e-5) | config.get("layer_norm_eps", {})
    positions = fixture.params.arrays["embedding.positions.weight"].shape[0]
    model = nnx.eval_shape(
        lambda: CaptionDecoder(
            vocab_size=config["vocab"],
            length=positions,
            image_dim=config["visual_dim"],
            dim=config["hidden"],
            depth=config["layers"],
            num_heads=config["heads"],
            mlp_dim=fixture.params.arrays["transformer.encoder.layer.0.intermediate.dense.weight"].shape[0],
            form="prefix",
            norm="post",
            bridge="linear_norm",
            bridge_eps=eps["visual_projection"],
            embed_eps=eps["embedding"],
            eps=eps["blocks"],
            gelu="exact",
            head_bias=True,
            rngs=Keys(0),
        )
    )
    filled = fill(model, lambda path, shape: parameter(fixture.params, path, shape))
    words = Decoding(
        length=config["max_steps"],
        beams=config["beam"],
        length_penalty=config["length_penalty"],
        candidates=config.get("per_node_beam", 2),
        early_stop=False,
        keep=1,
        with_greedy=False,
        start=config["bos"],
        end=config["eos"],
        pad=config["eos"],
    )
    # the reference's greedy run neither stops nor closes its texts
    plain = Decoding(method="greedy", length=config["max_steps"] + 1, start=config["bos"], end=-1)

    def forward(model: CaptionDecoder, visual: jax.Array, caption: jax.Array, scored: jax.Array) -> dict:
        def write(options: Decoding) -> dict:
            def begin(rows: int) -> dict:
                return model.begin(visual, length=options.length, rows=rows)

            return decode(model.step, begin, visual.shape[0], options)

        logits, beams = model(visual, caption), write(words)
        losses = token_losses(logits[:, :-1], caption[:, 1:], config["label_smoothing"])
        return {
            "out/logits": logits,
            "out/loss": mean_over(losses, scored[:, 1:] == 1),
            "out/beam_tokens": beams["tokens"],
            "out/beam_score": beams["score"],
            "out/greedy_tokens": write(plain)["tokens"][:, :-1],
        }

    return jax.jit(forward)(filled, x["visual"], x["caption"], x["need_predict"])


def cappa(fixture: Fixture) -> dict[str, jax.Array]:
    """CapPa's decoder: causal, and all words at once from nothing but their places."""
    config, params, x = fixture.config, fixture.params, fixture.inputs
    words = params.arrays["EmbedTargets/embedding"].shape[0]
    model = nnx.eval_shape(
        lambda: CaptionDecoder(
            vocab_size=config["vocab"],
            length=x["pos_emb"].shape[1],
            image_dim=x["encoded"].shape[-1],
            dim=config["emb_dim"],
            depth=config["layers"],
            num_heads=config["heads"],
            mlp_dim=config["mlp_dim"],
            tied=False,
            attn_bias="EncDecBlock0/SelfAttn/query/bias" in params,
            bias=config.get("use_bias", True),
            mask_token=words > config["vocab"],
            rngs=Keys(0),
        )
    )

    def value(path: str, shape: tuple[int, ...]) -> Any:
        return x["pos_emb"][0] if path == "pos" else parameter(params, path, shape)

    def forward(model: CaptionDecoder, encoded: jax.Array, targets: jax.Array) -> dict:
        shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        logits = model(encoded, shifted)
        return {
            "out/logits": logits,
            "out/token_nll": token_losses(logits, targets),
            "out/parallel_logits_from_token0": model(encoded, jnp.zeros_like(shifted), causal=False),
        }

    return jax.jit(forward)(fill(model, value), x["encoded"], x["targets"])


def scores(fixture: Fixture) -> dict[str, Any]:
    """Corpus scores and those of each candidate, in the order of the fixture's names."""
    names = list(fixture.config["candidates"])
    totals, each = score(
        {n: fixture.config["references"][n] for n in names},
        {n: fixture.config["candidates"][n][0] for n in names},
    )
    bleu = [f"bleu{n}" for n in (1, 2, 3, 4)]

    def rows(figures: list[str]) -> jax.Array:
        return jnp.asarray([[each[figure][name] for name in names] for figure in figures])

    return {
        "out/cider": jnp.asarray(totals["cider"]),
        "out/cider_each": rows(["cider"])[0],
        "out/bleu": jnp.asarray([totals[n] for n in bleu]),
        "out/bleu_each": rows(bleu),
        "out/rouge": jnp.asarray(totals["rouge_l"]),
        "out/rouge_each": rows(["rouge_l"])[0],
    }


def outputs(fixture: Fixture) -> dict[str, Any]:
    """Everything the fixture can expect, under its own keys."""
    if "references" in fixture.config:
        return scores(fixture)
    return cappa(fixture) if "emb_dim" in fixture.config else git(fixture)
