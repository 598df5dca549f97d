"""Token mixers, one file each. A file's `MIXER` is what `attention="<file name>"` builds."""

import importlib
import pkgutil

from flax import nnx

from lookupjax.attention.mixer import TokenMixer, record_taps, with_taps
from lookupjax.errors import UserError, nearest

__all__ = ["TokenMixer", "create_mixer", "list_mixers", "record_taps", "with_taps"]


def list_mixers() -> list[str]:
    """Names that `attention=` accepts."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    return [n for n in names if hasattr(importlib.import_module(f"{__name__}.{n}"), "MIXER")]


def create_mixer(name: str, dim: int, num_heads: int, *, rngs: nnx.Rngs, **options) -> TokenMixer:
    """Builds the mixer called `name`.

    Raises:
      UserError: when there is no such mixer.
    """
    names = list_mixers()
    if name not in names:
        raise UserError(f"there is no attention {name!r}{nearest(name, names)}; there are {names}")
    mixer = importlib.import_module(f"{__name__}.{name}").MIXER
    return mixer(dim, num_heads, rngs=rngs, **options)
