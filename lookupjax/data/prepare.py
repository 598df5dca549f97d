"""python -m lookupjax.data.prepare NAME [--data_dir=DIR] : makes a dataset ready for training."""

import argparse

from lookupjax import cli
from lookupjax.data.sources import BUILDERS, data_dir, prepare
from lookupjax.errors import UserError, nearest


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lookupjax.data.prepare", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(BUILDERS)}")
    parser.add_argument("--data_dir", default="", help=f"default: {data_dir()}")
    args = parser.parse_args(argv)
    if args.name not in BUILDERS:
        raise UserError(f"there is no dataset {args.name!r}{nearest(args.name, BUILDERS)}: {list(BUILDERS)}")
    builder = prepare(args.name, args.data_dir)
    splits = ", ".join(f"{split} {n.num_examples}" for split, n in builder.info.splits.items())
    print(f"{args.name} is ready in {builder.data_path}: {splits}")


if __name__ == "__main__":
    cli.run(main)
