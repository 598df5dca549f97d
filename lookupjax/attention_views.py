"""python -m lookupjax.attention_views (--workdir=DIR | --model=NAME [--weights=FILE]) IMAGE... [--out=DIR]

Shows where every layer, head and token of a model looks: DIR/attention.html, a page to click through that
needs no network, and PNGs of layers and heads, rollouts and, for LookupViT, footprints and round trips. The
images of a video model are the frames of one clip; a captioner writes its caption and shows what it read for
each word. Files that cannot be read are named and skipped; the exit
status is then 1.
"""

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax import cli
from lookupjax.analysis.attention_maps import AttentionMap, attention_maps
from lookupjax.analysis.attention_page import write_page
from lookupjax.analysis.attention_plots import (
    layers_and_heads,
    rollout_picture,
    round_trip_picture,
    words_picture,
)
from lookupjax.analysis.pictures import mosaic
from lookupjax.analysis.plots import compressed_footprints
from lookupjax.data.transforms import build_transforms
from lookupjax.errors import UserError
from lookupjax.evaluation.captions import decoding_options
from lookupjax.grids import parse_grid
from lookupjax.models import create_model, model_options, native_size
from lookupjax.models.captioner import Captioner
from lookupjax.predict import read_images
from lookupjax.recipes import views
from lookupjax.training.experiment import Experiment
from lookupjax.workdir import disk_errors, load_model


def load(args: argparse.Namespace):
    """(the model, its name, transforms of its images, their channels, its input size, its run if any)."""
    if args.workdir:
        experiment, model = load_model(args.workdir)
        config = experiment.config
        name = config.model.name
        return model, name, config.data.eval_transforms, config.data.channels, native_size(name), experiment
    model, size = create_model(args.model, weights=args.weights), native_size(args.model)
    if args.weights is None:
        print(f"{args.model} has random weights: the maps show its initialisation; give it --weights=FILE")
    channels = model_options(args.model).get("channels", 3)
    return model, args.model, views(size[-2:], crop_pct=1.0)["eval_transforms"], channels, size, None


def as_clip(frames: np.ndarray, count: int) -> np.ndarray:
    """(count, h, w, c): the frames evenly thinned out, or repeated."""
    return frames[np.arange(count) * len(frames) // count]


def write_texts(
    experiment: Experiment, model: Captioner, images: jax.Array, call: dict
) -> tuple[jax.Array, list[list[str]]]:
    """Captions by greedy decoding: (tokens (b, t), the words of each up to its end)."""
    options, tokenizer = decoding_options(experiment.context([]), None, dict(method="greedy"))
    graphdef, state = nnx.split(model)
    write = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True).write(x, options, **call))
    tokens = np.asarray(write(state, images)["tokens"])
    words = []
    for row in tokens:
        ended = np.flatnonzero(row == options.end)
        row = row[: ended[0]] if len(ended) else row
        words.append([tokenizer.decode(row[i : i + 1]) for i in range(len(row))])
    return jnp.asarray(tokens[:, : max(map(len, words))]), words


def write_pictures(
    maps: Sequence[AttentionMap], image: np.ndarray, example: int, stem: Path, words: Sequence[str] = ()
) -> list[Path]:
    """All PNGs of one image."""
    kinds = [m.kind for m in maps]
    plain = [m for m in maps if m.kind != "round trip" and not m.kind.startswith("rollout")]
    written = layers_and_heads(plain, image, example, stem)
    reads = [m for m in plain if m.queries.name == "words" and m.keys.name != "words"]
    if len(words) > 1 and reads:
        written.append(stem.with_name(f"{stem.name}_words.png"))
        words_picture(reads[-1], words, image, example, written[-1])
    rollouts = [m for m in maps if m.kind.startswith("rollout")]
    if rollouts:
        written.append(stem.with_name(f"{stem.name}_rollout.png"))
        rollout_picture(rollouts, image, example, written[-1])
    if "round trip" in kinds:
        trips = [m for m in maps if m.kind == "round trip"]
        infusions = [m for m in maps if "infuse" in m.path]
        gathers = [m for m in maps if "gather" in m.path]
        written.append(stem.with_name(f"{stem.name}_round_trip.png"))
        round_trip_picture(infusions[-1], trips[-1], image, example, written[-1])
        last = gathers[-1]
        if len(last.queries.grid) == len(last.keys.grid) == 2:
            written.append(stem.with_name(f"{stem.name}_footprints.png"))
            footprint = last.weights[example].mean(0).reshape(1, -1, *last.keys.grid)
            compressed_footprints(image[None], [last.path], footprint, last.queries.grid, written[-1])
    return written


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.attention_views", description=__doc__.split("\n\n")[1])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="a run")
    source.add_argument("--model", metavar="NAME", help="a model of `python -m lookupjax.models`")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="published weights for --model")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--out", type=Path, default=Path("attention"), metavar="DIR")
    parser.add_argument("--compressed", metavar="GRID", help="such as 3x3; default: the model's own")
    parser.add_argument(
        "--layers", default="", metavar="PATTERN", help="only maps whose path has it (a regex)"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    model, name, transforms, channels, size, experiment = load(args)
    if channels not in (1, 3):
        raise UserError(f"{name} takes {channels} channels, not images; use attention_maps from Python")
    images, bad = read_images(args.images, build_transforms(transforms), channels)
    if not images:
        return 1
    if len({image.shape for image in images.values()}) > 1:
        raise UserError("the images differ in size; add a resize to config.data.eval_transforms")
    batch, titles = np.stack(list(images.values())), [Path(path).name for path in images]
    if len(size) == 3:
        batch, titles = as_clip(batch, size[0])[None], ["clip"]
    stems = [Path(title).stem for title in titles]
    call: dict[str, Any] = {"compressed": parse_grid(args.compressed)} if args.compressed else {}
    if call and not hasattr(getattr(model, "encoder", model), "compressed"):
        raise UserError(f"{name} has no compressed tokens; leave out --compressed")
    texts: list[list[str]] = [[] for _ in titles]
    if isinstance(model, Captioner) and experiment is not None:
        call["text"], texts = write_texts(experiment, model, jnp.asarray(batch), call)
        titles = [f"{title}: {' '.join(words[1:])}" for title, words in zip(titles, texts)]
    maps = [m for m in attention_maps(model, jnp.asarray(batch), **call) if re.search(args.layers, m.path)]
    if not maps:
        raise UserError(
            f"no layer of {name} has {args.layers!r} in its path; leave out --layers to see them all"
        )
    shown = list(batch)
    if len(size) == 3:
        frames = max(m.keys.grid[0] for m in maps if m.keys.grid and len(m.keys.grid) == 3)
        shown = [mosaic(clip, frames) for clip in batch]
    with disk_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        page = args.out / "attention.html"
        write_page(maps, shown, titles, f"Attention of {name}", page)
        for example, (name, image) in enumerate(zip(stems, shown)):
            stem = args.out / (f"{example + 1}_{name}" if len(stems) > 1 else name)
            for path in write_pictures(maps, image, example, stem, texts[example]):
                print(path)
    print(f"{len(maps)} maps to click through: {page}")
    return 1 if bad else 0


if __name__ == "__main__":
    cli.run(main)
