"""python -m lookupjax.export --workdir=DIR --format=stablehlo|onnx|safetensors [--out=DIR] [--batch=N]

Writes a trained model for use without this package: a folder with manifest.json (input, preprocessing,
labels, compressed grids, checksums) and programs, or with weights and the config that builds the model again.
What was written is read back and compared with the checkpoint; errors and times on the CPU are
printed.
"""

import argparse
import functools
import hashlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from safetensors.numpy import load_file, save_file

import lookupjax
from lookupjax import cli, create_model
from lookupjax.data.loader import EvalBatches
from lookupjax.data.sources import dataset_info
from lookupjax.data.transforms import build_transforms, split_normalize
from lookupjax.errors import UserError
from lookupjax.evaluation.context import Call
from lookupjax.files import write_whole
from lookupjax.grids import format_grid
from lookupjax.layers.reparam import merge_branches
from lookupjax.paths import map_named
from lookupjax.training.experiment import Experiment, evaluation_params
from lookupjax.training.state import merge_model, split_model
from lookupjax.workdir import disk_errors, load_trained

FORMATS = ("stablehlo", "onnx", "safetensors")
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # of outputs, relative to the largest where that is above one
EXAMPLES = 4  # of each kind that the check compares
ROUNDS = 10  # timed calls

Weights = dict[str, np.ndarray]
Program = Callable[[np.ndarray], Mapping[str, Any]]  # images to outputs


@dataclass(frozen=True)
class Source:
    """A trained model to be exported, computing in float32.

    Attributes:
      calls: by name, the variants of the model's call, such as {"3x3": (("compressed", (3, 3)),)}.
      examples: real inputs (n, h, w, c), none where the dataset is not here.
    """

    experiment: Experiment
    model: nnx.Module
    calls: dict[str, Call]
    labels: tuple[str, ...]
    examples: np.ndarray
    shape: tuple[int, ...]

    def outputs(self, model: nnx.Module, images: Array, call: Call) -> dict[str, Array]:
        """The model's evaluation outputs, by name in alphabetical order."""
        return dict(sorted(model(images, **dict(call)).items()))


def load_source(workdir: Path) -> Source:
    """The newest checkpoint of a run.

    Raises:
      UserError: when there is none, or neither the dataset nor the config tells the size of the images.
    """
    experiment, part = load_trained(workdir)
    config = experiment.config.copy_and_resolve_references()
    config.dtype = "float32"
    if config.model.get("cross_impl") == "fused":  # kernels are of one platform, and exports of three
        config.model.cross_impl = "auto"
    experiment = replace(experiment, config=config)
    model = merge_model(experiment.graphdef, evaluation_params(part), part["stats"])
    data = config.data
    try:
        batches = EvalBatches(data, data.eval_split, EXAMPLES)
        examples = next(iter(batches))["image"]
        labels = dataset_info(data.name, data.dir).words
    except UserError as error:
        sizes = [t["size"] for t in data.eval_transforms if "size" in t and not isinstance(t["size"], int)]
        if not sizes:
            raise UserError(f"the size of the model's images is unknown: {error}") from None
        examples, labels = np.zeros((0, *sizes[-1], data.channels), np.float32), ()
    calls = {format_grid(dict(c)["compressed"]) if c else "default": c for c in experiment.calls()}
    return Source(experiment, model, calls, tuple(labels), examples, tuple(examples.shape[1:]))


def manifest_of(source: Source, files: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader needs to know, JSON-compatible."""
    config = source.experiment.config
    normalize = split_normalize(build_transforms(config.data.eval_transforms))[1]
    *size, channels = source.shape
    given = {} if normalize is None else {"mean": normalize.mean, "std": normalize.std}
    return {
        "made_by": f"lookupjax {lookupjax.__version__}, jax {jax.__version__}",
        "model": config.model.to_dict(),
        "input": {"dtype": "float32", "size": size, "channels": channels, **given},
        "preprocessing": [dict(transform) for transform in config.data.eval_transforms],
        "labels": list(source.labels),
        **files,
    }


def described(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def named_weights(model: nnx.Module) -> tuple[Weights, Callable[[Mapping[str, Any]], nnx.Module]]:
    """(parameters and statistics by name, what builds the model from such)."""
    graphdef, *trees = split_model(model)
    names = map_named(lambda name, _: name.partition("/")[2], trees)
    weights = dict(zip(jax.tree.leaves(names), map(np.asarray, jax.tree.leaves(trees))))
    return weights, lambda given: merge_model(graphdef, *jax.tree.map(lambda name: given[name], names))


def write_stablehlo(source: Source, out: Path, batch: int) -> dict[str, Program]:
    """One program per compressed grid over weights of their own file, for CPU, CUDA and TPU."""
    weights, build = named_weights(merge_branches(source.model))
    save_file(weights, out / "weights.safetensors")
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
    leading = (str(batch) if batch else "b") + ", " + ", ".join(map(str, source.shape))
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(leading), jnp.float32)
    programs = {}
    for name, call in source.calls.items():

        def run(weights: Mapping[str, Array], images: Array, call: Call = call) -> dict[str, Array]:
            return source.outputs(build(weights), images, call)

        try:
            exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(shapes, images)
        except Exception as error:
            if batch:
                raise
            raise UserError(
                f"{source.experiment.config.model.name} cannot be exported for every batch size "
                f"({str(error).splitlines()[0]}); choose one: --batch=8"
            ) from error
        path = out / f"{name}.stablehlo"
        path.write_bytes(exported.serialize())
        programs[name] = described(path)
    files = {"programs": programs, "weights": described(out / "weights.safetensors"), "platforms": PLATFORMS}
    write_manifest(source, out, files | {"batch": batch or "any"})

    weights = load_file(out / "weights.safetensors")
    loaded = {}
    for name, program in programs.items():
        stored = jax.export.deserialize(bytearray((out / program["file"]).read_bytes()))
        loaded[name] = functools.partial(jax.jit(stored.call), weights)
    return loaded


def optional(name: str) -> Any:
    """A module of the "onnx" extra.

    Raises:
      UserError: when it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--format=onnx needs {name} ({error}): pip install -e '.[onnx]', "
            "then pip install --no-deps jax2onnx equinox"
        ) from None


