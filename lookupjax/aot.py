"""python -m lookupjax.aot --config=FILE[:ARG] --topology=v5e:16x16 [--config.key=value ...]

Compiles the real training step for devices that are not here, and says whether it fits and what it costs:
memory by kind against the chip's, matrix products, collectives, a floor of the step time. Exits with 1,
naming the largest buffers, when it does not fit. TPUs need the extra `tpu`, GPUs (`--topology=h100:8`) the
extra `cuda`; both work on any CPU machine. `--platform=cpu --devices=8` compiles for so many CPU devices.
"""

import argparse
import importlib.util
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax

from lookupjax import cli
from lookupjax.analysis.counts import arrays, count_products
from lookupjax.analysis.hlo import collectives, instructions, largest_buffers, traffic
from lookupjax.config import load_config
from lookupjax.errors import UserError
from lookupjax.evaluation.context import Call, call_name
from lookupjax.grids import parse_grid
from lookupjax.paths import named_leaves
from lookupjax.sharding_report import bytes_of
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.program import batch_shapes, trace_step
from lookupjax.training.sharding import check_batch_size, make_mesh

GIB, MIB = 2.0**30, 2.0**20


def shown(size: int | float) -> str:
    """Bytes in the unit that suits them."""
    return f"{size / GIB:9.2f} GiB" if size >= 0.1 * GIB else f"{size / MIB:9.2f} MiB"


@dataclass(frozen=True)
class Chip:
    """Per chip: memory and peak rates of Google Cloud's pages on TPU v4, v5e, v5p and v6e, NVIDIA's on H100.

    Versions of these pages differ by some per cent (v6e: 1,600 or 1,640 GB/s, 3,200 or 3,584 Gbit/s); a floor
    needs the larger figure. The links of v4 are the six of 50 GB/s of arXiv 2304.01433.
    """

    memory: float  # bytes
    flops: float  # bfloat16, per second
    bandwidth: float  # bytes per second, of the memory
    links: float  # bytes per second, of the interconnect, all links together, in one direction


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 448e9),
    "h100": Chip(80e9, 989e12, 3350e9, 450e9),
}
GPU_TARGETS = {  # what XLA has to know of a GPU that is not here
    "h100": """
        platform_name: "CUDA"
        device_description_str: "NVIDIA H100 80GB HBM3"
        runtime_version { major: 13 }
        dnn_version_info { major: 9 minor: 12 }
        gpu_device_info {
          cuda_compute_capability { major: 9 }
          core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
          threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          registers_per_block_limit: 65536  registers_per_core_limit: 65536
          shared_memory_per_core: 233472
          shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
          l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84978434048
        }""",
}
GPU_FLAGS = (
    "--xla_gpu_enable_triton_gemm=false --xla_gpu_enable_cublaslt=true"  # nothing can be tuned by trying
)
GPUS_PER_HOST = 8


def topology_devices(topology: str) -> list[Any]:
    """The devices of a topology: chips of a TPU, such as "v5e:16x16", or GPUs, such as "h100:8".

    Raises:
      UserError: when the compiler for it is not installed or knows no such topology.
    """
    from jax.experimental import topologies

    chip, _, size = topology.partition(":")
    if chip not in CHIPS or not size:
        raise UserError(f"--topology={topology} must be CHIP:SIZE with a chip of {list(CHIPS)}")
    name, platform, options = topology, "tpu", {}
    package, extra = "libtpu", "tpu"
    if chip == "v4":
        options = {"chip_config_name": "megacore"}  # its two cores as one device
    elif chip in GPU_TARGETS:
        hosts, rest = divmod(int(size) if size.isdecimal() else 0, GPUS_PER_HOST)
        if (hosts == 0) == (rest == 0):
            raise UserError(f"--topology={topology} must be {chip}:N with N from 1 to 8 or a multiple of 8")
        shape = f"1x{hosts}x{GPUS_PER_HOST}" if hosts else f"1x1x{rest}"
        name, platform, options = chip, "cuda", dict(target_config=GPU_TARGETS[chip], topology=shape)
        package, extra = "jax_cuda13_plugin", "cuda"
        if GPU_FLAGS not in (flags := os.environ.get("XLA_FLAGS", "")):
            os.environ["XLA_FLAGS"] = f"{flags} {GPU_FLAGS}"
    if importlib.util.find_spec(package) is None:
        raise UserError(f"compiling for {chip} needs {package}: pip install -e '.[{extra}]'")
    jax.devices()  # finds the plugins
    try:
        return list(topologies.get_topology_desc(name, platform=platform, **options).devices)
    except Exception as error:  # what the compilers raise is not documented
        raise UserError(f"--topology={topology}: {str(error).splitlines()[0]}") from error


