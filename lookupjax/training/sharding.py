"""Where arrays live: a mesh (data, fsdp, model) and a table of parameter patterns.

Models know nothing of this. `data` replicates parameters, `fsdp` splits each over its largest divisible
axis, `model` splits attention and MLP kernels by the rules below. Batches are split over data and fsdp.
"""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lookupjax.errors import UserError
from lookupjax.paths import check_patterns, map_named

AXES = ("data", "fsdp", "model")
BATCH = PartitionSpec(("data", "fsdp"))

# (pattern, axis that "model" splits). Column-parallel into heads or hidden units, row-parallel back.
TENSOR_RULES = (
    (r"(^|/)(q|k|v|qkv|kv)/kernel$", -1),
    (r"(^|/)(q|k|v|qkv|kv)/bias$", -1),
    (r"(^|/)(attn|gather|infuse)/(out|proj)/kernel$", -2),
    (r"(^|/)fc1/kernel$", -1),
    (r"(^|/)fc1/bias$", -1),
    (r"(^|/)fc2/kernel$", -2),
)
SMALL = 2048  # arrays of fewer elements are not worth splitting over fsdp


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of config {data, fsdp, model}; one of them may be -1 for "all remaining devices".

    Raises:
      UserError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(config[axis]) for axis in AXES]
    free = [i for i, n in enumerate(sizes) if n == -1]
    fixed = math.prod(n for n in sizes if n != -1)
    if len(free) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise UserError(f"mesh {dict(config)}: sizes are positive and at most one may be -1 (the rest)")
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        shape = "x".join(map(str, sizes))
        raise UserError(
            f"mesh data x fsdp x model = {shape} does not use exactly the {len(devices)} devices here; "
            "set one of config.mesh.data/fsdp/model to -1 to take the rest"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


Rules = tuple[tuple[str, int], ...]


def find_rule(name: str, rules: Rules) -> int | None:
    """The position of the first rule whose pattern is found in `name`, or None."""
    return next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, name)), None)


def partition_spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = TENSOR_RULES, *, fsdp: bool = True
) -> PartitionSpec:
    """How the array `name` is split: tensor rule first, then fsdp over the largest axis that divides.

    A rule's axis that `model` does not divide stays whole.
    """
    axes: list[str | None] = [None] * len(shape)
    tensor, parts = mesh.shape["model"], mesh.shape["fsdp"]
    rule = find_rule(name, rules) if tensor > 1 else None
    if rule is not None:
        axis = rules[rule][1]
        if -len(shape) <= axis < len(shape) and shape[axis] % tensor == 0:
            axes[axis] = "model"
    if fsdp and parts > 1 and math.prod(shape) >= SMALL:
        sizes = [n if axes[i] is None and n % parts == 0 else 0 for i, n in enumerate(shape)]
        if max(sizes) > 0:
            axes[sizes.index(max(sizes))] = "fsdp"
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def tree_shardings(
    abstract: Any, mesh: Mesh, rules: Rules = TENSOR_RULES, parameters: Collection[str] = ()
) -> Any:
    """The tree of NamedShardings of a state.

    Args:
      parameters: names of the parameters. A leaf whose path ends in one of them ("opt_state/0/mu/" +
        "embed/kernel") goes by that name, so that moments and averages lie where their parameter does.
    """

    def place(path: str, x: Any) -> NamedSharding:
        name = path
        while name and name not in parameters:
            name = name.partition("/")[2]
        return NamedSharding(mesh, partition_spec(name or path, x.shape, mesh, rules))

    return map_named(place, abstract)


@dataclass(frozen=True)
class Layout:
    """Where parameters lie between steps and while they are used, as constraints for the compiler.

    Left to itself XLA may split the activations of a layer by features, as its fsdp-split parameters are,
    and hold the whole batch. So parameters are made whole over fsdp where they are used, which leaves the
    batch the only thing to split (ZeRO-3, arXiv 1910.02054), and gradients are split again at once.
    """

    mesh: Mesh
    rules: Rules = TENSOR_RULES

    def gather(self, params: Any) -> Any:
        """As in use: split over model only."""
        return self._constrain(params, fsdp=False)

    def scatter(self, grads: Any) -> Any:
        """As stored: split over fsdp and model."""
        return self._constrain(grads, fsdp=True)

    def _constrain(self, tree: Any, fsdp: bool) -> Any:
        if self.mesh.shape["fsdp"] == 1:
            return tree

        def place(name: str, x: jax.Array) -> jax.Array:
            spec = partition_spec(name, x.shape, self.mesh, self.rules, fsdp=fsdp)
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        return map_named(place, tree)


def tensor_rules(own: Rules, names: Iterable[str], mesh: Mesh) -> Rules:
    """config.tensor_rules before ours.

    Of our table a rule may go unused: models name their kernels differently, or have no attention.

    Raises:
      UserError: when one of `own` matches no parameter, or `model` > 1 splits none at all.
    """
    names = list(names)
    check_patterns([pattern for pattern, _ in own], names, "tensor_rules")
    rules = (*((pattern, axis) for pattern, axis in own), *TENSOR_RULES)
    if mesh.shape["model"] > 1 and all(find_rule(name, rules) is None for name in names):
        raise UserError(
            f"mesh.model={mesh.shape['model']} would split no parameter of this model: add patterns of its "
            "kernels to config.tensor_rules, or use mesh.fsdp"
        )
    return rules


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's part of a batch."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal parts of every batch this process reads.

    Processes whose devices hold the same rows (tensor parallelism across hosts) read the same part.

    Raises:
      UserError: when the mesh gives the processes unequal or overlapping parts.
    """
    rows: dict[int, set[int]] = {}
    for device, (part,) in NamedSharding(mesh, BATCH).devices_indices_map((mesh.size,)).items():
        rows.setdefault(device.process_index, set()).add(part.start or 0)
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    total = len(set().union(*parts))
    if any(len(part) * len(parts) != total for part in parts):
        raise UserError(
            f"mesh {dict(mesh.shape)} splits the batch unevenly over {len(rows)} processes; let data x fsdp "
            "be a multiple or a divisor of the number of processes"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def check_batch_size(batch_size: int, mesh: Mesh, what: str, parts: int = 1) -> None:
    """Raises UserError unless every device of every microbatch gets the same number of examples."""
    split = mesh.shape["data"] * mesh.shape["fsdp"] * parts
    if batch_size % split:
        raise UserError(
            f"{what}={batch_size} cannot be split evenly over {split} "
            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
            + (f" x accumulate {parts}" if parts > 1 else "")
            + f"); use a multiple of {split}"
        )
