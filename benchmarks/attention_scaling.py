"""Time and memory of every token mixer against the number of tokens.

    python benchmarks/attention_scaling.py [--mixers softmax flow] [--sides 16 32 64 128] [--causal] [--grad]

Self-attention of N = side^2 tokens on a square grid, batch 1. All programs are compiled first; then rounds
go through all mixers and sizes in turn, so that a slow phase of the machine hits everyone, and medians are
printed. Bytes are the program's temporary memory by XLA's own account or, where it is more, the largest
array of the program: CPU libraries allocate outside of that account. The exponent p of N^p is a
least-squares fit of the logarithms: 1 is linear, 2 quadratic. Programs above --limit are left out,
and so are sizes that a mixer refuses.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.analysis.counts import largest_array
from lookupjax.attention import create_mixer, list_mixers
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys

Program = tuple[Callable[[], jax.Array], int]


def compile_mixer(name: str, side: int, args: argparse.Namespace) -> Program | None:
    """(call, temporary bytes) of one mixer at side^2 tokens; None when it needs more than the limit."""
    mixer = create_mixer(name, args.dim, args.heads, dtype=args.dtype, rngs=Keys(0))
    graphdef, state = nnx.split(mixer)
    x = jax.random.normal(jax.random.key(1), (1, side * side, args.dim)).astype(args.dtype)

    def forward(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state, copy=True)(x, grid=(side, side), causal=args.causal)

    def backward(state: nnx.State, x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.square(forward(state, x)).mean(dtype=jnp.float32))(x)

    try:
        traced = jax.jit(backward if args.grad else forward).trace(state, x)
    except UserError as error:  # made for other sizes, or not causal
        print(f"\r{name} at N={side * side} is left out: {error}")
        return None
    size = largest_array(traced)
    if size > args.limit * 2**30:
        return None
    program = traced.lower().compile()
    size = max(size, program.memory_analysis().temp_size_in_bytes)
    jax.block_until_ready(program(state, x))
    return lambda: program(state, x), size


def measure(programs: dict[tuple[str, int], Program], rounds: int) -> dict[tuple[str, int], float]:
    """Median seconds of every program; each round runs all of them once."""
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in programs}
    for number in range(rounds):
        print(f"\rround {number + 1}/{rounds}", end="", flush=True)
        for key, (call, _) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[key].append(time.perf_counter() - start)
    print("\r", end="")
    return {key: float(np.median(values)) for key, values in seconds.items()}


def exponent(sides: list[int], values: list[float | None]) -> str:
    """p of a fit of value = a N^p, N = side^2; empty with fewer than two values."""
    points = [(2 * np.log(side), np.log(value)) for side, value in zip(sides, values) if value]
    return f"{np.polyfit(*zip(*points), 1)[0]:.2f}" if len(points) > 1 else ""


def table(title: str, names: list[str], sides: list[int], values: dict[tuple[str, int], float]) -> None:
    print(f"\n{title.ljust(14)}" + "".join(f"{f'N={side * side}':>12}" for side in sides) + "    exponent")
    for name in names:
        row = [values.get((name, side)) for side in sides]
        cells = "".join(f"{value:12.3f}" if value is not None else " " * 11 + "-" for value in row)
        print(name.ljust(14) + cells + exponent(sides, row).rjust(12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mixers", nargs="+", default=list_mixers(), choices=list_mixers())
    parser.add_argument("--sides", nargs="+", type=int, default=[16, 32, 64, 128], help="of the square grid")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=1.0, help="GiB of the largest array")
    parser.add_argument("--causal", action="store_true", help="only the mixers that can be causal")
    parser.add_argument("--grad", action="store_true", help="forward and backward pass")
    args = parser.parse_args()
    names = args.mixers
    if args.causal:
        probe = {name: create_mixer(name, args.dim, args.heads, rngs=Keys(0)) for name in names}
        names = [name for name in names if probe[name].supports_causal]
    programs: dict[tuple[str, int], Program] = {}
    for i, name in enumerate(names):
        print(f"\rcompiling {i + 1}/{len(names)} {name.ljust(20)}", end="", flush=True)
        for side in args.sides:
            program = compile_mixer(name, side, args)
            if program is not None:
                programs[name, side] = program
    print("\r" + " " * 40 + "\r", end="")
    seconds = measure(programs, args.rounds)
    what = "forward and backward" if args.grad else "forward"
    kind = jax.devices()[0].device_kind
    print(f"{kind}, {what}, dim {args.dim}, {args.heads} heads, {args.dtype}, {args.rounds} rounds")
    table("ms", names, args.sides, {key: 1e3 * value for key, value in seconds.items()})
    table("MiB", names, args.sides, {key: size / 2**20 for key, (_, size) in programs.items()})


if __name__ == "__main__":
    main()
