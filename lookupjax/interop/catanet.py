"""CATANet: the names of EquationWalker/CATANet's state dicts."""

import re
from typing import Any

import jax
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, images, rename_start, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.catanet import CATANet, TokenAggregation

AGGREGATION = {  # of a TAB -> the reference's
    "started": "initted",
    "centre_k": "irca_attn.to_k",
    "centre_v": "irca_attn.to_v",
    "attn.q": "iasa_attn.to_q",
    "attn.k": "iasa_attn.to_k",
    "attn.v": "iasa_attn.to_v",
    "attn.out": "iasa_attn.proj",
    "proj": "conv1x1",
    "mlp_norm": "mlp.norm",
    "mlp.depthwise": "mlp.fn.dwconv.depthwise_conv.0",
    "mlp": "mlp.fn",
}
LOCAL = {  # of an LRSA
    "norm": "layer.0.norm",
    "q": "layer.0.fn.to_q",
    "k": "layer.0.fn.to_k",
    "v": "layer.0.fn.to_v",
    "out": "layer.0.fn.proj",
    "mlp_norm": "layer.1.norm",
    "mlp.depthwise": "layer.1.fn.dwconv.depthwise_conv.0",
    "mlp": "layer.1.fn",
}
OUTSIDE = {"first": "first_conv", "middle": "mid_convs", "last": "last_conv"}
SETTING = {  # reference argument -> ours, where only the name differs
    "dim": "dim",
    "qk_dim": "qk_dim",
    "mlp_dim": "mlp_dim",
    "heads": "num_heads",
    "patch_size": "windows",
    "n_iters": "iterations",
    "n_iter": "iterations",
    "group_size": "group_sizes",
    "num_tokens": "num_tokens",
    "upscale": "scale",
    "in_chans": "channels",
    "ema_decay": "ema_decay",
}


def place(path: str) -> tuple[str, str, dict[str, str]]:
    """(the reference's prefix, the rest of our path, the names that hold for that rest)."""
    if match := re.match(r"(aggregate|local)/(\d+)/", path):
        index, names = (0, AGGREGATION) if match[1] == "aggregate" else (1, LOCAL)
        return f"blocks.{match[2]}.{index}.", path[match.end() :], names
    return "", path, OUTSIDE


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter or statistic of a CATANet at `path`, of `shape`, from the reference's state dict."""
    prefix, rest, names = place(path)
    stages = "upconv2.weight" in params  # twofold twice
    rest = re.sub(r"^up/(\d)/", lambda m: f"upconv{int(m[1]) + 1}/" if stages else "upconv/", rest)
    return value(params, prefix, rest, names, shape)


def value(params: StateDict, prefix: str, rest: str, names: dict[str, str], shape: tuple[int, ...]) -> Any:
    """The reference's value of `rest`, a path inside a module; its 1x1 convolution is a linear map here."""
    name = prefix + rename_start(rest.replace("/", "."), names)
    return torch_value(params, name, {}).reshape(shape)


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    return training(fixture) if fixture.config["kind"] == "tab" else net(fixture)


def options(config: dict) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    return {SETTING[key]: tuples(value) for key, value in config.items() if key in SETTING}


def build(fixture: Fixture) -> CATANet:
    """The model a fixture's config describes, with the fixture's parameters."""
    setting = fixture.config["setting"]
    kwargs = options(fixture.config | setting)
    for name in ("windows", "iterations", "num_tokens", "group_sizes"):
        if name in kwargs and "block_num" in setting:  # the reference's lists may be longer than the network
            kwargs[name] = kwargs[name][: setting["block_num"]]
    model = nnx.eval_shape(lambda: CATANet(**kwargs, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def net(fixture: Fixture) -> dict[str, jax.Array]:
    @jax.jit
    def run(model: CATANet, x: jax.Array) -> dict[str, jax.Array]:
        result, y = {"sr": model(x)["image"]}, model.first(x)
        for i, (aggregate, local, middle) in enumerate(zip(model.aggregate, model.local, model.middle)):
            result[f"tab{i}"] = aggregate(y)
            result[f"lrsa{i}"] = local(result[f"tab{i}"])
            y = y + middle(result[f"lrsa{i}"])
        return {f"out/{key}": channels_first(image) for key, image in result.items()}

    return run(build(fixture), images(fixture.inputs["x"]))


def training(fixture: Fixture) -> dict[str, jax.Array]:
    """A TAB's outputs over training steps (inputs x, x2, ...) and its centres after them."""
    kwargs = options(fixture.config["args"])
    kwargs["group_size"] = kwargs.pop("group_sizes")
    abstract = nnx.eval_shape(lambda: TokenAggregation(**kwargs, rngs=Keys(0)))
    block = fill(abstract, lambda path, shape: value(fixture.params, "", path, AGGREGATION, shape))
    names = sorted(fixture.inputs, key=lambda name: int(name[1:] or 1))

    @jax.jit
    def run(block: TokenAggregation, inputs: list[jax.Array]) -> dict[str, jax.Array]:
        block = nnx.merge(*nnx.split(block), copy=True)
        steps = [channels_first(block(x, train=True)) for x in inputs]
        result = {f"out/y_step{i}": y for i, y in enumerate(steps, start=1)}
        return result | {"out/means_after": block.means[...]}

    return run(block, [images(fixture.inputs[name]) for name in names])
