"""MoH: the names of SkyworkAI/MoH's state dicts (ViT, DiT) and its routers."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.attention.moh import MoHAttention, choose, query_norm_probabilities
from lookupjax.attention.softmax import merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, images, torch_value
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.moh_dit import MoHDiT, position_grid
from lookupjax.models.moh_vit import MoHViT

NAMES = {
    "router.routed": "wg",
    "router.split": "wg_0",
    "router.shared": "wg_1",
    "attn_norm": "norm1",
    "mlp_norm": "norm2",
    "embed_norm": "norm",
    "out": "proj",
    "reduce": "sr",
    "reduce_norm": "norm",
    "position.fc1": "cpb_fc1",
    "position.fc2": "cpb_fc2",
    "local_bias": "relative_pos_bias_local",
    "learned_tokens": "learnable_tokens",
    "learned_bias": "learnable_bias",
    "mlp.local": "mlp.dwconv.dwconv",
    "modulation.linear": "adaLN_modulation.1",
    "time.0": "t_embedder.mlp.0",
    "time.1": "t_embedder.mlp.2",
    "label": "y_embedder.embedding_table.weight",
}


def vit_parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """MoH-ViT's parameter at our `path`, of `shape`, from the reference's state dict."""
    stage = re.match(r"stages/(\d+)/(.*)", path)
    if stage:
        number, rest = int(stage[1]) + 1, stage[2]
        rest = re.sub(r"^embed/", f"patch_embed{number}/proj/", rest)
        rest = re.sub(r"^embed_norm/", f"patch_embed{number}/norm/", rest)
        rest = re.sub(r"^norm/", f"norm{number}/", rest)
        path = re.sub(r"^blocks/", f"block{number}/", rest)
    return torch_value(params, path, NAMES).reshape(shape)


def dit_parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """MoH-DiT's parameter at our `path`, of `shape`, from the reference's state dict."""
    path = re.sub(r"^embed/", "x_embedder/proj/", path)
    path = re.sub(r"^head/", "final_layer/linear/", re.sub(r"^modulation/", "final_layer/modulation/", path))
    return torch_value(params, path, NAMES).reshape(shape)


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    kinds = {"vit": vit, "dit": dit, "dit_attn": attention, "llama_gate": llama_gate}
    kind = fixture.config["kind"]
    if kind not in kinds:
        raise UserError(f"moh fixtures are of kind {list(kinds)}, not {kind!r}")
    return kinds[kind](fixture)


def vit(fixture: Fixture) -> dict[str, jax.Array]:
    """MoH-ViT's logits, and tokens of the stages and first attentions."""
    args = {k: tuples(v) for k, v in fixture.config.items()}
    size = args.get("pretrain_size") or args["img_size"]
    kwargs = dict(
        size=size if isinstance(size, tuple) else (size, size),
        patch=args["patch_size"],
        channels=args.get("in_chans", 3),
        dims=args["embed_dims"],
        depths=args["depths"],
        num_heads=args["num_heads"],
        shared=args["shared_head"],
        routed=args["routed_head"],
        num_classes=args["num_classes"],
        mlp_ratio=tuple(map(float, args["mlp_ratios"])),
        sr_ratios=args["sr_ratios"],
        windows=args["window_size"],
        qkv_bias=args.get("qkv_bias", True),
    )
    abstract = nnx.eval_shape(lambda: MoHViT(**kwargs, rngs=Keys(0)))
    model = fill(abstract, lambda path, shape: vit_parameter(fixture.params, path, shape))

    @jax.jit
    def forward(model: MoHViT, x: jax.Array) -> dict[str, jax.Array]:
        out, taps = record_taps(model, x, names=("output",))
        result = {"out/logits": out["logits"]}
        tokens = x
        for i, stage in enumerate(model.stages):
            tokens = stage.embed_norm(stage.embed(tokens))
            grid, tokens = tokens.shape[1:3], flatten_grid(tokens)
            for block in stage.blocks:
                tokens, _ = block(tokens, grid=grid)
            normed = stage.norm(tokens)
            result |= {f"out/block{i + 1}": tokens, f"out/norm{i + 1}": normed}
            result[f"out/attn{i + 1}"] = taps[f"stages/{i}/blocks/0/attn/output"]
            tokens = normed.reshape(normed.shape[0], *grid, -1)
        return result

    return forward(model, images(fixture.inputs["x"]))


