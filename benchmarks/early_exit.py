"""What batched early exit saves in time, against what it saves in multiply-accumulates.

    python benchmarks/early_exit.py [MODEL] [--size=224] [--images=64] [--batch=16] [--shares 1 1 1 1]

Random parameters and images: thresholds are set so that the given shares of the images leave at each exit,
then the whole model (one program) and early exit (one program a segment) run in turn on the same images.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.analysis.batched_exit import BatchedExits
from lookupjax.analysis.early_exit import find_thresholds
from lookupjax.analysis.throughput import device_name, images_per_second
from lookupjax.layers.rngs import Keys
from lookupjax.models import create_model
from lookupjax.models.dynperceiver import EXITS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="dynperceiver_reg400m_t128", help="a dynperceiver_*")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 1.0, 1.0, 1.0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shares = np.float32(args.shares) / np.float32(sum(args.shares))
    model = create_model(args.model, rngs=Keys(0))
    images = np.random.default_rng(0).standard_normal((args.images, args.size, args.size, 3), np.float32)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, images: jax.Array) -> jax.Array:
        outputs = nnx.merge(graphdef, state)(images)
        return jnp.stack([jax.nn.softmax(outputs[name]) for name in EXITS])

    def whole() -> list[jax.Array]:
        parts = range(0, len(images), args.batch)
        return [run(state, images[start : start + args.batch]) for start in parts]

    confidence = np.concatenate([np.asarray(p.max(-1)) for p in whole()], axis=1)
    exits = BatchedExits(model, find_thresholds(confidence, shares), args.batch)

    def early() -> np.ndarray:
        return exits(images)[0]

    taken = np.bincount(exits(images)[1], minlength=len(shares))
    speeds = images_per_second({"whole": whole, "early": early}, len(images), args.rounds)
    print(f"{args.model}, {args.images} images of {args.size} px in batches of {args.batch}, {device_name()}")
    print(f"images that leave at each exit: {taken.tolist()}")
    ratio = speeds["early"].median / speeds["whole"].median
    for name, speed in speeds.items():
        print(f"{name:6s} {speed.median:8.2f} images/s  ({speed.low:.2f} to {speed.high:.2f})")
    print(f"early exit is {ratio:.2f}x as fast as the whole model")


if __name__ == "__main__":
    main()
