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


def create_mixer(
    name: str, dim: int, num_heads: int, *, prefix: int = 0, rngs: nnx.Rngs, **options
) -> TokenMixer:
    """Builds the mixer called `name`, with its own options.

    Args:
      prefix: tokens that stand before the grid's, such as a class token. A mixer that does not work on the
        grid treats all tokens alike.

    Raises:
      UserError: when there is no such mixer, or it cannot do with tokens before the grid.
    """
    names = list_mixers()
    if name not in names:
        raise UserError(f"there is no attention {name!r}{nearest(name, names)}; there are {names}")
    mixer = importlib.import_module(f"{__name__}.{name}").MIXER
    if prefix and mixer.needs_grid:
        if not mixer.supports_prefix:
            raise UserError(
                f"attention={name!r} works on the token grid alone, but {prefix} other tokens (class token, "
                "registers) stand before it; use a model that averages its patches (head='gap')"
            )
        options["prefix"] = prefix
    return mixer(dim, num_heads, rngs=rngs, **options)
