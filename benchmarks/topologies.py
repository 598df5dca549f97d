"""Whether every config fits the TPU topology that its docstring names: python benchmarks/topologies.py

Runs `lookupjax.aot` for the default argument of each file under configs/ on every topology named there
("v4:2x2x4"), and for LookupViT-L/16 at 384 pixels with model.scan and model.remat, and prints one row each.
Needs the extra "tpu" and no TPU; about five minutes of a core per row. Exit status 1 if one does not fit.
Argument: a pattern of rows ("v4:*").
"""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

from lookupjax.aot import CHIPS

NAMED = re.compile(rf"\b(?:{'|'.join(CHIPS)}):\d+x\d+(?:x\d+)?\b")
LARGE = (
    "configs/imagenet/lookupvit.py:L/16,10x10,384",
    "--config.model.scan=True",
    "--config.model.remat=block",
)
ON_PODS = ("v5e:16x16", "v5p:4x4x4")  # where the docstring names these, it means LARGE


def rows() -> list[tuple[str, tuple[str, ...]]]:
    """(topology, (config, overrides...)) of every compilation."""
    found = []
    for path in sorted(Path("configs").rglob("*.py")):
        docstring = path.read_text().split('"""')[1]
        for topology in dict.fromkeys(NAMED.findall(docstring)):
            found.append((topology, LARGE if topology in ON_PODS else (str(path),)))
    return found


def main() -> int:
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    chosen = [row for row in rows() if fnmatch.fnmatch(f"{row[0]} {row[1][0]}", pattern)]
    print("| config | topology | memory per chip | floor of the step |\n|---|---|---:|---:|", flush=True)
    wrong = 0
    for topology, (config, *overrides) in chosen:
        command = [sys.executable, "-m", "lookupjax.aot", f"--config={config}", f"--topology={topology}"]
        ran = subprocess.run([*command, *overrides], capture_output=True, text=True)
        memory = re.search(r"total +(.*)", ran.stdout)
        floor = re.search(r"floor of the step time: (.*) \(", ran.stdout)
        if ran.returncode or not memory or not floor:
            wrong = 1
            print(f"{ran.stdout}\n{ran.stderr[-2000:]}", file=sys.stderr)
        cells = [memory[1] if memory else "does not compile", floor[1] if floor else ""]
        settings = " ".join(["", *(override.removeprefix("--config.") for override in overrides)])
        print(f"| `{config}`{settings} | {topology} | {cells[0]} | {cells[1]} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
