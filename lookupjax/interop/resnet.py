"""ResNet: the names of torchvision's state dicts."""

import re
from typing import Any

from lookupjax.interop.state_dict import StateDict, torch_value

NAMES = {"shortcut.conv": "downsample.0", "shortcut.norm": "downsample.1", "head": "fc"}


def reference_path(path: str) -> str:
    """Our path with torchvision's modules, still ending in our kind of leaf."""
    path = re.sub(r"^stem/(conv|norm)/", r"\g<1>1/", path).replace("norm1/", "bn1/")
    path = re.sub(r"^stages/(\d)/", lambda m: f"layer{int(m[1]) + 1}/", path)

    def number(m: re.Match) -> str:
        return f"/{'conv' if m[2] == 'conv' else 'bn'}{int(m[1]) + 1}/"

    return re.sub(r"/convs/(\d)/(conv|norm)/", number, path)


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path` from torchvision's state dict."""
    return torch_value(params, reference_path(path), NAMES)
