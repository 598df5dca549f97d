"""MEDUSA's attention on a small lesion in clutter: accuracy without and with its parts, and where it looks.

    python experiments/medusa_lesions/run.py [--workdir=runs/medusa_lesions] [--seeds=3] [--config.steps=3000]

Trains the four forms (both attentions, local, global, none) and, since attention brings parameters, a wider
trunk without any, each with several seeds, by `configs/zoo/medusa.py:lesions`; what is finished is kept. Then
prints the table that it writes to table.md, and draws gates.png: test scans beside the global attention of
each stage. Further arguments (--config.key=value) go to every training.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gates import gate_picture, on_lesion

from lookupjax import cli
from lookupjax.analysis.counts import count_params
from lookupjax.data.builders.lesions import KINDS, SIDE
from lookupjax.data.loader import EvalBatches
from lookupjax.errors import UserError
from lookupjax.workdir import load_model

FORMS = {  # row of the table: overrides of the config
    "global and local": ("attention='both'",),
    "local": ("attention='local'",),
    "global": ("attention='global'",),
    "none": ("attention='none'",),
    "none, wider": ("attention='none'", "widths=(12,24,45)"),
}
SHOWN = 5  # scans in the picture
BATCH = 250


def accuracy(form: str, seed: int, workdir: Path, overrides: list[str]) -> float:
    """Test accuracy of one run, which is trained unless it is finished."""
    place = directory(form, seed, workdir)
    if not (place / "results.json").exists():
        print(f"{form}, seed {seed}", flush=True)
        own = [f"--config.model.{change}" for change in FORMS[form]]
        command = [sys.executable, "-m", "lookupjax.train", "--config=configs/zoo/medusa.py:lesions"]
        command += [f"--workdir={place}", f"--config.seed={seed}", *own, *overrides]
        if subprocess.run(command).returncode != 0:
            raise UserError(f"{form}, seed {seed} failed; its message is above, start again to go on")
    results = json.loads((place / "results.json").read_text())
    return next(iter(results.values()))["accuracy"]


def directory(form: str, seed: int, workdir: Path) -> Path:
    return workdir / f"{form.replace(', ', '_').replace(' ', '_')}_{seed}"


def gates_of(form: str, seed: int, workdir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, list]:
    """(scans, labels, lesions' boxes, gates (b, h, w) of each stage, predicted labels) of the test split."""
    experiment, model = load_model(directory(form, seed, workdir))
    data = experiment.config.data
    data.batch_keys = ("lesion",)
    batches = list(EvalBatches(data, data.eval_split, BATCH))
    real = np.concatenate([batch["mask"] for batch in batches]) > 0

    def joined(parts: list) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts])[real]

    call = jax.jit(lambda x: (model.attended(x)[1], model(x)["logits"].argmax(-1)))
    gates, guesses = zip(*(call(jnp.asarray(batch["image"])) for batch in batches))
    scans, labels, boxes = (joined([batch[key] for batch in batches]) for key in ("image", "label", "lesion"))
    stages = [joined(list(stage))[..., 0] for stage in zip(*gates)]
    return scans[..., 0], labels, boxes, stages, joined(list(guesses)).tolist()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="medusa_lesions/run.py", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/medusa_lesions"))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each form")
    args, overrides = parser.parse_known_args(argv)
    lines = [
        "| attention | parameters | test accuracy: mean, each seed | largest gate on the lesion, by stage |"
    ]
    lines.append("|---|---:|---|---|")
    accuracies: dict[str, list[float]] = {form: [] for form in FORMS}
    for seed in range(args.seeds):  # all forms of one seed first: an early look compares equals
        for form in FORMS:
            accuracies[form].append(accuracy(form, seed, args.workdir, overrides))
    for form, each in accuracies.items():
        _, model = load_model(directory(form, 0, args.workdir))
        peaks = []
        if model.body is not None:
            shares = []
            for seed in range(args.seeds):
                _, _, boxes, stages, _ = gates_of(form, seed, args.workdir)
                shares.append([on_lesion(gates, boxes, SIDE) for gates in stages])
            peaks = [f"{share:.0%} (chance {chance:.0%})" for share, chance in np.mean(shares, axis=0)]
        figures = f"{np.mean(each):.3f}: {', '.join(f'{a:.3f}' for a in each)}"
        lines.append(f"| {form} | {count_params(model):,} | {figures} | {', '.join(peaks) or '-'} |")
    table = "\n".join(lines)
    (args.workdir / "table.md").write_text(table + "\n")
    print(table)
    form = "global and local"
    best = int(np.argmax(accuracies[form]))
    scans, labels, boxes, stages, guesses = gates_of(form, best, args.workdir)
    names = tuple(KINDS)
    titles = [f"{names[labels[i]]}, taken for {names[guesses[i]]}" for i in range(SHOWN)]
    shown = slice(SHOWN)
    picture = args.workdir / "gates.png"
    gate_picture(scans[shown], boxes[shown], [gates[shown] for gates in stages], titles, picture)
    print(f"{form}, seed {best}, the first {SHOWN} test scans: {picture}")


if __name__ == "__main__":
    cli.run(main)
