"""Where a run's time went, over all its starts, and which share of it trained the final model.

`attempts.json` in the work directory holds one record per start, written before the first step and renewed at
every checkpoint: a killed process leaves what it had saved, and the steps after that count as lost, as they
will be repeated.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from lookupjax.files import write_whole

ATTEMPTS = "attempts.json"
PARTS = ("start-up", "compilation", "data", "step", "checkpoint", "evaluation")  # the rest is "other"


class Stopwatch:
    """Wall time by part since it was made."""

    def __init__(self):
        self.began = time.perf_counter()
        self.parts = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.parts[part] += time.perf_counter() - start

    @property
    def seconds(self) -> dict[str, float]:
        """By part, "other" included: they sum to the time passed."""
        passed = time.perf_counter() - self.began
        return self.parts | {"other": passed - sum(self.parts.values())}


class Attempts:
    """The records of one work directory, of which this start's is the last."""

    def __init__(self, workdir: Path, step: int, watch: Stopwatch):
        self.path, self.watch = workdir / ATTEMPTS, watch
        self.earlier = json.loads(self.path.read_text()) if self.path.exists() else []
        self.record = {"began": time.time() - sum(watch.seconds.values()), "from": step, "to": step}
        self.write()

    @property
    def records(self) -> list[dict]:
        now = {"ended": time.time(), "seconds": self.watch.seconds}
        return [*self.earlier, self.record | now]

    def saved(self, step: int) -> None:
        """Notes that everything up to `step` is on disk."""
        self.record["to"] = step
        self.write()

    def write(self) -> None:
        if jax.process_index() == 0:
            write_whole(self.path, json.dumps(self.records, indent=1) + "\n")


def goodput(records: list[dict]) -> dict[str, float]:
    """{"share": seconds inside saved training steps / total, "total", one entry per part, "lost"}.

    "total" counts from the first start; "lost" is what no record accounts for: steps that were repeated,
    and the time in which nothing ran.
    """
    total = max(records[-1]["ended"] - records[0]["began"], 1e-9)
    parts = {part: sum(record["seconds"].get(part, 0.0) for record in records) for part in (*PARTS, "other")}
    lost = max(total - sum(parts.values()), 0.0)
    return {"share": parts["step"] / total, "total": total, **parts, "lost": lost}


def describe_goodput(records: list[dict]) -> str:
    """One line for a person."""
    figures = goodput(records)
    share, total = figures.pop("share"), figures.pop("total")
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in figures.items() if seconds >= 0.05)
    starts = f"{len(records)} start{'s' if len(records) > 1 else ''}"
    return f"goodput {share:.1%} of {total:.1f} s in {starts}: {parts}"
