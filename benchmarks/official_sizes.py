"""Every published size compiles and runs at its published input size in bfloat16, with random parameters.

    python benchmarks/official_sizes.py [PATTERN ...]

Prints, for a batch of one: seconds to compile, milliseconds of a call, and whether the logits are finite
float32. Parameters are drawn leaf by leaf, so that nothing but the model itself is compiled, and XLA's
lowest level of optimisation does for that (XLA_FLAGS=--xla_backend_optimization_level=0).
"""

import argparse
import fnmatch
import importlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.analysis.throughput import device_name
from lookupjax.models import MODULES, create_model
from lookupjax.paths import map_named
from lookupjax.training.state import merge_model, split_model


def draw(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Norms start as the identity, everything else is small noise."""
    if name.endswith(("scale", "var")):
        return np.ones(leaf.shape, np.float32)
    if name.endswith(("bias", "mean")):
        return np.zeros(leaf.shape, np.float32)
    return np.random.default_rng(len(name)).standard_normal(leaf.shape, np.float32) * np.float32(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    args = parser.parse_args()
    published = {
        f"{name}_{variant}": figures
        for name in MODULES
        for variant, figures in getattr(
            importlib.import_module(f"lookupjax.models.{name}"), "PUBLISHED", {}
        ).items()
    }
    names = [name for name in published if any(fnmatch.fnmatch(name, p) for p in args.patterns)]
    print(f"{len(names)} models on {device_name()}", flush=True)
    bad = []
    for number, name in enumerate(names, start=1):
        abstract = nnx.eval_shape(lambda name=name: create_model(name, dtype=jnp.bfloat16))
        graphdef, *trees = split_model(abstract)
        arrays = [map_named(draw, tree) for tree in trees]
        images = np.random.default_rng(0).standard_normal((1, *published[name].size, 3), np.float32)

        def forward(params, stats, images, graphdef=graphdef):
            return merge_model(graphdef, params, stats)(images)

        start = time.perf_counter()
        program = jax.jit(forward).lower(*arrays, images).compile()
        compiled = time.perf_counter() - start
        jax.block_until_ready(program(*arrays, images))
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*arrays, images))
        milliseconds = 1e3 * (time.perf_counter() - start)
        main_output = outputs.get("logits", outputs["features"])
        good = main_output.dtype == jnp.float32 and bool(np.isfinite(main_output).all())
        bad += [] if good else [name]
        print(
            f"{number:3d} {name:32s} compiled in {compiled:5.1f} s, {milliseconds:8.1f} ms, "
            f"output {tuple(main_output.shape)} {'finite' if good else 'NOT FINITE'}",
            flush=True,
        )
    print(f"{len(names) - len(bad)} of {len(names)} run" + (f"; not {bad}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
