"""MobileNet V2 and V3: the names of torchvision's state dicts, which number a block's layers."""

import math
import re
from typing import Any

from lookupjax.interop.state_dict import StateDict, torch_value


def reference_path(path: str, params: StateDict) -> str:
    """Our path with torchvision's modules, still ending in our kind of leaf."""
    if path.startswith("head/"):
        last = "3" if "classifier.3.weight" in params else "1"
        return path.replace("head", f"classifier/{last}")
    if path.startswith("hidden/"):
        return path.replace("hidden", "classifier/0")
    match = re.match(r"layers/(\d+)/(?:(expand|depthwise|se|project)/)?(?:(conv|norm)/)?", path)
    if not match:
        return path
    place, rest = f"features/{match[1]}", path[match.end() :]
    inside = {"conv": "0", "norm": "1", None: ""}[match[3]]
    if match[2] is None:
        return f"{place}/{inside}/{rest}"
    body = "block" if f"features.{match[1]}.block.0.0.weight" in params else "conv"
    first = params[f"features.{match[1]}.{body}.0.0.weight"]
    expands = first.shape[-1] == 1  # otherwise the first layer is the depthwise one
    number = {"expand": 0, "depthwise": int(expands), "se": int(expands) + 1}
    if match[2] != "project":
        return f"{place}/{body}/{number[match[2]]}/{inside}/{rest}".replace("//", "/")
    squeezes = f"features.{match[1]}.{body}.{number['se']}.fc1.weight" in params
    project = number["se"] + int(squeezes)
    if body == "conv":  # V2: convolution and norm follow each other
        return f"{place}/conv/{project + int(inside)}/{rest}"
    return f"{place}/block/{project}/{inside}/{rest}"


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path` from torchvision's state dict; 1x1 convolutions may be linear layers here."""
    value = torch_value(params, reference_path(path, params), {})
    return value.reshape(shape) if value.size == math.prod(shape) else value
