"""python scripts/models_table.py : writes docs/models_table.md, one table for each file of lookupjax/models.

Parameters and multiply-accumulates are counted here; published figures stand beside their sources, and the
fixtures of tests/parity whose adapter builds the model are what its numbers were verified against.
"""

import importlib
import re
from pathlib import Path

from flax import nnx

from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.grids import format_grid
from lookupjax.models import MODULES, create_model, model_options, nominal_options

ROOT = Path(__file__).parent.parent
HEAD = """\
# Table of models

Written by `python scripts/models_table.py`; `tests/models/test_every_model.py` checks every count. GMACs
are 1e9 multiply-accumulates of the matrix products and convolutions of one input. Top-1 is what the source
reports for ImageNet-1K, in percent: nothing here was trained on ImageNet by us.
"""


def fixtures(name: str) -> list[str]:
    """Fixtures whose adapter imports the model file."""
    found = []
    for adapter in sorted((ROOT / "lookupjax/interop").glob("*.py")):
        if re.search(rf"lookupjax\.models\.{name} import", adapter.read_text()):
            found += sorted(p.stem for p in (ROOT / "tests/parity").glob(f"{adapter.stem}__*.npz"))
    return found


def row(name: str, published) -> str:
    model = nnx.eval_shape(lambda: create_model(name, **nominal_options(name)))
    channels = model_options(name).get("channels", 3)
    macs = count_products(trace_model(model, published.size, channels)) / 1e9
    theirs = "" if published.gmacs is None else f"{published.gmacs:g}"
    if published.gmacs_extra:
        theirs += f" + {published.gmacs_extra:g}"
    top1 = "" if published.top1 is None else f"{published.top1:g}"
    cells = (
        f"`{name}`",
        f"{count_params(model):,}",
        format_grid(published.size),
        f"{macs:,.3f}",
        theirs,
        top1,
    )
    return f"| {' | '.join(cells)} | {'; '.join(filter(None, (published.source, published.note)))} |"


def section(name: str) -> list[str]:
    module = importlib.import_module(f"lookupjax.models.{name}")
    lines = ["", f"## {name}", "", module.__doc__.split("\n\n")[0].replace("\n", " "), ""]
    checked = fixtures(name)
    lines.append(
        "Verified against: "
        + (", ".join(f"`{f}`" for f in checked) if checked else "parameter counts only")
        + "."
    )
    if rows := [row(f"{name}_{variant}", p) for variant, p in getattr(module, "PUBLISHED", {}).items()]:
        lines += ["", "| model | parameters | input | GMACs | published | top-1 | source |"]
        lines += ["|---|---:|---|---:|---:|---:|---|", *rows]
    return lines


def main() -> None:
    lines = [HEAD.rstrip()]
    for number, name in enumerate(MODULES, start=1):
        print(f"{number}/{len(MODULES)} {name}", flush=True)
        lines += section(name)
    (ROOT / "docs/models_table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
