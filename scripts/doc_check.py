"""Runs every command of the documents: scripts/doc_check [PATTERN] [--list] [--fresh]

Commands run in a miniature form (scripts/doc_rules.py says how each is changed), page by page and in the
order of the page, in a working copy of their own below build/doc_check. What passed is not run again, until
--fresh. PATTERN, such as "docs/export.md*" or "*lookupjax.predict*", chooses commands by "page:line command".
--list only prints what would be run. The exit status is 1 when a command fails or no rule accounts for it.
What is not run is listed with the reason.
"""

import argparse
import fnmatch
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from doc_commands import NOTEBOOKS, PAGES, ROOT, Command, commands
from doc_rules import QUICKSTART, SHORT, Rule, rule_for, small

BUILD = ROOT / "build" / "doc_check"
# The scripts' own environment is the one that this runs in.
ENVIRONMENT = 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")/.."\n'
IMAGES = """
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
for name, digit in {"IMAGE.png": 3, "OTHER.png": 7, "IMAGE.jpg": 5}.items():
    pixels = (load_digits().images[digit] * 15).astype(np.uint8)
    Image.fromarray(pixels).resize((32, 32)).save(name)
Image.fromarray(load_sample_images().images[0]).resize((64, 48)).save("PHOTO.jpg")
"""
PHOTOS = """
from pathlib import Path
from PIL import Image
from sklearn.datasets import load_sample_images
for root in ("photos", "PHOTOS"):
    for name, photo in zip(("cat", "dog"), load_sample_images().images):
        for split, count in {"train": 32, "val": 4}.items():
            folder = Path(root, split, name)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(photo[8 * i : 8 * i + 64, :80]).save(folder / f"{i}.jpg")
"""
WEIGHTS = """
import json
import numpy as np
from safetensors.numpy import save_file
from lookupjax import create_model
from lookupjax.interop.vit import export
for name in ("B_16.npz", "vit_mu.npz"):
    np.savez(name, **export(create_model("vit_mu")))
fixture = np.load("tests/parity/vit__timm_cls.npz")
timm = {key.removeprefix("param/"): fixture[key] for key in fixture if key.startswith("param/")}
save_file(timm, "vit_small.safetensors")
"""
PICTURES = """
from pathlib import Path
from PIL import Image
from sklearn.datasets import load_sample_images
for folder in ("DIV2K_train_HR", "DIV2K_valid_HR"):
    Path("pictures", folder).mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(load_sample_images().images):
        Image.fromarray(photo[:96, :96]).save(f"pictures/{folder}/{i}.png")
"""
TRAIN = "python -m lookupjax.train --config=configs/"
# name -> (what it makes, Python source or a command); made once and copied to the pages that need it
PREPARATIONS = {
    "images": (("IMAGE.png", "OTHER.png", "IMAGE.jpg", "PHOTO.jpg"), IMAGES),
    "photos": (("photos", "PHOTOS"), PHOTOS),
    "weights": (("B_16.npz", "vit_mu.npz", "vit_small.safetensors"), WEIGHTS),
    "pictures": (("pictures",), PICTURES),
    "quickstart": (("runs/quickstart",), f"{TRAIN}quickstart.py --workdir=runs/quickstart {QUICKSTART}"),
    "lookupvit run": (("runs/i21k",), f"{TRAIN}digits.py:lookupvit_mu --workdir=runs/i21k {SHORT}"),
    "dependency tree": (("runs/tree",), f"{TRAIN}digits.py:dependencyvit_mu --workdir=runs/tree {SHORT}"),
    "images of ImageNet": (("mini",), "python tests/data/miniature.py mini"),
    "captions of COCO": (("coco",), "python tests/data/coco_miniature.py coco"),
    "videos": (("videos",), "python tests/data/miniature_video.py videos"),
}


def page_copy(page: str) -> Path:
    """A working copy for the commands of one page: links to the repository, but the scripts are its own."""
    place = BUILD / "pages" / page.replace("/", "_")
    place.mkdir(parents=True, exist_ok=True)
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    for name in {path.split("/")[0] for path in tracked} - {"scripts", "docs"}:
        if not (place / name).exists():
            (place / name).symlink_to(ROOT / name)
    for name in ("scripts", "docs"):
        shutil.copytree(ROOT / name, place / name, dirs_exist_ok=True)
    (place / "scripts/_environment").write_text(ENVIRONMENT)
    return place


def write_files(place: Path, page: str) -> None:
    """Writes the page's Python blocks that begin with a path, "# lookupjax/...py", to where it says."""
    package = place / "lookupjax"
    for block in commands(page):
        first = block.text.splitlines()[0].removeprefix("# ").strip()
        if block.kind == "python" and block.text.startswith("# lookupjax/") and first.endswith(".py"):
            if package.is_symlink():
                package.unlink()
                shutil.copytree(ROOT / "lookupjax", package, ignore=shutil.ignore_patterns("__pycache__"))
            (place / first).write_text(block.text)


def execute(place: Path, text: str, kind: str, log: Path) -> int:
    """Runs a command or Python source in a page's copy; the exit status."""
    environment = os.environ | {
        "PYTHONPATH": str(place),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "JAX_COMPILATION_CACHE_DIR": str(BUILD / "xla"),
        "LOOKUPJAX_DATA": str(BUILD / "data"),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # tiny programs spend most of their time in the compiler
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false",
    }
    if kind == "python":
        block = BUILD / "block.py"  # not in the copy, where scripts/test would lint it
        block.write_text(text)
        text = shlex.join(["python", str(block)])
    with log.open("w") as output:
        output.write(f"$ {text}\n")
        output.flush()
        return subprocess.run(
            ["bash", "-c", text], cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT
        ).returncode


