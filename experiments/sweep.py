"""A grid of overrides as runs: python experiments/sweep.py --config=FILE[:ARG] --workdir=DIR KEY=V1;V2 ...

    python experiments/sweep.py --config=configs/quickstart.py --workdir=runs/sweep \\
        "optimizer.learning_rate=1e-3;3e-3" "seed=0;1" --config.steps=500 [--dry-run] [--table_only]

Every combination is a run of `lookupjax.train` in DIR/<combination>. Start the same command again at any
time: finished runs are skipped, broken ones go on from their last checkpoint, failed ones are named at
the end (exit status 1) and do not stop the others. DIR/sweep.md and sweep.json collect the final figures.
"""

import argparse
import hashlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lookupjax import cli
from lookupjax.config import load_config
from lookupjax.errors import UserError
from lookupjax.files import write_whole

Overrides = tuple[tuple[str, str], ...]


def parse_axis(text: str) -> list[tuple[str, str]]:
    """ "seed=0;1" as [("seed", "0"), ("seed", "1")].

    Raises:
      UserError: without "=" or values.
    """
    key, equals, values = text.removeprefix("--").removeprefix("config.").partition("=")
    choices = [value for value in values.split(";") if value]
    if not equals or not choices:
        raise UserError(f"{text!r}: write an axis of the sweep as config.key=value;value;...")
    return [(key, value) for value in choices]


def run_name(overrides: Overrides) -> str:
    """A directory name that says what differs; long ones are cut and made unique by a hash."""
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in overrides)
    clean = re.sub(r"[^\w.,=+-]+", "_", name)
    if clean == name and len(name) <= 100:
        return name
    return f"{clean[:80]}-{hashlib.sha256(repr(overrides).encode()).hexdigest()[:8]}"


def expand(axes: Sequence[str]) -> dict[str, Overrides]:
    """{directory name: overrides} of every combination, in order.

    Raises:
      UserError: when two combinations would share a directory.
    """
    runs = {}
    for overrides in itertools.product(*map(parse_axis, axes)):
        name = run_name(overrides)
        if name in runs:
            raise UserError(f"two runs of this sweep would be called {name}; give each value once")
        runs[name] = overrides
    return runs


def is_finished(workdir: Path) -> bool:
    """Whether a run wrote its final evaluation."""
    return (workdir / "results.json").exists()


def run_all(runs: dict[str, list[str]], workdir: Path, dry_run: bool) -> list[str]:
    """Runs what is not finished, one after the other; the names of those that failed."""
    failed = []
    for number, (name, command) in enumerate(runs.items(), start=1):
        finished = is_finished(workdir / name)
        state = (
            "finished" if finished else "goes on" if (workdir / name / "checkpoints").exists() else "starts"
        )
        print(f"[{number}/{len(runs)}] {name}: {state}", flush=True)
        if dry_run:
            print("  " + shlex.join(command))
        elif not finished and subprocess.run(command).returncode != 0:
            failed.append(name)
    return failed


def collect(runs: dict[str, Overrides], workdir: Path) -> list[dict]:
    """One row per run and call variant: its overrides and final figures; unfinished runs have none."""
    rows = []
    for name, overrides in runs.items():
        path = workdir / name / "results.json"
        results = json.loads(path.read_text()) if path.exists() else {"": {}}
        for call, figures in results.items():
            rows.append({"run": name, **dict(overrides), "call": call, **figures})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown with one column per key that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "run"))
    columns = [c for c in columns if any(row.get(c) not in (None, "") for row in rows)]

    def cell(value: object) -> str:
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell(row.get(c, '')) for c in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="experiments/sweep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("axes", nargs="+", metavar="KEY=V1;V2", help="config key and its values")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--table_only", action="store_true", help="collect what is finished")
    args, fixed = parser.parse_known_args(argv)
    if strange := [text for text in fixed if not text.startswith("--config.")]:
        raise UserError(f"unknown argument {strange[0]!r}; config keys are set with --config.key=value")
    runs = expand(args.axes)
    commands = {}
    for name, overrides in runs.items():
        changes = [*fixed, *(f"--config.{key}={value}" for key, value in overrides)]
        load_config(args.config, changes)  # a wrong key should not show after hours
        flags = [f"--config={args.config}", f"--workdir={args.workdir / name}", *changes]
        commands[name] = [sys.executable, "-m", "lookupjax.train", *flags]
    failed = [] if args.table_only else run_all(commands, args.workdir, args.dry_run)
    if not args.dry_run:
        rows = collect(runs, args.workdir)
        args.workdir.mkdir(parents=True, exist_ok=True)
        write_whole(args.workdir / "sweep.json", json.dumps(rows, indent=1) + "\n")
        write_whole(args.workdir / "sweep.md", table(rows))
        print(table(rows), end="")
    if failed:
        print(f"failed: {', '.join(failed)}; start again to go on with them", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    cli.run(main)
