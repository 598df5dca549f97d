"""python -m lookupjax.data.prepare NAME [--source=DIR] [--data_dir=DIR] : makes a dataset ready for training.

Datasets of the ImageNet family, COCO's captions, DIV2K with the benchmarks of super-resolution, Kinetics-400
and Something-Something v2 are read from their official archives or folders in --source and written as
TFDS/ArrayRecord with the original encoded bytes. Images and videos that cannot be read are named and left
out. After an interruption the same command goes on where it stopped.
"""

import argparse
import os

from lookupjax import cli
from lookupjax.data import coco, imagenet, pictures, videos
from lookupjax.data.shards import SHARD_EXAMPLES, Writer
from lookupjax.data.sources import BUILDERS, data_dir, is_prepared, prepare
from lookupjax.errors import UserError, nearest

NAMES = (*BUILDERS, *imagenet.COLLECTORS, *pictures.COUNTS, *coco.COUNTS, *videos.COLLECTORS)
SHOWN = 50  # problems of a source that are printed; all are in problems.txt


def say(text: str) -> None:
    print(text, flush=True)


def prepare_files(args: argparse.Namespace) -> None:
    """Writes a dataset of the ImageNet family, COCO's captions, a set of pictures or a video dataset.

    Raises:
      UserError: see the `collect` of each and `Writer.write`; also when the directory cannot be written.
    """
    name, root = args.name, data_dir(args.data_dir)
    if is_prepared(root / name / imagenet.VERSIONS.get(name, "1.0.0")):
        say(f"{name} is ready in {root / name}; delete it to prepare it again")
        return
    if not args.source:
        raise UserError(f"{name} is prepared from its official files: give their directory as --source=DIR")
    say(f"listing the files of {args.source}")
    if name in videos.COLLECTORS:
        collection = videos.collect(name, args.source, partial=args.partial, short_side=args.short_side)
    elif name in pictures.COUNTS:
        collection = pictures.collect(name, args.source, partial=args.partial)
    elif name in coco.COUNTS:
        collection = coco.collect(name, args.source, partial=args.partial)
    else:
        collection = imagenet.collect(name, args.source, partial=args.partial, synsets=args.synsets)
    for problem in collection.problems[:SHOWN]:
        say(problem)
    if len(collection.problems) > SHOWN:
        say(f"... and {len(collection.problems) - SHOWN:,} more such lines, all of them in problems.txt")
    for note in collection.notes:
        say(f"accepted: {note}")
    if name in imagenet.COLLECTORS and not collection.class_names:
        say("no readable class names in the source: classes are called by their WordNet ids")
    try:
        size = args.shard_examples or (videos.SHARD_EXAMPLES if name in videos.COLLECTORS else SHARD_EXAMPLES)
        Writer(name, collection, root, size).write(args.threads, say)
    except OSError as error:
        raise UserError(f"cannot write {name} to {root}: {error.strerror or error}") from error


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lookupjax.data.prepare", description=__doc__.split("\n\n")[1])
    parser.add_argument("name", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--data_dir", default="", help=f"default: {data_dir()}")
    parser.add_argument("--source", default="", help="directory of the official archives or folders")
    parser.add_argument(
        "--partial", action="store_true", help="accept fewer images or videos than the official set has"
    )
    parser.add_argument(
        "--synsets", default="", metavar="FILE", help='readable names: lines "n01440764 tench"'
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="shards written at once")
    parser.add_argument("--shard_examples", type=int, default=0, help="images or videos per shard")
    parser.add_argument(
        "--short_side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="encode videos anew with at most this shorter side; default: the original bytes",
    )
    args = parser.parse_args(argv)
    if args.name not in NAMES:
        raise UserError(f"there is no dataset {args.name!r}{nearest(args.name, NAMES)}: {list(NAMES)}")
    if args.name not in BUILDERS:
        prepare_files(args)
        return
    builder = prepare(args.name, args.data_dir)
    splits = ", ".join(f"{split} {n.num_examples}" for split, n in builder.info.splits.items())
    say(f"{args.name} is ready in {builder.data_path}: {splits}")


if __name__ == "__main__":
    cli.run(main)