def prepare(place: Path, name: str) -> None:
    """Puts what a command needs into its page's copy, unless it is there.

    Raises:
      RuntimeError: when it cannot be made, with the end of its output.
    """
    (made, text), log, source = PREPARATIONS[name], BUILD / "preparation.log", page_copy("prepared")
    done = source / f".{name.replace(' ', '_')}"
    if not done.exists():
        if execute(source, text, "python" if "\n" in text else "shell", log):
            raise RuntimeError(f"{name} could not be prepared:\n{log.read_text()[-2000:]}")
        done.touch()
    for path in made:
        if (place / path).exists():
            continue
        if (source / path).is_dir():
            shutil.copytree(source / path, place / path)
        else:
            shutil.copy(source / path, place / path)


def reason_not_run(rule: Rule) -> str:
    """Why a command is not run here, or ""."""
    if rule.module and importlib.util.find_spec(rule.module) is None:
        return f"needs {rule.module}, which is not installed here"
    return rule.cannot


def check(command: Command, rule: Rule, log: Path) -> bool:
    """Runs a command, or the test that does; whether it went well."""
    if rule.test:
        return execute(ROOT, f"python -m pytest -q -p no:cacheprovider {rule.test}", "shell", log) == 0
    place = page_copy(command.page)
    write_files(place, command.page)
    for name in ("images", *rule.needs):
        prepare(place, name)
    return execute(place, small(command.page, command.text, command.kind), command.kind, log) == 0


def first_line(command: Command) -> str:
    return command.text if command.kind == "shell" else f"(Python) {command.text.splitlines()[0]}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/doc_check", description=__doc__.split("\n\n")[0])
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--list", action="store_true", help="print what would be run, and how")
    parser.add_argument("--fresh", action="store_true", help="run what has passed before, too")
    args = parser.parse_args(argv)
    found = [command for page in (*PAGES, *NOTEBOOKS) for command in commands(page)]
    chosen = [c for c in found if fnmatch.fnmatch(f"{c.place} {c.text}", args.pattern)]
    unknown = [c for c in chosen if rule_for(c.page, c.text) is None]
    for command in unknown:
        print(f"{command.place}: no rule of scripts/doc_rules.py accounts for {first_line(command)!r}")
    if args.list:
        for command in chosen:
            rule = rule_for(command.page, command.text)
            how = "" if rule is None else reason_not_run(rule) or (rule.test and f"run by {rule.test}")
            print(f"{command.place}: {first_line(command)}")
            print(
                f"    {how or small(command.page, command.text, command.kind).strip()}".replace(
                    "\n", "\n    "
                )
            )
        return int(bool(unknown))
    if args.fresh:
        shutil.rmtree(BUILD, ignore_errors=True)
    return run(chosen, unknown)


def run(chosen: list[Command], unknown: list[Command]) -> int:
    """Runs the commands, prints a line for each and a table; the exit status."""
    BUILD.mkdir(parents=True, exist_ok=True)
    state = BUILD / "passed.json"
    passed = json.loads(state.read_text()) if state.exists() else {}
    counts: dict[str, Counter] = {}
    failed, left_out, tested = [], [], {}
    for number, command in enumerate(chosen, start=1):
        tally, rule = counts.setdefault(command.page, Counter()), rule_for(command.page, command.text)
        label = f"[{number}/{len(chosen)}] {command.place}"
        if rule is None:
            tally["failed"] += 1
            continue
        if reason := reason_not_run(rule):
            tally["not run"] += 1
            left_out.append(f"{command.place}: {first_line(command)}: {reason}")
            continue
        what = rule.test or small(command.page, command.text, command.kind)
        key = what if rule.once or rule.test else f"{command.page} {what}"
        kind = "by a test" if rule.test else "run"
        if key in passed:
            tally[kind] += 1
            continue
        began, log = time.monotonic(), BUILD / f"{command.place.replace('/', '_').replace(':', '_')}.log"
        good = tested[rule.test] if rule.test in tested else check(command, rule, log)
        if rule.test:
            tested[rule.test] = good
        seconds = time.monotonic() - began
        print(
            f"{label} {'ok' if good else 'FAILED'}, {seconds:.0f} s: {first_line(command)[:100]}", flush=True
        )
        if good:
            passed[key] = round(seconds, 1)
            state.write_text(json.dumps(passed, indent=1))
            tally[kind] += 1
        else:
            tally["failed"] += 1
            failed.append(f"{command.place}: {first_line(command)}: see {log.relative_to(ROOT)}")
    print_table(counts)
    for title, lines in (("not run here:", left_out), ("failed:", failed)):
        if lines:
            print("\n".join([title, *(f"  {line}" for line in lines)]))
    return int(bool(failed or unknown))


def print_table(counts: dict[str, Counter]) -> None:
    columns = ("run", "by a test", "not run", "failed")
    print(f"{'page':30}" + "".join(f"{c:>11}" for c in columns))
    for page, tally in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{page:30}" + "".join(f"{tally[c]:11}" for c in columns))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
