"""Trains the runs of the comparison, one after the other, and reports: one command.

    python experiments/imagenet_tradeoff/run.py --scale=digits [--workdir=runs/tradeoff_digits]

The digits take about eight minutes on two CPU cores. ImageNet (`--scale=imagenet`) needs the datasets of
docs/data.md and a pod; there, start single runs (`--only=NAME`) as jobs of their own. What is finished is
kept, what was interrupted goes on. Further arguments (--config.key=value) go to every training.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from report import write_report
from runs import SCALES

from lookupjax import cli
from lookupjax.errors import UserError, nearest


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="imagenet_tradeoff/run.py", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="digits")
    parser.add_argument("--workdir", type=Path, help="default: runs/tradeoff_SCALE")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this run; repeatable")
    parser.add_argument("--list", action="store_true", help="print the commands and do nothing")
    args, overrides = parser.parse_known_args(argv)
    workdir = args.workdir or Path(f"runs/tradeoff_{args.scale}")
    runs = {run.name: run for run in SCALES[args.scale].runs}
    for name in args.only:
        if name not in runs:
            raise UserError(f"there is no run {name!r}{nearest(name, runs)}; there are {list(runs)}")
    failed = []
    for name in args.only or runs:
        run, place = runs[name], workdir / name
        command = [sys.executable, "-m", "lookupjax.train", f"--config={run.config}", f"--workdir={place}"]
        command += [*run.overrides, *overrides]
        if args.list:
            print(" ".join(["python", *command[1:]]))
        elif not (place / "results.json").exists():
            print(f"training {name}", flush=True)
            if subprocess.run(command).returncode != 0:
                failed.append(name)
    if not args.list:
        print(write_report(args.scale, workdir))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
