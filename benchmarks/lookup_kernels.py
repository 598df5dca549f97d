"""Whether the lookup path's kernels agree with XLA on the device at hand, and whether each is faster.

    python benchmarks/lookup_kernels.py [--grid=5x5] [--lookup=14x14] [--batch=256] [--dim=768] [--heads=12]
        [--dtype=bfloat16] [--reuse=transpose] [--rounds=7] [--interpret]

For the kernels of the device's kind (TPU or GPU), the path that they make and its gradient: the distance from
float32 (root mean square of the difference, over that of the values), by the kernels and by XLA, then both
times, taken in turn. Kernels whose time is not below XLA's should go; where the distance is far above, they
are wrong.
`--interpret` runs the kernels of both kinds on a CPU instead, which checks the numbers and times nothing.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lookupjax.analysis.throughput import device_name, images_per_second
from lookupjax.attention import lookup_gpu, lookup_path, lookup_tpu
from lookupjax.attention.lookup_path import GatherParams, Options, UpdateParams
from lookupjax.grids import parse_grid

CALLS = 10  # between two waits for the device

Piece = tuple[Callable, Callable, tuple[Any, ...]]  # by kernel, by XLA, arrays


def arrays(args: argparse.Namespace) -> tuple[Any, ...]:
    """(z, q, v, parameters of the gathering, of the update) of random values."""
    random, dim = np.random.default_rng(0), args.dim
    n, m = math.prod(args.lookup), math.prod(args.grid)

    def make(*shape: int, scale: float = 1.0, dtype: Any = args.dtype) -> jax.Array:
        return jnp.asarray(random.normal(0, scale, shape), dtype)

    def norm() -> lookup_path.Affine:
        return make(dim, dtype=jnp.float32) + 1.0, make(dim, scale=0.1, dtype=jnp.float32)

    def layer(into: int, out: int) -> lookup_path.Affine:
        return make(into, out, scale=into**-0.5), make(out, scale=0.1, dtype=jnp.float32)

    gather = GatherParams(norm(), layer(dim, dim), norm(), layer(dim, dim))
    update = UpdateParams(None, layer(dim, dim), norm(), layer(dim, dim // 2), layer(dim // 2, dim))
    return make(args.batch, n, dim), make(args.batch, m, dim), make(args.batch, m, dim), gather, update


def pieces(kind: str, args: argparse.Namespace) -> dict[str, Piece]:
    """What is compared on a "gpu" or a "tpu"."""
    z, q, v, gather_params, update_params = arrays(args)
    gpu = kind == "gpu"
    gather, update = (
        (lookup_gpu.gather_gpu, lookup_gpu.update_gpu)
        if gpu
        else (lookup_tpu.gather_tpu, lookup_tpu.update_tpu)
    )

    def path(gather: Callable, update: Callable) -> Callable:
        def run(options: Options, z, q, v, gather_params, update_params):
            mixed, memory = gather(options, z, q, gather_params)
            update_params = update_params._replace(k_norm=gather_params.k_norm)  # one norm, one gradient
            return mixed, update(options, z, q, memory, v, update_params)

        return run

    def gradient(f: Callable) -> Callable:
        def total(options: Options, *arrays: Any) -> jax.Array:
            return sum(jnp.square(x.astype(jnp.float32)).sum() for x in f(options, *arrays))

        return lambda options, *arrays: jax.grad(total, argnums=(1, 2, 3, 4, 5))(options, *arrays)

    kernels, xla = path(gather, update), path(lookup_path.gather_xla, lookup_path.update_xla)
    first_half: Callable = lambda f: lambda options, *arrays: f(options, *arrays)[0]  # noqa: E731
    found: dict[str, Piece] = {
        "gather": (first_half(gather), first_half(lookup_path.gather_xla), (z, q, gather_params)),
        "whole path": (kernels, xla, (z, q, v, gather_params, update_params)),
        "its gradient": (gradient(kernels), gradient(xla), (z, q, v, gather_params, update_params)),
    }
    if gpu:
        layers = update_params.norm, update_params.fc1, update_params.fc2
        found |= {
            "statistics": (lookup_gpu.statistics, lookup_gpu.statistics_xla, (z,)),
            "mlp": (lookup_gpu.mlp, lookup_path.lookup_mlp, (z, *layers)),
        }
    return found


def distance(got: Any, exact: Any) -> float:
    """The largest, over the arrays, of rms(got - exact) / rms(exact), but for gradients of almost zero."""

    def rms(x: Any) -> float:
        return float(jnp.sqrt(jnp.mean(jnp.square(x))))

    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True))
    least = 1e-2 * max(rms(y) for _, y in pairs)
    return max(rms(x.astype(jnp.float32) - y) / max(rms(y), least) for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", type=parse_grid, default=(5, 5), help="of the compressed tokens")
    parser.add_argument("--lookup", type=parse_grid, default=(14, 14), help="of the lookup tokens")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--reuse", default="transpose", choices=("transpose", "renorm", "softmax"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--interpret", action="store_true")
    args = parser.parse_args()
    platform = jax.default_backend()
    if platform not in ("gpu", "tpu") and not args.interpret:
        parser.error(f"there are no kernels for {platform}: add --interpret, or run it on a GPU or a TPU")
    options = Options(args.heads, absorbed=False, reuse=args.reuse, interpret=args.interpret)
    print(f"{vars(args)}\n{device_name()}")
    print(
        f"{'':18s} {'kernel, distance':>20s} {'XLA':>10s} {'kernel ms':>10s} {'XLA ms':>10s} {'speedup':>8s}"
    )
    for kind in ("gpu", "tpu") if args.interpret else (platform,):
        for name, (by_kernel, by_xla, inputs) in pieces(kind, args).items():
            kernel, xla = (jax.jit(f, static_argnums=0) for f in (by_kernel, by_xla))
            with jax.default_matmul_precision("highest"):
                exact = jax.jit(by_xla, static_argnums=0)(
                    options, *jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
                )
            line = f"{kind} {name:14s} {distance(kernel(options, *inputs), exact):20.2e}"
            line += f" {distance(xla(options, *inputs), exact):10.2e}"
            if not args.interpret:
                contenders = {
                    "kernel": lambda f=kernel, x=inputs: [f(options, *x) for _ in range(CALLS)],
                    "xla": lambda f=xla, x=inputs: [f(options, *x) for _ in range(CALLS)],
                }
                speeds = images_per_second(contenders, args.batch * CALLS, args.rounds)
                times = [1e3 * args.batch / speeds[which].median for which in contenders]
                line += f" {times[0]:10.3f} {times[1]:10.3f} {times[1] / times[0]:7.2f}x"
            print(line, flush=True)


if __name__ == "__main__":
    main()
