"""The comparison of trained captioners: how well the same decoder writes from fewer or more image tokens."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lookupjax.analysis.counts import count_params, count_products
from lookupjax.analysis.throughput import Speed, device_name, distinct, images_per_second
from lookupjax.files import write_whole
from lookupjax.layers.decoding import Decoding

SHOWN = ("exact", "cider", "bleu4", "rouge_l", "meteor", "spice")


@dataclass
class CaptionRun:
    """A trained captioner and what is known of it.

    figures: of its captions evaluator, such as {"exact": 0.9, "cider": 7.1}.
    options: how the captions were written. pictures: samples that evaluation drew.
    """

    name: str
    model: nnx.Module
    figures: Mapping[str, Any]
    options: Decoding
    pictures: Sequence[Path] = ()


def write_caption_report(runs: list[CaptionRun], images: jax.Array, to: Path) -> Path:
    """Writes report.md and copies of the pictures into `to`; returns the path of report.md.

    Args:
      images: (b, h, w, c) as the models take them: the batch whose captions are timed.
    """
    to.mkdir(parents=True, exist_ok=True)
    runs = distinct(runs)
    speeds = _speeds(runs, images)
    scores = [name for name in SHOWN if any(name in run.figures for run in runs)]
    costs = [_cost(run, images) for run in runs]
    head = [
        "encoder",
        "tokens attended",
        "decoder MACs",
        "encoder MACs",
        "captions/s",
        "decoder only/s",
        *scores,
    ]
    rows = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for run, (tokens, decoder, encoder) in zip(runs, costs):
        values = [f"{run.figures[name]:.3f}" if name in run.figures else "-" for name in scores]
        whole, alone = (f"{speeds[f'{run.name} {part}'].median:,.0f}" for part in ("whole", "decoder"))
        cells = [
            run.name,
            str(tokens),
            f"{decoder / 1e6:,.2f} M",
            f"{encoder / 1e6:,.2f} M",
            whole,
            alone,
            *values,
        ]
        rows.append("| " + " | ".join(cells) + " |")
    longest, beams = runs[0].options.length, runs[0].options.rows
    text = [
        "# The same decoder on fewer image tokens",
        "",
        *rows,
        "",
        f"Decoder MACs: multiply-accumulates of writing one caption of {longest} tokens with one beam and",
        "the cache, the projections of the image tokens included; encoder MACs: of one image. Captions/s:",
        f"from images, with {beams} beams, in batches of {len(images)} on {device_name()}; decoder only:",
        "from stored tokens.",
        "",
        *(
            f"{run.name}: {count_params(run.model.encoder):,} parameters in the encoder, frozen; "
            f"{count_params(run.model.decoder):,} in the decoder."
            for run in runs
        ),
        "",
    ]
    for run in runs:
        for picture in run.pictures:
            name = f"{run.name}_{picture.name}".replace(" ", "_")
            shutil.copy(picture, to / name)
            text += [f"![captions written by the decoder on {run.name}]({name})", ""]
    path = to / "report.md"
    write_whole(path, "\n".join(text))
    return path


def _cost(run: CaptionRun, images: jax.Array) -> tuple[int, int, int]:
    """(image tokens, decoder MACs of a caption, encoder MACs of an image)."""
    graphdef, state = nnx.split(run.model)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    traced = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True).encode(x)).trace(state, one)
    n = traced.out_info.shape[-2]
    return n, run.model.decoder.macs(n, run.options.length - 1), count_products(traced)


def _speeds(runs: list[CaptionRun], images: jax.Array) -> dict[str, Speed]:
    """Captions per second, of encoder and decoder together and of the decoder alone; all runs in turn."""
    contenders = {}
    for run in runs:
        graphdef, state = nnx.split(run.model)
        tokens = jax.jit(lambda state, x, g=graphdef: nnx.merge(g, state, copy=True).encode(x))(state, images)

        def whole(state, x, g=graphdef, options=run.options):
            return nnx.merge(g, state, copy=True).write(x, options)

        def decoder(state, x, g=graphdef, options=run.options):
            return nnx.merge(g, state, copy=True).write(None, options, tokens=x)

        for part, fn, x in (("whole", whole, images), ("decoder", decoder, tokens)):
            program = jax.jit(fn).lower(state, x).compile()
            contenders[f"{run.name} {part}"] = lambda program=program, state=state, x=x: program(state, x)
    return images_per_second(contenders, len(images))