def dearest_call(experiment: Experiment) -> Call:
    """The call variant with the most compressed tokens."""
    return max(experiment.calls(), key=lambda call: [n for _, grid in call for n in grid])


def out_of_memory(message: str) -> str | None:
    """What the TPU compiler says of a program that does not fit, or None for another error."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    return message.removeprefix("RESOURCE_EXHAUSTED: ").splitlines()[0]


def largest_values(traced: jax.stages.Traced, batch: int, parts: int, count: int = 8) -> list[str]:
    """Lines naming the largest values of the traced program: the compiler names none of what it gave up on.

    Args:
      batch, parts: a value with an axis of `batch` is taken to be split over so many devices.
    """
    sizes: dict[tuple[str, str], int] = {}
    for aval, operation in arrays(traced.jaxpr.jaxpr):
        split = parts if batch in aval.shape else 1
        sizes[aval.str_short(), operation] = aval.size * aval.dtype.itemsize // split
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:count]
    return [f"{size / MIB:10.1f} MiB  {kind:28s} {operation}" for (kind, operation), size in largest]


def memory_lines(compiled: jax.stages.Compiled, state: Any) -> tuple[list[str], int]:
    """(table of the memory on each device, its total in bytes)."""
    stats = compiled.memory_analysis()
    parts = {
        "parameters": sum(bytes_of(x)[1] for x in jax.tree.leaves((state.params, state.stats))),
        "optimizer state": sum(bytes_of(x)[1] for x in jax.tree.leaves(state.opt_state)),
        "moving average": sum(bytes_of(x)[1] for x in jax.tree.leaves(state.ema)),
    }
    parts["batch and padding"] = stats.argument_size_in_bytes - sum(parts.values())
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts |= {
        "outputs not in place": new,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    lines = [f"  {kind:22s} {shown(size)}" for kind, size in parts.items()]
    return lines, sum(parts.values())


def floor_lines(flops: float, moved: float, counted: str, sent: int | float, chip: Chip | None) -> list[str]:
    """Costs per device and step; with a chip, the seconds that each takes at its peak rate."""
    rates = (chip.flops, chip.bandwidth, chip.links) if chip else (math.inf,) * 3
    seconds = [amount / rate for amount, rate in zip((flops, moved, sent), rates)]
    took = [f"  at least {1e3 * s:8.2f} ms" if chip else "" for s in seconds]
    lines = [
        f"  {'matrix products':22s} {flops / 1e12:9.3f} TFLOP{took[0]}",
        f"  {'memory traffic':22s} {shown(moved)}{took[1]}  ({counted})",
        f"  {'collectives':22s} {shown(sent)}{took[2]}",
    ]
    floor = max(seconds)
    if chip:
        lines.append(f"floor of the step time: {1e3 * floor:.2f} ms ({1 / floor:.1f} steps/s)")
    return lines


def report(
    experiment: Experiment, call: Call, size: tuple[int, ...], chip: Chip | None, memory: float
) -> int:
    """Compiles, prints everything, and returns the exit status; `memory` in bytes, 0 for any."""
    config, mesh = experiment.config, experiment.mesh
    check_batch_size(config.batch_size, mesh, "config.batch_size", config.accumulate)
    batch = batch_shapes(experiment, size)
    shape = "x".join(map(str, mesh.devices.shape))
    images = "x".join(map(str, batch["image"].shape))
    print(f"{config.model.name} {call_name(call)} on {mesh.size} x {mesh.devices.flat[0].device_kind}")
    print(f"mesh data x fsdp x model = {shape}, batch {images}, {config.dtype}")
    start = time.perf_counter()
    traced = trace_step(experiment, batch, call)
    lowered = traced.lower()
    middle = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if (why := out_of_memory(str(error))) is None:
            raise
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        values = largest_values(traced, config.batch_size // config.accumulate, parts)
        print("\n".join([f"does not fit: {why}", "largest values on each device, fused or not:", *values]))
        return 1
    print(f"traced in {middle - start:.1f} s, compiled in {time.perf_counter() - middle:.1f} s")
    lines, used = memory_lines(compiled, experiment.abstract_state)
    of = f" of {shown(memory).strip()}, {used / memory:.1%}" if memory else ""
    print("\n".join(["memory per device:", *lines, f"  {'total':22s} {shown(used)}{of}"]))
    program = instructions(compiled.as_text())
    found = collectives(program)
    print("collectives per step:" if found else "collectives per step: none")
    for kind, (count, size_of) in found.items():
        print(f"  {kind:22s} {shown(size_of)} in {count}")
    flops = 2.0 * count_products(traced) / mesh.size
    moved, counted = float(traffic(program)), "operands and results of every instruction"
    if costs := compiled.cost_analysis():  # there is none for GPUs
        moved, counted = float(costs.get("bytes accessed", 0.0)), "bodies of loops counted once"
    sent = sum(size_of for _, size_of in found.values())
    print("\n".join(["per device and step:", *floor_lines(flops, moved, counted, sent, chip)]))
    if memory and used > memory:
        sizes = {name: bytes_of(x)[1] for name, x in named_leaves(experiment.abstract_state).items()}
        print("\n".join(["does not fit; largest buffers:", *largest_buffers(program)]))
        for name in sorted(sizes, key=lambda name: -sizes[name])[:4]:
            print(f"{sizes[name] / MIB:10.1f} MiB  {name}")
        return 1
    return 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.aot", description=__doc__.split("\n\n")[1])
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--topology", help="such as v5e:16x16, v5p:4x4x4 or h100:8")
    parser.add_argument("--platform", choices=("cpu",))
    parser.add_argument("--devices", type=int, default=1, help="of --platform=cpu")
    parser.add_argument("--memory", type=float, metavar="GIB", help="per device; default: the chip's")
    parser.add_argument("--image_size", type=parse_grid, default=(), metavar="SIZE", help="such as 384x384")
    parser.add_argument("--compressed", type=parse_grid, metavar="GRID", help="default: the largest trained")
    args, overrides = parser.parse_known_args(argv)
    if strange := [text for text in overrides if not text.startswith("--config.")]:
        raise UserError(f"unknown argument {strange[0]!r}; config keys are set with --config.key=value")
    if bool(args.platform) == bool(args.topology):
        raise UserError("give either --topology=CHIP:SIZE or --platform=cpu --devices=N")
    # libtpu would look for a TPU machine's metadata, and allows one process only
    os.environ |= dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    if args.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", args.devices)
        devices, chip = jax.devices(), None
    else:
        devices, chip = topology_devices(args.topology), CHIPS[args.topology.partition(":")[0]]
    config = resolve(load_config(args.config, overrides), data=False)
    experiment = Experiment(config, make_mesh(config.mesh, devices))
    call = (("compressed", args.compressed),) if args.compressed else dearest_call(experiment)
    memory = args.memory * GIB if args.memory else chip.memory if chip else 0.0
    status = report(experiment, call, args.image_size, chip, memory)
    if status:
        print("try mesh.fsdp, a larger accumulate, model.remat=block or dtype=bfloat16", file=sys.stderr)
    return status


if __name__ == "__main__":
    cli.run(main)
