"""python -m lookupjax.parity FILE.npz... : are our numbers the reference's?

Builds our model or operation from each fixture's config, loads its parameters, runs it in float32 at
highest matmul precision, and compares every expected output. A file fails when an expected key is not
covered, a parameter is not used, or a key's largest error is above 2e-5 of the key's largest value.
"""

import argparse
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from lookupjax import cli, interop
from lookupjax.errors import UserError, nearest
from lookupjax.interop.fixture import load_fixture

TOLERANCE = 2e-5
NO_FAMILY = {"fixture", "state_dict", "weights"}  # modules of interop/ that are not adapters


@dataclass
class Comparison:
    """One expected key: its largest errors, or why it could not be compared."""

    key: str
    absolute: float
    relative: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem and bool(self.relative <= TOLERANCE)


def families() -> list[str]:
    """Families that have an adapter."""
    return [m.name for m in pkgutil.iter_modules(interop.__path__) if m.name not in NO_FAMILY]


def compare(key: str, ours: object, expected: np.ndarray, floor: float) -> Comparison:
    """Errors of one key, relative to its largest absolute value, or to `floor` if that is larger."""
    if ours is None:
        return Comparison(key, np.nan, np.nan, "not covered by the adapter")
    actual = np.asarray(ours)
    if actual.shape != expected.shape:
        return Comparison(key, np.nan, np.nan, f"shape {actual.shape}, expected {expected.shape}")
    if expected.size == 0:
        return Comparison(key, 0.0, 0.0)
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    error = np.where(same, 0.0, error)
    finite = expected[np.isfinite(expected)].astype(np.float64)
    scale = max(np.abs(finite).max(initial=0.0), floor)
    absolute = float(error.max())
    return Comparison(key, absolute, absolute / scale if scale else absolute)


def check(path: str | Path) -> tuple[list[Comparison], list[str]]:
    """(comparisons, unused parameters) of one fixture.

    A gradient that is zero in exact arithmetic (a key's bias before softmax) has rounding noise on the
    scale of its neighbours; gradients are therefore measured against at least 1e-3 of the largest one.
    """
    fixture = load_fixture(path)
    known = families()
    if fixture.family not in known:
        raise UserError(
            f"{path}: no adapter for family {fixture.family!r}{nearest(fixture.family, known)}; "
            f"there are {known}"
        )
    adapter = importlib.import_module(f"lookupjax.interop.{fixture.family}")
    with jax.default_matmul_precision("highest"):
        ours: Mapping[str, object] = adapter.outputs(fixture)
    grads = [np.abs(v).max() for k, v in fixture.expected.items() if k.startswith("grad/") and v.size]
    floor = 1e-3 * float(max(grads, default=0.0))
    rows = [
        compare(key, ours.get(key), expected, floor if key.startswith("grad/") else 0.0)
        for key, expected in fixture.expected.items()
    ]
    return rows, fixture.params.unused


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.parity", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.npz")
    parser.add_argument("--quiet", action="store_true", help="one line per file")
    args = parser.parse_args(argv)
    failed = []
    for path in args.files:
        try:
            rows, unused = check(path)
        except Exception as error:  # one bad file must not hide the others' results
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            print(f"FAIL {path}: {kind}{error}")
            failed.append(path)
            continue
        good = bool(rows) and all(row.passed for row in rows) and not unused
        worst = max((row.relative for row in rows if not row.problem), default=float("nan"))
        print(f"{'ok  ' if good else 'FAIL'} {Path(path).name}: {len(rows)} keys, worst relative {worst:.1e}")
        for row in rows:
            if not args.quiet or not row.passed:
                text = row.problem or f"absolute {row.absolute:.1e}  relative {row.relative:.1e}"
                print(f"  {'ok  ' if row.passed else 'FAIL'} {row.key:40s} {text}")
        for name in unused:
            print(f"  FAIL parameter {name} is not used")
        if not good:
            failed.append(path)
    total = len(args.files)
    print(f"{total - len(failed)} of {total} fixtures pass (tolerance {TOLERANCE:g}, relative, float32)")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
