"""python -m lookupjax.predict --workdir=DIR [--caption] IMAGE... [--compressed=3x3] [--attention_map=OUT.png]

Prints the most probable classes of each image file; with --caption its caption (of a captioner), and a
super-resolution model writes it enlarged to --output. Files that cannot be read are named and skipped; the
exit status is then 1.
"""

import argparse
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax import cli
from lookupjax.analysis.attention import footprints
from lookupjax.analysis.plots import compressed_footprints
from lookupjax.data.sources import dataset_info
from lookupjax.data.transforms import apply, build_transforms, read_image, write_image
from lookupjax.errors import UserError
from lookupjax.evaluation.captions import decoding_options
from lookupjax.grids import parse_grid
from lookupjax.tasks.captioning import Captioning
from lookupjax.tasks.super_resolution import SuperResolution
from lookupjax.training.experiment import Experiment, check_compressed
from lookupjax.workdir import disk_errors, load_model


def read_images(paths: list[str], transforms: list, channels: int) -> tuple[dict[str, np.ndarray], int]:
    """({path: model input}, number of files that could not be used); complaints go to stderr."""
    images, bad = {}, 0
    for path in paths:
        try:
            images[path] = apply(transforms, read_image(path, channels))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            bad += 1
    return images, bad


def write_enlarged(model: nnx.Module, images: dict[str, np.ndarray], directory: Path) -> None:
    """Writes DIRECTORY/NAME_x2.png for every image, in [0, 1] as the model was trained."""
    enlarge = jax.jit(lambda model, x: model(x)["image"])
    for path, image in images.items():
        enlarged = np.asarray(enlarge(model, jnp.asarray(image)[None])[0])
        pixels = np.round(np.clip(enlarged, 0, 1) * 255).astype(np.uint8)
        target = directory / f"{Path(path).stem}_x{model.scale}.png"
        write_image(pixels, target)
        height, width = image.shape[:2]
        print(f"{path}: {height}x{width} -> {pixels.shape[0]}x{pixels.shape[1]} {target}")


def print_captions(
    experiment: Experiment, model: nnx.Module, images: dict[str, np.ndarray], beams: int
) -> None:
    """Prints a caption of every image and its score."""
    options, tokenizer = decoding_options(experiment.context([]), None, dict(beams=beams))
    write = jax.jit(lambda model, x: model.write(x, options))
    for path, image in images.items():
        written = write(model, jnp.asarray(image)[None])
        text = tokenizer.decode(np.asarray(written["tokens"][0]))
        print(f"{path}: {text} ({float(written['score'][0]):.2f})")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.predict", description=__doc__.split("\n\n")[1])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--compressed", metavar="GRID", help="such as 3x3; default: the model's own")
    parser.add_argument("--attention_map", type=Path, metavar="OUT.png", help="where the tokens look")
    parser.add_argument("--output", type=Path, default=Path(), help="directory for enlarged images")
    parser.add_argument("--top", type=int, default=3, help="classes to print per image")
    parser.add_argument("--caption", action="store_true", help="write captions")
    parser.add_argument("--beams", type=int, default=4, help="of beam search")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    grid = parse_grid(args.compressed) if args.compressed else None
    experiment, model = load_model(args.workdir)
    data = experiment.config.data
    writes = isinstance(experiment.task, Captioning)
    if args.caption or writes:
        if not writes:
            raise UserError(
                f"--caption needs a captioner; {args.workdir} holds {experiment.config.model.name}"
            )
        images, bad = read_images(args.images, build_transforms(data.eval_transforms), data.channels)
        print_captions(experiment, model, images, args.beams)
        return 1 if bad else 0
    names = dataset_info(data.name, data.dir).words
    images, bad = read_images(args.images, build_transforms(data.eval_transforms), data.channels)
    if isinstance(experiment.task, SuperResolution):
        write_enlarged(model, images, args.output)
        return 1 if bad else 0
    call = {} if grid is None else {"compressed": grid}

    titles = []
    for path, image in images.items():
        if grid is not None:
            check_compressed(experiment, grid, image.shape[:-1])
        try:
            logits = model(jnp.asarray(image)[None], **call)["logits"][0]
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        probabilities = np.asarray(jax.nn.softmax(logits))
        best = probabilities.argsort()[::-1][: args.top]
        print(f"{path}: " + ", ".join(f"{names[i]} {probabilities[i]:.1%}" for i in best))
        titles.append(f"{Path(path).name}\n{names[best[0]]} {probabilities[best[0]]:.0%}")
    if args.attention_map and images:
        shapes = {image.shape for image in images.values()}
        if len(shapes) > 1:
            raise UserError(
                "--attention_map shows images of one size; add a resize to config.data.eval_transforms"
            )
        batch = np.stack(list(images.values()))
        maps = np.asarray(footprints(model, jnp.asarray(batch), **call))
        layout = (grid or model.compressed) if hasattr(model, "compressed") else (1, 1)
        with disk_errors(args.attention_map):
            compressed_footprints(batch, titles, maps, layout, args.attention_map)
        print(f"attention map: {args.attention_map}")
    return 1 if bad else 0


if __name__ == "__main__":
    cli.run(main)
