"""Starting from the weights of another run or a published file: fine-tuning, other resolutions or classes.

`config.init = {"path", "module", "include", "exclude", "strict"}` is used when the work directory itself has
no checkpoint. `module` is the part of the model that the weights are for, such as "backbone": its parameters
alone are loaded, under the names they have inside it. Of those whose names match `include` (all, if empty)
and not `exclude`:

    found with the same shape         loaded
    found, a position table           resized to the new grid
    an image model's, of a video one  its patch kernel inflated as model.tubelet_init says, its position
                                      table repeated over time, its attention also that over time
    found, a head of another shape    left at its initial values ("replaced")
    anything else                     an error: name it in `exclude` to train it from scratch

The moving average is loaded where the other run has one, and starts the new run's own. A path that ends
in .npz or .safetensors is a file of published weights, read by the model's adapter in `lookupjax.interop`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lookupjax.errors import UserError
from lookupjax.interop import weights
from lookupjax.layers.embed import image_to_video
from lookupjax.layers.position import resize_grid
from lookupjax.paths import check_patterns, map_named, named_leaves
from lookupjax.training.state import TrainState

HEAD = re.compile(r"^(head|classifier|logits)\w*(/|$)")
POSITION = re.compile(r"(^|/)pos")


@dataclass
class LoadReport:
    """What became of every parameter, by name."""

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)  # from an image model's
    replaced: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # excluded, or not included
    missing: list[str] = field(default_factory=list)  # not in the source, or of another shape there
    unexpected: list[str] = field(default_factory=list)  # in the source only

    def lines(self) -> list[str]:
        kinds = (self.loaded, self.resized, self.inflated, self.replaced, self.skipped, self.missing)
        total = sum(map(len, kinds))
        shown = [f"initialised from {self.source}: {len(self.loaded)} of {total} arrays loaded"]
        for kind in ("resized", "inflated", "replaced", "skipped", "missing", "unexpected"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                shown.append(f"  {kind}: {', '.join(names[:8])}{more}")
        return shown

    def check(self, strict: bool) -> None:
        """Raises UserError for what is missing; with `strict`, for all that is not loaded as it stands."""
        wrong = self.missing + (
            self.resized + self.inflated + self.replaced + self.unexpected if strict else []
        )
        if wrong or not self.loaded:
            raise UserError(
                "config.init does not fit this model"
                + ("; " if wrong else ": no parameter was loaded; ")
                + "name in init.exclude what shall be trained from scratch"
                + (", or unset init.strict" if strict else "")
                + "\n"
                + "\n".join(self.lines())
            )


def initialise(
    state: TrainState, options: ConfigDict, mesh: Mesh, model: nnx.Module
) -> tuple[TrainState, LoadReport]:
    """`state` with what `config.init` says loaded into it.

    Args:
      model: whose state this is, abstract; its family (or its part's) decides how published files are read.

    Raises:
      UserError: when there is no such checkpoint or part of the model, or they do not fit.
    """
    path, part = Path(options.path), f"{options.module}/" if options.module else ""
    everything = named_leaves(state.params) | named_leaves(state.stats)
    target = {name.removeprefix(part): x for name, x in everything.items() if name.startswith(part)}
    if not target:
        raise UserError(f"config.init.module={options.module!r} is no part of this model")
    for what in ("include", "exclude"):
        check_patterns(options[what], target, f"init.{what}")

    def wanted(name: str) -> bool:
        included = not options.include or any(re.search(p, name) for p in options.include)
        return included and not any(re.search(p, name) for p in options.exclude)

    if path.suffix in weights.FILES:
        module = getattr(model, options.module) if part else model
        source, where = read_file(path, target, wanted, module), str(path)
    else:
        directory = find_checkpoint(path)
        source, where = read_weights(directory, target, wanted, mesh), str(directory.parent)
    inflation = getattr(model, "tubelet_init", "random")
    values, report = fit(target, source, wanted, where, inflation)
    report.check(options.strict)
    values = {f"{part}{name}": x for name, x in values.items()}
    params = map_named(lambda n, x: values.get(n, x), state.params)
    stats = map_named(lambda n, x: values.get(n, x), state.stats)
    ema = None
    if state.ema is not None:
        ema = map_named(lambda n, x: jnp.copy(values[n]) if n in values else x, state.ema)
    return replace(state, params=params, stats=stats, ema=ema), report


def read_file(
    path: Path, target: Mapping[str, jax.Array], wanted: Callable[[str], bool], model: nnx.Module
) -> dict[str, Any]:
    """{our name: array} of a published file, and under their own names the arrays that nothing reads.

    Raises:
      UserError: for an unreadable file, or a model whose family has no adapter.
    """
    params, found = weights.read_weights(path), {}
    module, value_of = weights.adapter(model, params), weights.reader(model, params)
    for name, x in target.items():
        try:
            value = weights.stored_value(value_of, name, x.shape)
        except (KeyError, ValueError):  # also UserError: missing, which `fit` reports
            continue
        if wanted(name):
            found[name] = jax.device_put(value, x.sharding) if value.shape == x.shape else jnp.asarray(value)
    return {name: params.arrays[name] for name in weights.unread(module, params)} | found


def find_checkpoint(path: Path) -> Path:
    """The "model" item of a work directory's newest checkpoint, or of the checkpoint directory itself.

    Raises:
      UserError: when there is none.
    """
    if (path / "checkpoints").is_dir():
        steps = [p for p in (path / "checkpoints").iterdir() if p.name.isdigit()]
        path = max(steps, key=lambda p: int(p.name), default=path)
    if not (path / "model").is_dir():
        raise UserError(
            f"config.init.path: {path} holds no checkpoint; give a work directory or DIR/checkpoints/STEP"
        )
    return (path / "model").absolute()


def read_weights(
    directory: Path, target: Mapping[str, jax.Array], wanted: Callable[[str], bool], mesh: Mesh
) -> dict[str, Any]:
    """{name: array} of the checkpoint's parameters (their moving average where there is one) and statistics.

    Arrays of the target's shape arrive in its sharding, others whole on every device; what is not wanted
    is not read and comes back as its abstract shape.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata.tree
        parts = {part: named_leaves(saved.get(part) or {}) for part in ("params", "stats", "ema")}
        places = {name: "ema" if name in parts["ema"] else "params" for name in parts["params"]}
        places |= dict.fromkeys(parts["stats"], "stats")

        def abstract(name: str) -> jax.ShapeDtypeStruct:
            found = parts[places[name]][name]
            same = name in target and target[name].shape == found.shape
            sharding = target[name].sharding if same else everywhere
            return jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=sharding)

        shapes = {name: abstract(name) for name in places}
        read = {name: x for name, x in shapes.items() if name in target and wanted(name)}
        item: dict[str, Any] = {}
        for name, x in read.items():
            *parents, last = (places[name], *name.split("/"))
            node = item
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = x
        args = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        arrays = checkpointer.restore(directory, args)
    found = {name: x for part in arrays.values() for name, x in named_leaves(part).items()}
    return shapes | found


