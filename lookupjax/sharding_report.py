"""python -m lookupjax.sharding_report --config=FILE[:ARG] [--devices=8] [--config.key=value ...]

How config.mesh splits a config's parameters, optimizer state and moving average: per parameter its
partition and bytes per device, then the totals, what stays whole on every device, and the tensor rules
that found nothing. Nothing is allocated, and any number of devices can be asked for on any machine.
"""

import argparse
import math
import re
from typing import Any

import jax
from jax.sharding import NamedSharding

from lookupjax import cli
from lookupjax.config import load_config
from lookupjax.errors import UserError
from lookupjax.paths import named_leaves
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import SMALL, Rules, find_rule, make_mesh

MIB = 2**20


def bytes_of(x: jax.ShapeDtypeStruct) -> tuple[int, int]:
    """(whole, per device) bytes of an abstract array with a sharding."""
    shard = x.sharding.shard_shape(x.shape)
    return math.prod(x.shape) * x.dtype.itemsize, math.prod(shard) * x.dtype.itemsize


def spec_text(sharding: NamedSharding) -> str:
    """ "(-, fsdp)", or "whole" for an array that every device holds."""
    if not any(sharding.spec):
        return "whole"
    return f"({', '.join(axis or '-' for axis in sharding.spec)})"


def totals(state: Any) -> list[tuple[str, int, int]]:
    """(part of the state, whole bytes, bytes per device)."""
    rows = []
    for part in ("params", "stats", "opt_state", "ema"):
        sizes = [bytes_of(x) for x in jax.tree.leaves(getattr(state, part))]
        rows.append((part, sum(whole for whole, _ in sizes), sum(local for _, local in sizes)))
    rows.append(("all", sum(whole for _, whole, _ in rows), sum(local for *_, local in rows)))
    return rows


def report(experiment: Experiment) -> str:
    """The whole report as text."""
    state, mesh, rules = experiment.abstract_state, experiment.mesh, experiment.layout.rules
    params = named_leaves(state.params)
    width = max(map(len, params))
    shape = "x".join(map(str, mesh.devices.shape))
    lines = [f"{experiment.config.model.name} on mesh data x fsdp x model = {shape}", ""]
    lines.append(f"{'parameter':{width}s}  {'shape':>16s}  {'partition':16s}  bytes per device")
    for name, x in params.items():
        dims = "x".join(map(str, x.shape)) or "scalar"
        lines.append(f"{name:{width}s}  {dims:>16s}  {spec_text(x.sharding):16s}  {bytes_of(x)[1]:>16,d}")
    lines += ["", f"{'':10s}  {'whole MiB':>12s}  {'per device':>12s}  share"]
    for part, whole, local in totals(state):
        share = f"{local / whole:6.1%}" if whole else "     -"
        lines.append(f"{part:10s}  {whole / MIB:12.2f}  {local / MIB:12.2f}  {share}")
    return "\n".join([*lines, "", *remarks(params, experiment, rules)])


def remarks(params: dict[str, Any], experiment: Experiment, rules: Rules) -> list[str]:
    """What is frozen, what stayed whole and why, and which rules found nothing."""
    mesh, lines = experiment.mesh, []
    if patterns := experiment.config.frozen:
        frozen = [x for name, x in params.items() if any(re.search(p, name) for p in patterns)]
        held = sum(bytes_of(x)[1] for x in frozen) / MIB
        lines.append(
            f"frozen: {len(frozen)} of {len(params)} parameters, {held:.2f} MiB per device, without "
            "gradients, optimizer state and moving average"
        )
    whole = {name: x for name, x in params.items() if not any(x.sharding.spec)}
    if mesh.shape["fsdp"] > 1 or mesh.shape["model"] > 1:
        small = [name for name, x in whole.items() if math.prod(x.shape) < SMALL]
        odd = [name for name in whole if name not in small]
        held = sum(bytes_of(x)[0] for x in whole.values()) / MIB
        lines.append(f"whole on every device: {len(whole)} of {len(params)} parameters, {held:.2f} MiB")
        lines.append(f"  {len(small)} with fewer than {SMALL} numbers")
        if odd:
            lines.append(f"  {len(odd)} with no axis that divides: {', '.join(odd[:12])}")
    if mesh.shape["model"] > 1:
        used = {find_rule(name, rules) for name in params}
        unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
        undivided = [
            n for n, x in params.items() if find_rule(n, rules) is not None and not _split(x, "model")
        ]
        lines.append(f"tensor rules that found nothing: {', '.join(unused) or 'none'}")
        if undivided:
            why = f"a rule found, but model={mesh.shape['model']} does not divide"
            lines.append(f"{why}: {', '.join(undivided[:12])}")
    return lines


def _split(x: Any, axis: str) -> bool:
    return axis in x.sharding.spec


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.sharding_report", description=__doc__.split("\n\n")[1])
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--devices", type=int, help="pretend to have so many (default: those here)")
    args, overrides = parser.parse_known_args(argv)
    if strange := [text for text in overrides if not text.startswith("--config.")]:
        raise UserError(f"unknown argument {strange[0]!r}; config keys are set with --config.key=value")
    if args.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.devices)
    config = resolve(load_config(args.config, overrides), data=False)
    print(report(Experiment(config, make_mesh(config.mesh))))
    return 0


if __name__ == "__main__":
    cli.run(main)