def write_onnx(source: Source, out: Path, batch: int) -> dict[str, Program]:
    """One ONNX model per compressed grid, weights inside."""
    for name in (
        "jax2onnx",
        "onnx_ir",
    ):  # they tell of every example they cannot import, every shape not stored
        logging.getLogger(name).setLevel(logging.CRITICAL)
    jax2onnx, runtime = optional("jax2onnx"), optional("onnxruntime")
    merged = merge_branches(source.model)
    programs, outputs = {}, []
    for name, call in source.calls.items():

        def run(images: Array, call: Call = call) -> tuple[Array, ...]:
            return tuple(source.outputs(merged, images, call).values())

        outputs = list(jax.eval_shape(lambda x: source.outputs(merged, x, call), one(source.shape)))  # noqa: B023
        path = out / f"{name}.onnx"
        path.write_bytes(jax2onnx.to_onnx(run, [(batch or "b", *source.shape)]).SerializeToString())
        programs[name] = described(path)
    write_manifest(source, out, {"programs": programs, "outputs": outputs, "batch": batch or "any"})

    loaded = {}
    for name, program in programs.items():
        session = runtime.InferenceSession(out / program["file"], providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0].name
        loaded[name] = lambda images, s=session, key=given: dict(zip(outputs, s.run(None, {key: images})))
    return loaded


def one(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def write_safetensors(source: Source, out: Path, batch: int) -> dict[str, Program]:
    """Weights by our own names, and config.json: the model's name and options for `create_model`."""
    save_file(named_weights(source.model)[0], out / "weights.safetensors")
    config = source.experiment.config.model.to_dict()
    write_whole(out / "config.json", json.dumps(config, indent=2) + "\n")
    stored = {"weights": described(out / "weights.safetensors"), "config": described(out / "config.json")}
    write_manifest(source, out, stored | {"grids": list(source.calls)})

    options = json.loads((out / "config.json").read_text(), object_hook=as_tuples)
    model = create_model(options.pop("name"), weights=out / "weights.safetensors", **options)
    return {name: compiled(source, model, call) for name, call in source.calls.items()}


def as_tuples(node: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items()}


def compiled(source: Source, model: nnx.Module, call: Call) -> Program:
    """The model's own program."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x: source.outputs(nnx.merge(graphdef, state, copy=True), x, call))
    return lambda images: run(state, images)


def write_manifest(source: Source, out: Path, files: Mapping[str, Any]) -> None:
    write_whole(out / "manifest.json", json.dumps(manifest_of(source, files), indent=2) + "\n")


WRITERS = {"stablehlo": write_stablehlo, "onnx": write_onnx, "safetensors": write_safetensors}


def difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> float:
    """The largest difference of any output, relative to its largest value where that is above one."""
    errors = []
    for name, value in expected.items():
        a, b = np.asarray(value, np.float64), np.asarray(got[name], np.float64)
        errors.append(float(np.abs(a - b).max() / max(1.0, np.abs(a).max())))
    return max(errors)


def milliseconds(program: Program, images: np.ndarray) -> float:
    """Median of some calls with the outputs waited for."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(images))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


def check(source: Source, programs: Mapping[str, Program], batch: int, kind: str) -> None:
    """Prints error and latency of every program against the checkpoint's.

    Raises:
      UserError: when one differs.
    """
    count = batch or EXAMPLES
    random = np.random.default_rng(0).normal(size=(count, *source.shape)).astype(np.float32)
    inputs = {"random": random}
    if len(source.examples):
        inputs["real"] = np.resize(source.examples, (count, *source.shape)).astype(np.float32)
    timed = random[: batch or 1]
    print(f"{'grid':10}{'error, random':>15}{'error, real':>15}{f'{kind} ms':>16}{'checkpoint ms':>16}")
    for name, call in source.calls.items():
        own = compiled(source, source.model, call)
        errors = {key: difference(own(x), programs[name](x)) for key, x in inputs.items()}
        shown = "".join(
            f"{errors[key]:15.1e}" if key in errors else f"{'-':>15}" for key in ("random", "real")
        )
        took = milliseconds(programs[name], timed), milliseconds(own, timed)
        print(f"{name:10}{shown}{took[0]:16.2f}{took[1]:16.2f}")
        if not max(errors.values()) <= TOLERANCE:
            raise UserError(f"the exported {name} differs from the checkpoint by {max(errors.values()):.1e}")
    print(
        f"errors: of any output, relative where it is above one; times: one call of {len(timed)} on this CPU"
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lookupjax.export", description=__doc__.split("\n\n")[1])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: WORKDIR/export/FORMAT")
    parser.add_argument("--batch", type=int, default=0, help="a fixed batch size; default: any")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    jax.config.update("jax_platforms", "cpu")
    source = load_source(args.workdir)
    out = args.out or args.workdir / "export" / args.format
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        programs = WRITERS[args.format](source, out, args.batch)
    check(source, programs, args.batch, args.format)
    total = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {len(programs)} program(s), {total / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
