"""RegNetY: the names of torchvision's state dicts."""

import math
import re
from typing import Any

from lookupjax.interop.state_dict import StateDict, torch_value

NAMES = {"conv": "0", "norm": "1", "head": "fc"}


def block_path(path: str, trunk: str) -> str:
    """ "stages/0/1/a/conv/kernel" -> "<trunk>/block1/block1-1/f/a/conv/kernel": torchvision's nesting."""
    match = re.match(r"stages/(\d+)/(\d+)/(shortcut/)?", path)
    if not match:
        return path
    stage, inside = int(match[1]) + 1, "proj/" if match[3] else "f/"
    return f"{trunk}/block{stage}/block{stage}-{match[2]}/{inside}{path[match.end() :]}"


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path` from torchvision's state dict; 1x1 convolutions may be linear layers here."""
    value = torch_value(params, block_path(path, "trunk_output"), NAMES)
    return value.reshape(shape) if value.size == math.prod(shape) else value
