"""python -m lookupjax.benchmark CONTENDER... [--batch 1 32] [--size 224 384] [--mode forward train]

Speed, memory and cost of models side by side. A contender is "model", "model@grid" for a LookupViT's
compressed grid, and may carry options: "vit_b16", "lookupvit_b16@5x5", "vit_s16,head=gap". All of one
setting are compiled first, then visited in turn, round after round, so that they see the same machine.
Modes: "forward" and "train" with inputs that lie on the device already, "end_to_end" trains on what the data
pipeline of --pipeline=CONFIG delivers. --peer=timm adds timm's ViT-B/16, which PyTorch runs in another
environment (--peer_python=PATH), in turn with ours. Writes benchmark.json, benchmark.md and benchmark.png
into --out.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lookupjax import cli
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.analysis.peer import FORMS, MODELS, Peer
from lookupjax.analysis.plots import speed_bars
from lookupjax.analysis.throughput import Speed, device_name, images_per_second
from lookupjax.config import load_config, parse_literal
from lookupjax.data.loader import TrainIterator, train_iterator
from lookupjax.data.transforms import Normalize, build_transforms, split_normalize
from lookupjax.errors import UserError
from lookupjax.files import write_whole
from lookupjax.grids import parse_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models import create_model, model_options, nominal_options
from lookupjax.tasks.classification import Classification
from lookupjax.training.experiment import DTYPES
from lookupjax.training.state import init_state, merge_model, split_model
from lookupjax.training.step import make_train_step
from lookupjax.workdir import disk_errors

MODES = ("forward", "train", "end_to_end")
PASSES = {
    "forward": 1,
    "train": 3,
    "end_to_end": 3,
}  # a training step costs about three forward passes of products
COLUMNS = (
    "| contender | images/s | spread | vs first | ms/call | GMACs/image | TFLOP/s | MFU | memory MB "
    "| XLA GFLOP | XLA GB |"
)


@dataclass(frozen=True)
class Contender:
    """A model to be measured: its name, its call and its options."""

    label: str
    name: str
    call: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def channels(self) -> int:
        return (model_options(self.name) | dict(self.options)).get("channels", 3)


def parse_contender(text: str) -> Contender:
    """ "lookupvit_b16@5x5,dropout=0.1" as a contender.

    Raises:
      UserError: for an unknown model, or a grid for a model without compressed tokens.
    """
    head, *settings = text.split(",")
    name, _, grid = head.partition("@")
    known = model_options(name)
    if grid and "compressed" not in known:
        raise UserError(f"{name} has no compressed tokens: write it without @{grid}")
    pairs = [setting.partition("=") for setting in settings]
    if not all(equals for _, equals, _ in pairs):
        raise UserError(f"{text!r}: write options as key=value, separated by commas")
    call = (("compressed", parse_grid(grid)),) if grid else ()
    return Contender(text, name, call, tuple((key, parse_literal(value)) for key, _, value in pairs))


@dataclass
class Result:
    """What was measured of one contender in one setting."""

    contender: str
    mode: str
    batch: int
    size: int
    params: int
    gmacs: float  # of one image's forward pass
    images_per_second: Speed
    memory_mb: float | None  # arguments, outputs and temporaries of the compiled program
    xla_gflop: float | None
    xla_gbyte: float | None
    tflops: float
    mfu: float


@dataclass(frozen=True)
class Pipeline:
    """The data pipeline of a training config: an endless iterator of batches."""

    batches: TrainIterator
    normalize: Normalize | None

    @classmethod
    def of(cls, config: str, batch: int) -> "Pipeline":
        data = load_config(config, []).data
        return cls(
            train_iterator(data, batch, 0), split_normalize(build_transforms(data.train_transforms))[1]
        )


def matmul_peak(dtype: Any, side: int) -> float:
    """FLOP/s of the best of several dense side x side matrix products on this device."""
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    speed = images_per_second({"matmul": lambda: product(a)}, 1, rounds=5)["matmul"]
    return 2.0 * side**3 * speed.high


def nominal_gmacs(contender: Contender, size: int) -> float:
    """1e9 multiply-accumulates of one image, in the published arithmetic."""
    options = dict(contender.options) | nominal_options(contender.name)
    model = nnx.eval_shape(lambda: create_model(contender.name, **options))
    channels = contender.channels
    return count_products(trace_model(model, (size, size), channels, **dict(contender.call))) / 1e9


def prepare(
    contender: Contender, mode: str, batch: int, size: int, dtype: Any, pipeline: Pipeline | None
) -> tuple[Callable, Result]:
    """(a call of the compiled program on device data or on the pipeline's, the result without its times)."""
    channels = contender.channels

    def make(rngs: Any):
        return create_model(contender.name, rngs=rngs, dtype=dtype, **dict(contender.options))

    model, call = make(Keys(0)), dict(contender.call)
    images = jax.random.normal(jax.random.key(0), (batch, size, size, channels), jnp.float32)
    if mode == "forward":
        graphdef, *arrays = split_model(model)
        program = (
            jax.jit(
                lambda params, stats, images: merge_model(graphdef, params, stats)(images, **call)["logits"]
            )
            .lower(*arrays, images)
            .compile()
        )

        def run() -> jax.Array:
            return program(*arrays, images)

    else:
        task, schedule = Classification.for_model(model), optax.constant_schedule(1e-3)
        optimizer = optax.adamw(schedule, weight_decay=0.05)
        graphdef = split_model(model)[0]
        normalize = None if pipeline is None else pipeline.normalize
        step = make_train_step(graphdef, task, optimizer, schedule, seed=0, normalize=normalize)
        held = [jax.jit(lambda: init_state(make, 0, optimizer, (), False))()]
        data = {"image": images, "label": jnp.zeros((batch,), jnp.int32)}
        if pipeline is not None:
            data = jax.device_put(next(pipeline.batches))
            if data["image"].shape != images.shape:
                raise UserError(
                    f"the pipeline gives images {data['image'].shape}, the setting is {images.shape}: "
                    "choose --size and the model's channels to fit"
                )
        program = (
            jax.jit(step, static_argnums=2, donate_argnums=0).lower(held[0], data, contender.call).compile()
        )

        def run() -> jax.Array:
            batch = data if pipeline is None else jax.device_put(next(pipeline.batches))
            held[0], metrics = program(held[0], batch)
            return metrics["loss"]

    memory, costs = program.memory_analysis(), program.cost_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    used -= memory.alias_size_in_bytes
    return run, Result(
        contender.label,
        mode,
        batch,
        size,
        count_params(model),
        nominal_gmacs(contender, size),
        Speed(0.0, 0.0, 0.0),
        used / 1e6,
        costs.get("flops", float("nan")) / 1e9,
        costs.get("bytes accessed", float("nan")) / 1e9,
        0.0,
        0.0,
    )


def prepare_peer(peer: Peer, form: str, mode: str, batch: int, size: int, dtype: str) -> Result:
    """timm's ViT-B/16, ready in the worker; its products are counted on ours, which it equals."""
    ((model, ours),) = MODELS.items()
    label = f"timm {model} {form}"
    request = dict(model=model, form=form, mode=mode, batch=batch, size=size, dtype=dtype)
    answer = peer.ask(prepare=label, **request)
    macs = nominal_gmacs(parse_contender(ours), size)
    speed, memory = Speed(0.0, 0.0, 0.0), answer["memory_mb"]
    return Result(label, mode, batch, size, answer["params"], macs, speed, memory, None, None, 0.0, 0.0)


def measure(
    contenders: list[Contender],
    mode: str,
    batch: int,
    size: int,
    args: argparse.Namespace,
    peak: float,
    peer: Peer | None,
) -> list[Result]:
    """Compiles every contender of one setting, then measures all of them in interleaved rounds."""
    pipeline = Pipeline.of(args.pipeline, batch) if mode == "end_to_end" else None
    prepared = []
    for contender in contenders:
        print(f"compiling {contender.label} ({mode}, batch {batch}, {size} px)", flush=True)
        prepared.append(prepare(contender, mode, batch, size, DTYPES[args.dtype], pipeline))
    results, elsewhere = [result for _, result in prepared], {}
    if peer is not None and pipeline is None:
        for form in args.peer_forms:
            print(f"preparing timm, {form} ({mode}, batch {batch}, {size} px)", flush=True)
            results.append(prepare_peer(peer, form, mode, batch, size, args.dtype))
            elsewhere[results[-1].contender] = partial(peer.timed, results[-1].contender)
    calls = {result.contender: run for run, result in prepared}
    timing = dict(seconds_per_round=args.seconds, elsewhere=elsewhere)
    speeds = images_per_second(calls, batch, args.rounds, **timing)
    for result in results:
        result.images_per_second = speeds[result.contender]
        flops = 2e9 * result.gmacs * PASSES[mode] * result.images_per_second.median
        result.tflops, result.mfu = flops / 1e12, flops / peak
    return results


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def table(results: list[Result]) -> list[str]:
    """The Markdown table of one setting; ratios are to its first row."""
    first = results[0].images_per_second.median
    rows = [COLUMNS, "|---|" + "---:|" * (COLUMNS.count("|") - 2)]
    for r in results:
        speed = r.images_per_second
        spread = (speed.high - speed.low) / (2 * speed.median)
        rows.append(
            f"| {r.contender} | {speed.median:,.1f} | ± {spread:.0%} | {speed.median / first:.2f}x "
            f"| {1e3 * r.batch / speed.median:,.2f} | {r.gmacs:,.3f} | {r.tflops:,.3f} | {r.mfu:.0%} "
            f"| {shown(r.memory_mb, 0)} | {shown(r.xla_gflop, 2)} | {shown(r.xla_gbyte, 2)} |"
        )
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.benchmark", description=__doc__.split("\n\n")[1])
    parser.add_argument("contenders", nargs="+", help="model[@grid][,option=value...]")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="image side in pixels")
    parser.add_argument("--mode", nargs="+", default=["forward"], choices=MODES)
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="of each contender in each round, at least"
    )
    parser.add_argument(
        "--peak_side", type=int, default=2048, help="side of the product that MFU is relative to"
    )
    parser.add_argument(
        "--pipeline", metavar="FILE[:ARG]", help="training config whose data end_to_end reads"
    )
    parser.add_argument("--peer", choices=("timm",), help="another framework's ViT-B/16, in its own process")
    parser.add_argument("--peer_python", help="the Python of an environment with PyTorch and timm")
    parser.add_argument("--peer_forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args(argv)
    contenders = [parse_contender(text) for text in args.contenders]
    if len({c.label for c in contenders}) < len(contenders):
        raise UserError("a contender is named twice")
    if bool(args.peer) != bool(args.peer_python):
        raise UserError("--peer=timm needs --peer_python=PATH of an environment with PyTorch and timm")
    if ("end_to_end" in args.mode) != bool(args.pipeline):
        raise UserError("--mode end_to_end needs --pipeline=CONFIG, and only it does")
    peer = Peer(args.peer_python) if args.peer else None
    try:
        return report(contenders, args, peer)
    finally:
        if peer is not None:
            peer.close()


def report(contenders: list[Contender], args: argparse.Namespace, peer: Peer | None) -> int:
    """Measures every setting, prints and writes the tables; returns the exit status."""
    peak = matmul_peak(DTYPES[args.dtype], args.peak_side)
    header = (
        f"{device_name()}, {args.dtype}, {args.rounds} interleaved rounds, medians with half the distance "
        f"of the quartiles; dense {args.peak_side}^3 product of the same run: {peak / 1e12:.3f} TFLOP/s"
    )
    lines, results = ["# Benchmark", "", header], []
    for mode, batch, size in itertools.product(args.mode, args.batch, args.size):
        rows = measure(contenders, mode, batch, size, args, peak, peer)
        results += rows
        lines += ["", f"## {mode}, batch {batch}, {size} pixels", "", *table(rows)]
    lines += [
        "",
        "TFLOP/s and MFU are nominal: two operations for each multiply-accumulate of the model, three passes "
        "for a training step. Memory, FLOP and bytes are the compiler's account of one call (of timm: memory "
        "at its peak, on a GPU).",
        "",
        "![images per second](benchmark.png)",
    ]
    with disk_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        record = {"device": device_name(), "dtype": args.dtype, "peak_tflops": peak / 1e12}
        record["results"] = [
            asdict(r) | {"images_per_second": r.images_per_second._asdict()} for r in results
        ]
        write_whole(args.out / "benchmark.json", json.dumps(record, indent=2) + "\n")
        write_whole(args.out / "benchmark.md", "\n".join(lines) + "\n")
        groups: dict[str, dict[str, Speed]] = {}
        for r in results:
            setting = f"{r.mode}, batch {r.batch}, {r.size} px"
            groups.setdefault(setting, {})[r.contender] = r.images_per_second
        speed_bars(groups, args.out / "benchmark.png")
    print("\n".join(lines[2:-2]))
    print(f"\nwritten to {args.out}")
    return 0 if np.isfinite([r.mfu for r in results]).all() else 1


if __name__ == "__main__":
    cli.run(main)
