"""Memory traffic of a model compiled for an accelerator that is not here, by form of the cross-attention.

    python benchmarks/compiled_traffic.py [--model=lookupvit_b16] [--grid=5x5] [--size=224] [--batch=256]
        [--chip=v5e] [--mode=forward] [--forms plain absorbed fused]

Compiles ahead of time for one chip (TPUs: extra `tpu`; h100: extra `cuda`), in bfloat16, and prints the sum
of operands and results over the program's instructions and its temporary memory; for TPUs XLA's own account
as well, of which a kernel's part is what the kernel states (`pl.CostEstimate`: its operands and results, once
each). `--mode=train` compiles the gradient of a sum of the logits with respect to all parameters.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lookupjax import create_model
from lookupjax.analysis.hlo import instructions, traffic
from lookupjax.aot import CHIPS, GPU_TARGETS, topology_devices
from lookupjax.grids import parse_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="lookupvit_b16")
    parser.add_argument("--grid", type=parse_grid, default=(5, 5))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chip", default="v5e", choices=tuple(CHIPS))
    parser.add_argument("--mode", default="forward", choices=("forward", "train"))
    parser.add_argument("--forms", nargs="+", default=["plain", "absorbed", "fused"])
    args = parser.parse_args()
    os.environ |= dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    size = "1" if args.chip in GPU_TARGETS else "2x2x1" if args.chip in ("v4", "v5p") else "2x2"
    place = NamedSharding(Mesh(topology_devices(f"{args.chip}:{size}")[:1], ("chip",)), PartitionSpec())
    first = 0
    images = jax.ShapeDtypeStruct((args.batch, args.size, args.size, 3), jnp.float32, sharding=place)
    print(
        f"{args.model}, {args.grid}, {args.size} px, batch {args.batch}, bfloat16, {args.chip}, {args.mode}"
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

        def train(params, images, forward=forward):
            return jax.grad(lambda params: forward(params, images).astype(jnp.float32).sum())(params)

        start = time.perf_counter()
        compiled = jax.jit(forward if args.mode == "forward" else train).lower(params, images).compile()
        moved, costs = traffic(instructions(compiled.as_text())), compiled.cost_analysis()
        first = first or moved
        told = (
            f"   XLA counts {costs['bytes accessed'] / 1e9:7.2f} GB, {costs['flops'] / 1e12:.3f} TFLOP"
            if costs
            else ""
        )
        print(
            f"{form:9s} operands and results {moved / 1e9:7.2f} GB ({moved / first - 1:+.1%})   temporaries "
            f"{compiled.memory_analysis().temp_size_in_bytes / 1e9:6.2f} GB{told}   "
            f"compiled in {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
