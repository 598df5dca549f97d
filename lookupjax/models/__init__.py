"""Published models, one file each; `create_model` finds them by name."""

import fnmatch
import importlib
import inspect
import pkgutil
import typing
from pathlib import Path

from flax import nnx

from lookupjax.errors import UserError, nearest
from lookupjax.layers.rngs import Keys

SUPPORT = {
    "caption_decoder",
    "stack",
    "staged",
    "published",
    "__main__",
}  # modules of this room that hold no model
MODULES = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in SUPPORT]


def list_models(pattern: str = "*") -> list[str]:
    """Every `create_model` name that matches the shell-style pattern, such as "lookup*"."""
    names = [
        f"{name}_{variant}"
        for name in MODULES
        for variant in importlib.import_module(f"{__name__}.{name}").VARIANTS
    ]
    return sorted(fnmatch.filter(names, pattern))


def find_model(name: str) -> tuple[typing.Any, str]:
    """(module, variant) of a model name: the longest file name it starts with, then a variant.

    Raises:
      UserError: for an unknown name, with the nearest one.
    """
    for module_name in sorted(MODULES, key=len, reverse=True):
        if name.startswith(module_name + "_"):
            module = importlib.import_module(f"{__name__}.{module_name}")
            variant = name[len(module_name) + 1 :]
            if variant in module.VARIANTS:
                return module, variant
    names = list_models()
    raise UserError(
        f"there is no model {name!r}{nearest(name, names)}; `python -m lookupjax.models` lists all"
    )


def native_size(name: str) -> tuple[int, ...]:
    """(height, width) or (frames, height, width) of a model: its file's `INPUT_SIZE`, otherwise 224 x 224."""
    module, variant = find_model(name)
    return tuple(getattr(module, "INPUT_SIZE", {}).get(variant, (224, 224)))


def model_options(name: str) -> dict[str, typing.Any]:
    """The constructor arguments of a model and what this variant sets them to."""
    module, variant = find_model(name)
    signature = inspect.signature(typing.get_type_hints(module.create)["return"].__init__)
    options = {k: p.default for k, p in signature.parameters.items() if k not in ("self", "rngs")}
    return options | module.VARIANTS[variant]


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    strict: bool = True,
    rngs: nnx.Rngs | None = None,
    **overrides,
) -> nnx.Module:
    """Builds a model by name, such as `create_model("lookupvit_b16", num_classes=10)`.

    Args:
      name: "<file of lookupjax.models>_<variant>".
      weights: a .npz or .safetensors file of published weights; see `interop.weights.load_weights`.
      strict: whether the file must fit exactly; otherwise what does not is reported and left as initialised.
      rngs: source of the initial parameters; default `Keys(0)`.
      overrides: any argument of the model's constructor.

    Raises:
      UserError: for an unknown name or option, with the nearest known one, or weights that do not fit.
    """
    module, variant = find_model(name)
    known = model_options(name)
    for key in overrides:
        if key not in known:
            raise UserError(f"{name} has no option {key!r}{nearest(key, known)}; it has {sorted(known)}")
    model = module.create(variant, rngs=Keys(0) if rngs is None else rngs, **overrides)
    if weights is not None:
        # by name, as the models themselves are found: adapters stand above the models
        importlib.import_module("lookupjax.interop.weights").load_weights(model, weights, strict=strict)
    return model


def nominal_options(name: str) -> dict[str, typing.Any]:
    """Overrides with which the program does exactly the published arithmetic: what counts refer to."""
    return {"cross_impl": "plain"} if "cross_impl" in model_options(name) else {}
