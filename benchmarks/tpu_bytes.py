"""Memory traffic of a forward pass compiled for a TPU that is not here, by form of the cross-attention.

    python benchmarks/tpu_bytes.py [--model=lookupvit_b16] [--grid=5x5] [--size=224] [--batch=256]
        [--chip=v5e] [--forms plain absorbed fused]

Compiles ahead of time (extra `tpu`) for one chip, in bfloat16, and prints XLA's account of the compiled
program, of which a kernel's part is what the kernel states (`pl.CostEstimate`: its operands and results,
once each), and beside it the sum of operands and results over the program's instructions.
"""

import argparse
import os
import re
import time

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lookupjax import create_model
from lookupjax.analysis.hlo import array_bytes
from lookupjax.aot import CHIPS, tpu_devices
from lookupjax.grids import parse_grid

MOVES_NOTHING = re.compile(r"parameter|tuple|get-tuple-element|bitcast|constant|.*-(start|done)$")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, |$)")


def traffic(program: str) -> int:
    """Bytes of the operands and results of the entry computation's instructions, prefetches left out."""
    sizes: dict[str, int] = {}
    total = 0
    for line in program[program.index("\nENTRY ") :].splitlines():
        if found := INSTRUCTION.match(line):
            name, types, kind, operands = found.groups()
            sizes[name] = sum(array_bytes(types))
            if not MOVES_NOTHING.match(kind):
                total += sizes[name] + sum(sizes.get(o, 0) for o in re.findall(r"%([\w.\-]+)", operands))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="lookupvit_b16")
    parser.add_argument("--grid", type=parse_grid, default=(5, 5))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chip", default="v5e", choices=tuple(CHIPS))
    parser.add_argument("--forms", nargs="+", default=["plain", "absorbed", "fused"])
    args = parser.parse_args()
    os.environ |= dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    topology = f"{args.chip}:2x2" + ("x1" if args.chip in ("v4", "v5p") else "")
    place = NamedSharding(Mesh(tpu_devices(topology)[:1], ("chip",)), PartitionSpec())
    first: tuple[float, int] | None = None
    images = jax.ShapeDtypeStruct((args.batch, args.size, args.size, 3), jnp.float32, sharding=place)
    print(
        f"{args.model}, {args.grid}, {args.size} px, batch {args.batch}, bfloat16, one {args.chip}, forward"
    )
    for form in args.forms:
        model = nnx.eval_shape(
            lambda form=form: create_model(args.model, dtype=jnp.bfloat16, cross_impl=form)
        )
        graphdef, state = nnx.split(model)
        params = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=place), nnx.to_pure_dict(state)
        )

        def forward(params, images, graphdef=graphdef):
            return nnx.merge(graphdef, params)(images, compressed=args.grid)["logits"]

        start = time.perf_counter()
        compiled = jax.jit(forward).lower(params, images).compile()
        costs, moved = compiled.cost_analysis(), traffic(compiled.as_text())
        first = first or (costs["bytes accessed"], moved)
        print(
            f"{form:9s} bytes accessed {costs['bytes accessed'] / 1e9:7.2f} GB "
            f"({costs['bytes accessed'] / first[0] - 1:+.1%})   operands and results {moved / 1e9:6.2f} GB "
            f"({moved / first[1] - 1:+.1%})   {costs['flops'] / 1e12:.3f} TFLOP   "
            f"compiled in {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
