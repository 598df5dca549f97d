"""The factorised LookupViT's frames from an image LookupViT's or ViT's file; time starts anew."""

from typing import Any

from lookupjax.errors import UserError
from lookupjax.interop import lookupvit
from lookupjax.interop.state_dict import StateDict

OPTIONS = lookupvit.OPTIONS


def parameter(params: StateDict, path: str, shape: tuple[int, ...], *, tubelet_init: str = "central") -> Any:
    """Our parameter at `path` as `interop.lookupvit.parameter` finds it; raises as that."""
    if not path.startswith("frames/"):
        raise UserError("an image model has no such part")
    return lookupvit.parameter(params, path.removeprefix("frames/"), shape, tubelet_init=tubelet_init)
