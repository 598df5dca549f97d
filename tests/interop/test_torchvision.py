"""Names of torchvision's convolutional networks: pairs known from its state dicts, and no name used twice."""

from functools import cache

import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.interop import mobilenet, regnet, resnet
from lookupjax.paths import named_leaves


class Asked(dict):
    """A state dict that has every name, and remembers which were asked for."""

    def __contains__(self, name):
        return "qkv" not in str(name) and "kv." not in str(name)

    def __missing__(self, name):
        self[name] = np.zeros((1,), np.float32)
        return self[name]


@cache
def leaves(name):
    return named_leaves(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: create_model(name)))))


PAIRS = [
    (resnet, "resnet_50", "stem/conv/kernel", "conv1.weight"),
    (resnet, "resnet_50", "stem/norm/var", "bn1.running_var"),
    (resnet, "resnet_50", "stages/2/5/convs/1/conv/kernel", "layer3.5.conv2.weight"),
    (resnet, "resnet_50", "stages/0/0/convs/2/norm/scale", "layer1.0.bn3.weight"),
    (resnet, "resnet_50", "stages/3/0/shortcut/conv/kernel", "layer4.0.downsample.0.weight"),
    (resnet, "resnet_50", "stages/3/0/shortcut/norm/mean", "layer4.0.downsample.1.running_mean"),
    (resnet, "resnet_50", "head/bias", "fc.bias"),
    (regnet, "regnet_y400mf", "stem/norm/bias", "stem.1.bias"),
    (
        regnet,
        "regnet_y400mf",
        "stages/1/0/shortcut/conv/kernel",
        "trunk_output.block2.block2-0.proj.0.weight",
    ),
    (regnet, "regnet_y400mf", "stages/3/5/se/fc2/bias", "trunk_output.block4.block4-5.f.se.fc2.bias"),
    (regnet, "regnet_y400mf", "stages/0/0/b/norm/mean", "trunk_output.block1.block1-0.f.b.1.running_mean"),
    (regnet, "regnet_y400mf", "head/kernel", "fc.weight"),
]


@pytest.mark.parametrize("adapter, model, ours, theirs", PAIRS, ids=[theirs for *_, theirs in PAIRS])
def test_known_names(adapter, model, ours, theirs):
    asked = Asked()
    if ours.endswith("kernel"):
        asked[theirs] = np.zeros((1, 1) if "fc" in theirs else (1, 1, 1, 1), np.float32)
    assert ours in leaves(model)
    adapter.parameter(asked, ours, (1,))
    assert set(asked) == {theirs}


MOBILE = [
    # expansion, depthwise, squeeze, projection of a V3 block with everything, and of its first block
    ("v3_large", "layers/4/expand/conv", "features.4.block.0.0"),
    ("v3_large", "layers/4/depthwise/norm", "features.4.block.1.1"),
    ("v3_large", "layers/4/se/fc1", "features.4.block.2.fc1"),
    ("v3_large", "layers/4/project/conv", "features.4.block.3.0"),
    ("v3_large", "layers/1/depthwise/conv", "features.1.block.0.0"),
    ("v3_large", "layers/1/project/norm", "features.1.block.1.1"),
    ("v3_large", "layers/2/project/conv", "features.2.block.2.0"),
    ("v3_large", "layers/16/conv", "features.16.0"),
    ("v3_large", "hidden", "classifier.0"),
    ("v3_large", "head", "classifier.3"),
    ("v2", "layers/0/norm", "features.0.1"),
    ("v2", "layers/1/depthwise/conv", "features.1.conv.0.0"),
    ("v2", "layers/1/project/conv", "features.1.conv.1"),
    ("v2", "layers/1/project/norm", "features.1.conv.2"),
    ("v2", "layers/5/expand/norm", "features.5.conv.0.1"),
    ("v2", "layers/5/project/conv", "features.5.conv.2"),
    ("v2", "layers/5/project/norm", "features.5.conv.3"),
    ("v2", "head", "classifier.1"),
]


def state_dict(variant):
    """What decides a block's numbering: the first layers' kernels, and whether there is a squeeze."""
    names = {}
    for name, leaf in leaves(f"mobilenet_{variant}").items():
        parts = name.split("/")
        body = "block" if variant.startswith("v3") else "conv"
        if parts[2:] == ["expand", "conv", "kernel"]:
            names[f"features.{parts[1]}.{body}.0.0.weight"] = np.zeros((1, 1, 1, 1))
        if parts[2:] == ["depthwise", "conv", "kernel"]:
            names.setdefault(f"features.{parts[1]}.{body}.0.0.weight", np.zeros((1, 1, *leaf.shape[:2])))
        if parts[2:] == ["se", "fc1", "kernel"]:
            at = 2 if f"layers/{parts[1]}/expand/conv/kernel" in leaves(f"mobilenet_{variant}") else 1
            names[f"features.{parts[1]}.{body}.{at}.fc1.weight"] = np.zeros((1, 1, 1, 1))
    return names | ({"classifier.3.weight": np.zeros((1, 1))} if variant.startswith("v3") else {})


@pytest.mark.parametrize("variant, ours, theirs", MOBILE, ids=[f"{v}-{theirs}" for v, _, theirs in MOBILE])
def test_mobilenet_names(variant, ours, theirs):
    params = state_dict(variant)
    leaf = "scale" if ours.endswith("norm") else "kernel"
    assert f"{ours}/{leaf}" in leaves(f"mobilenet_{variant}")
    assert mobilenet.reference_path(f"{ours}/{leaf}", params) == f"{theirs}/{leaf}".replace(".", "/")


def test_every_leaf_has_a_name_of_its_own():
    for variant in ("v2", "v3_large", "v3_small"):
        params = state_dict(variant)
        names = [mobilenet.reference_path(n, params) for n in leaves(f"mobilenet_{variant}")]
        assert len(set(names)) == len(names)