def fit(
    target: Mapping[str, jax.Array],
    source: Mapping[str, Any],
    wanted: Callable[[str], bool],
    where: str,
    inflation: str = "random",
) -> tuple[dict[str, jax.Array], LoadReport]:
    """The arrays that `target` takes from `source`, in its shapes, dtypes and shardings, and the report.

    Args:
      inflation: how an image's patch kernel becomes that of tubelets, see `layers.embed.inflate`; "random"
        leaves it missing.
    """
    report, values = LoadReport(where), {}
    for name, x in target.items():
        found = source.get(name, source.get(name.replace("/time_attn/", "/attn/")))
        change = f"{name} {_shape(found)} -> {_shape(x)}" if found is not None else name
        if not wanted(name):
            report.skipped.append(name)
        elif found is not None and found.shape == x.shape:
            values[name] = found.astype(x.dtype)
            report.loaded.append(name)
        elif found is not None and (convert := converter(name, found.shape, x.shape, inflation)):
            values[name] = jax.jit(convert, out_shardings=x.sharding)(found).astype(x.dtype)
            (report.inflated if found.ndim < x.ndim else report.resized).append(change)
        else:
            (report.replaced if HEAD.search(name) else report.missing).append(change)
    report.unexpected += [name for name in source if name not in target]
    return values, report


def converter(
    name: str, old: tuple[int, ...], new: tuple[int, ...], inflation: str
) -> Callable[[jax.Array], jax.Array] | None:
    """What makes an array of shape `old` the parameter `name` of shape `new`, or None."""
    if inflation == "random" and name.endswith("embed/kernel"):
        return None
    inflate = partial(image_to_video, name, shape=new, how=inflation)
    inflated = jax.eval_shape(inflate, jax.ShapeDtypeStruct(old, jnp.float32)).shape
    if inflated == new:
        return inflate
    grids = table_grids(inflated, new) if POSITION.search(name) else None
    return (lambda table: resize_table(inflate(table), *grids)) if grids else None


Grid = tuple[int, ...]


def table_grids(old: Grid, new: Grid) -> tuple[Grid, Grid] | None:
    """(old grid, new grid) of two position tables' shapes, or None when neither reading of them fits.

    Tables are (*grid, d), or flat with a square grid: (n, d), or (1 + n, d) with a class token first.
    """
    if len(old) != len(new) or old[-1] != new[-1]:
        return None
    if len(old) > 2:
        return old[:-1], new[:-1]
    for prefix in (0, 1):
        sides = [math.isqrt(shape[0] - prefix) for shape in (old, new)]
        if all(side * side == shape[0] - prefix for side, shape in zip(sides, (old, new))):
            return tuple((side, side) for side in sides)
    return None


def resize_table(table: Float[Array, "*s d"], old: Grid, new: Grid) -> Float[Array, "*t d"]:
    """A position table of `old` resized to `new` in the layout it has; a class token's row stays."""
    if table.ndim > 2:
        return resize_grid(table, new)
    prefix = table.shape[0] - math.prod(old)
    resized = resize_grid(table[prefix:].reshape(*old, -1), new).reshape(math.prod(new), -1)
    return jnp.concatenate([table[:prefix], resized])


def _shape(x: Any) -> str:
    return "x".join(map(str, x.shape))
