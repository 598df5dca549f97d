"""Metric writers: JSON lines and TensorBoard event files, written by process 0 only."""

import json
import time
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from lookupjax.files import write_whole


class MetricWriter:
    """Appends rows of scalars to metrics.jsonl and tensorboard/ in the work directory.

    A resumed run first drops what an interrupted one wrote beyond the checkpoint, so that every step
    stands in the file once.
    """

    def __init__(self, workdir: Path, from_step: int):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= from_step]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row; keys with slashes ("eval/3x3/accuracy") group in TensorBoard."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | values) + "\n")
        self.file.flush()
        for key, value in values.items():
            self.board.add_scalar(key, value, step)
        self.board.flush()

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.board.close()


def read_metrics(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl, without a last line that a killed process left unfinished."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