def per_layer(value: Any, depth: int) -> tuple:
    return value if isinstance(value, tuple) else (value,) * depth


def dit(fixture: Fixture) -> dict[str, jax.Array]:
    """MoH-DiT's prediction and the tokens after every block."""
    args = {k: tuples(v) for k, v in fixture.config.items()}
    depth, side = args["depth"], args["input_size"]
    kwargs = dict(
        size=(side, side),
        patch=args["patch_size"],
        channels=args["in_channels"],
        dim=args["hidden_size"],
        num_heads=per_layer(args["num_heads"], depth),
        head_dim=per_layer(args.get("head_dim"), depth),
        shared=per_layer(args["shared_head"], depth),
        routed=per_layer(args["routed_head"], depth),
        mlp_ratio=float(args["mlp_ratio"]),
        classes=args["num_classes"],
        learn_sigma=args.get("learn_sigma", True),
    )
    abstract = nnx.eval_shape(lambda: MoHDiT(**kwargs, rngs=Keys(0)))
    model = fill(abstract, lambda path, shape: dit_parameter(fixture.params, path, shape))
    table = position_grid((side // args["patch_size"],) * 2, args["hidden_size"])
    if "pos_embed" in fixture.params and not np.allclose(table, fixture.params["pos_embed"][0], atol=1e-5):
        raise UserError("the reference's pos_embed is not the sine-cosine table that MoH-DiT computes")

    @jax.jit
    def forward(model: MoHDiT, x: jax.Array, t: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        tokens, _ = model.tokens(x, model.condition(t, label, None))
        result = {f"out/block{i}": value for i, value in enumerate(tokens)}
        return result | {"out/eps": channels_first(model(x, t, label)["eps"])}

    x, label = images(fixture.inputs["x"]), fixture.inputs["y"]
    return forward(model, x, jnp.asarray(fixture.inputs["t"], jnp.float32), label)


def attention(fixture: Fixture) -> dict[str, jax.Array]:
    """One gated attention, with the balance loss before its weight."""
    config = fixture.config
    abstract = nnx.eval_shape(
        lambda: MoHAttention(
            config["dim"],
            config["num_heads"],
            shared=config["shared_head"],
            routed=config["routed_head"],
            head_dim=config.get("head_dim"),
            qkv_bias=config.get("qkv_bias", True),
            balance=1.0,
            rngs=Keys(0),
        )
    )
    mixer = fill(abstract, lambda path, shape: torch_value(fixture.params, path, NAMES).reshape(shape))

    @jax.jit
    def run(mixer: MoHAttention, x: jax.Array) -> dict[str, Any]:
        y, taps = record_taps(mixer, x, names=("heads",))
        heads = next(iter(taps.values()))
        return {"out/y": y, "out/gated_heads": merge_heads(heads), "out/aux_loss": mixer.mix(x)[1]}

    return run(mixer, fixture.inputs["x"])


def llama_gate(fixture: Fixture) -> dict[str, jax.Array]:
    """Only the parameter-free router: probabilities of the candidates, and the mask of all heads."""
    config = fixture.config
    q = split_heads(fixture.inputs["q"], config["num_heads"])
    probabilities = query_norm_probabilities(q, config["shared_head"])
    chosen = choose(probabilities, config["routed_head"])
    shared = jnp.ones((*chosen.shape[:2], config["shared_head"]))
    gates = probabilities.reshape(-1, probabilities.shape[-1])
    return {"out/mask": jnp.concatenate([shared, chosen], axis=-1), "out/gates": gates}
