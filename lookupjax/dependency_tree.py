"""python -m lookupjax.dependency_tree --workdir=DIR IMAGE... --out=TREE.png [--parts=5]

Draws the dependency tree that a trained DependencyViT grows over the patches of each image, and the image's
parts by it. Files that cannot be read are named and skipped; the exit status is then 1.
"""

import argparse
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lookupjax import cli
from lookupjax.analysis.dependency import dependency_tree
from lookupjax.analysis.tree_plots import dependency_trees
from lookupjax.data.transforms import build_transforms
from lookupjax.errors import UserError
from lookupjax.layers.embed import token_grid
from lookupjax.models.dependencyvit import DependencyViT
from lookupjax.predict import read_images
from lookupjax.workdir import disk_errors, load_model


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.dependency_tree", description=__doc__.split("\n\n")[1])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--out", required=True, type=Path, metavar="TREE.png")
    parser.add_argument("--parts", type=int, default=5, help="subtrees to colour, at most")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    experiment, model = load_model(args.workdir)
    if not isinstance(model, DependencyViT):
        raise UserError(f"{experiment.config.model.name} grows no dependency tree; train a dependencyvit")
    data = experiment.config.data
    images, bad = read_images(args.images, build_transforms(data.eval_transforms), data.channels)
    if not images:
        return 1
    if len({image.shape for image in images.values()}) > 1:
        raise UserError("the images differ in size; add a resize to config.data.eval_transforms")
    batch = np.stack(list(images.values()))
    _, layers = jax.jit(model.run)(jnp.asarray(batch))
    trees = [dependency_tree(layers, i) for i in range(len(batch))]
    grid = token_grid(batch.shape[1:-1], model.patch)
    with disk_errors(args.out):
        titles = [Path(path).name for path in images]
        dependency_trees(batch, titles, trees, grid, args.out, count=args.parts)
    print(f"dependency trees: {args.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    cli.run(main)
