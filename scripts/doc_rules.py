"""How each command of the documents is run small: a table to be read and reviewed.

A rule is for the commands in whose "page: text" its pattern is found; the first that matches counts, and a
command that no rule matches is an error. `scripts/doc_check --list` prints what each becomes.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """How a command is run.

    Args:
      match: regular expression, searched in "page: command".
      edits: (regular expression, replacement) pairs; each must find something.
      add: arguments appended (of Python blocks: lines).
      before: lines before a Python block.
      needs: what must exist first, names of `doc_check.PREPARATIONS`.
      module: one that must be installed, otherwise the command is listed as not run.
      test: the test file that runs it, instead of this script.
      cannot: why it is not run at all.
      once: it depends on nothing before it: one run counts for every page.
    """

    match: str
    edits: tuple[tuple[str, str], ...] = ()
    add: str = ""
    before: str = ""
    needs: tuple[str, ...] = ()
    module: str = ""
    test: str = ""
    cannot: str = ""
    once: bool = False


# Everywhere, where it occurs: places, and what a synopsis leaves open.
PLACES = (
    (r"/tmp/", "tmp/"),
    (r"--workdir=W\b", "--workdir=runs/quickstart"),
    (r"IMAGE(\.png)?\.\.\.", "IMAGE.png"),
    (r" ?\[--config\.key=value \.\.\.\]", ""),
    (r"\[--data_dir=DATA\]", "--data_dir=DATA"),
)
SHORT = (
    "--config.steps=2 --config.schedule.warmup_steps=1 --config.log_every=1 --config.eval_every=0 "
    "--config.checkpoint.every=0"
)
ALONE = f"{SHORT} --config.baselines={{}}"
QUICKSTART = f'{ALONE} --config.model.depth=1 "--config.grids=((3,3),)"'
FEW = f"{SHORT} --config.batch_size=8"
CAPTION = (
    f"{ALONE} --config.pretraining.steps=2 --config.pretraining.schedule.warmup_steps=1 "
    "--config.cache_tokens=False"
)
TINY_BENCHMARK = "--size 32 --batch 2 --rounds 1 --seconds 0.01 --peak_side 64"
SMALL_NAMES = ((r"(?<!\w)(lookupvit|vit|tokenlearner|tome)_(?:b|s)16(?:_384)?(?:_r(\d+))?", r"\1_mu"),)
DEPENDENCY = (
    (r"_lite_t(?=,)", "_mu"),
    (r"_lite_t\b", "_mu,depth=1"),
    (r"_t(?=[, ]|$)", "_mu"),
    (r",prune_ratio=[\d.]+", ",depth=3"),
)
DRY = "--dry-run configs/quickstart.py"
COMPILERS = "compiles for accelerators, which needs the extra tpu or cuda and minutes of a core per program"

RULES = (
    # What tests run, and what cannot run here
    Rule(
        r"^docs/troubleshooting.md: python -m lookupjax\.\S+ \S",
        test="tests/docs/test_troubleshooting.py",
    ),
    Rule(r"^docs/configs.md: .*learning_rat=", test="tests/docs/test_troubleshooting.py"),
    Rule(r"--peer=timm", cannot="needs an environment with PyTorch and timm beside this one"),
    Rule(r"lookupjax\.aot .*--topology", cannot=COMPILERS),
    Rule(r"benchmarks/(topologies|compiled_traffic)\.py", cannot=COMPILERS),
    Rule(
        r"benchmarks/lookup_kernels\.py",
        add="--interpret --batch=1 --lookup=3x3 --grid=1x2 --dim=32 --heads=2",
    ),
    # Mentions of a program without the arguments that it needs
    Rule(r": python -m lookupjax\.(NAME|aot|sharding_report)$", cannot="a mention without arguments"),
    Rule(r": scripts/launch_tpu_vm$", add=f"--name=T --zone=Z {DRY} gs://bucket/run"),
    Rule(r": scripts/launch_slurm$", add=f"--nodes=2 --gpus=8 {DRY} runs/slurm"),
    Rule(r": scripts/launch_gke$", add=f"--cluster=C --tpu=v5litepod-256 {DRY} gs://bucket/run"),
    Rule(r": scripts/launch_local$", add=f"{DRY} runs/local"),
    Rule(r": scripts/doc_check$", add="--list", once=True),
    # Installation: resolved, not installed
    Rule(r"python -m venv", edits=((r"\.venv", "tmp/venv"),)),
    Rule(r": pip install", edits=((r"pip install", "python -m uv pip install --dry-run"),), module="uv"),
    # Scripts
    Rule(r"scripts/quickstart", add=QUICKSTART, once=True),
    Rule(r"scripts/test", add="tests/test_imports.py", once=True),
    Rule(r"scripts/docs", add="-q", once=True),
    Rule(r"scripts/smoke", edits=((r"configs/zoo/\*", "configs/zoo/dcal*"),)),
    Rule(
        r"scripts/models_table\.py",
        test="tests/models/test_every_model.py -k 'published_counts and lookupvit'",
    ),
    Rule(r"experiments/sweep\.py", add="--dry-run"),
    Rule(
        r"imagenet_tradeoff/run\.py --scale=digits",
        add=f"--only=lookupvit_3x3 {SHORT} --config.evaluators={{}}",
    ),
    Rule(r"imagenet_tradeoff/"),
    Rule(r"medusa_lesions/run\.py", add=f"--seeds=1 {FEW}"),
    Rule(r"digits_zoo/run\.py", add=f"davit {SHORT}"),
    # Benchmarks
    Rule(r"attention_scaling\.py", add="--mixers softmax --sides 4 8 --dim 8 --rounds 1"),
    Rule(
        r"early_exit\.py",
        edits=(
            (r"$", " --size 64 --images 16 --batch 8"),
            (r"early_exit\.py", "early_exit.py dynperceiver_mu"),
            (r"--rounds 5", "--rounds 1"),
        ),
    ),
    Rule(r"input_pipeline\.py .*--videos", add="--rounds=1", module="av"),
    Rule(r"input_pipeline\.py", add="--rounds=1"),
    Rule(r"loop_overhead\.py", edits=((r" --vit_b", ""), (r"--rounds 3", "--rounds 1"))),
    Rule(r"scan\.py", edits=((r"--rounds=3", "--rounds=1 --depths 2"), (r"dim=192", "dim=24"))),
    Rule(r"lookupjax\.benchmark dependency", edits=DEPENDENCY, add=TINY_BENCHMARK),
    Rule(
        r"lookupjax\.benchmark .*tome_b16_r8 ",
        edits=((r"tome_b16_r8 tome_b16_r13 tome_b16_r16", "tome_mu,r=2 tome_mu,r=3"), *SMALL_NAMES),
        add=TINY_BENCHMARK,
    ),
    Rule(r"lookupjax\.benchmark", edits=SMALL_NAMES, add=TINY_BENCHMARK),
    # Data
    Rule(
        r"miniature(_video)?\.py|coco_miniature\.py",
        edits=((r"\.py DIR|\.py /tmp/mini|\.py tmp/mini", ".py tmp/mini"),),
    ),
    Rule(
        r"data\.prepare imagenet2012 --source=DIR",
        edits=((r"DIR", "mini/tars"),),
        add="--partial",
        needs=("images of ImageNet",),
    ),
    Rule(
        r"data\.prepare coco_captions",
        edits=((r"DIR", "coco/2014"),),
        add="--partial",
        needs=("captions of COCO",),
    ),
    Rule(
        r"data\.prepare kinetics400 --source=DIR",
        edits=((r"DIR", "videos/kinetics400"),),
        add="--partial --data_dir=DATA",
        needs=("videos",),
        module="av",
    ),
    Rule(
        r"data\.prepare something",
        edits=((r"DIR", "videos/ssv2"), (r"\[(--short_side)=256\]", r"\1=32")),
        add="--partial --data_dir=DATA",
        needs=("videos",),
        module="av",
    ),
    Rule(
        r"data\.prepare div2k",
        edits=((r"DIR", "pictures"),),
        add="--partial --data_dir=DATA",
        needs=("pictures",),
    ),
    Rule(r"data\.prepare (imagenet2012|kinetics400) --source=/?tmp/"),
    # Training
    Rule(r"lookupjax\.train .*quickstart_caption\.py", add=CAPTION, module="sentencepiece"),
    Rule(r"lookupjax\.train .*quickstart_video\.py", add=SHORT),
    Rule(r"lookupjax\.train .*quickstart\.py", add=QUICKSTART),
    Rule(
        r"lookupjax\.train .*finetune\.py:vit_b16",
        edits=((r"vit_b16", "vit_mu"),),
        add=SHORT,
        needs=("photos", "weights"),
    ),
    Rule(r"^docs/tutorial.md: .*lookupjax\.train .*finetune\.py", add=SHORT),
    Rule(
        r"lookupjax\.train .*finetune\.py:vit_t16",
        edits=((r"vit_t16", "vit_mu"),),
        add=SHORT,
        needs=("photos",),
    ),
    Rule(
        r"lookupjax\.train .*probe\.py:\w+,vit_b16",
        edits=((r"vit_b16", "vit_mu"),),
        add=f"{FEW} --config.data.name=digits --config.eval_batch_size=8 --config.data.eval_split=test[:16]",
        needs=("weights",),
    ),
    Rule(
        r"lookupjax\.train .*probe\.py:\w+,lookupvit_b16",
        edits=((r"lookupvit_b16", "lookupvit_mu"),),
        add=f"{FEW} --config.data.name=digits --config.eval_batch_size=8 --config.data.eval_split=test[:16]",
        needs=("lookupvit run",),
    ),
    Rule(r"lookupjax\.train .*(digits\.py:\w+_mu|super_resolution\.py:toy)", add=SHORT),
    Rule(r"lookupjax\.train .*:smoke", add=SHORT),
    # What reads a run
    Rule(
        r"lookupjax\.evaluate --workdir=W \[",
        edits=(
            (
                r" \[--evaluator=NAME\] \[--split=SPLIT\] \[--compressed=5x5\] \[--json\]",
                " --evaluator=figures --split=test --compressed=5x5 --json",
            ),
        ),
        needs=("quickstart",),
    ),
    Rule(r"lookupjax\.evaluate .*imagenet_v2", edits=((r"imagenet_v2", "digits"),), needs=("quickstart",)),
    Rule(r"lookupjax\.evaluate .*runs/caption", module="sentencepiece"),
    Rule(r"lookupjax\.evaluate .*runs/quickstart", needs=("quickstart",)),
    Rule(r"lookupjax\.evaluate"),
    Rule(r"lookupjax\.predict .*runs/caption", module="sentencepiece"),
    Rule(r"lookupjax\.predict .*runs/quickstart", needs=("quickstart",)),
    Rule(r"lookupjax\.predict"),
    Rule(
        r"lookupjax\.attention_views .*--model=vit_b16",
        edits=((r"vit_b16\b", "vit_mu"), (r"\(0\|11\)", "(0|11)")),
        needs=("weights",),
    ),
    Rule(r"lookupjax\.attention_views .*runs/quickstart", needs=("quickstart",)),
    Rule(r"lookupjax\.attention_views"),
    Rule(
        r"lookupjax\.dependency_tree", edits=((r"runs/quickstart", "runs/tree"),), needs=("dependency tree",)
    ),
    Rule(r"lookupjax\.export .*--format=onnx", needs=("quickstart",), module="jax2onnx"),
    Rule(r"lookupjax\.export .*runs/quickstart", needs=("quickstart",)),
    Rule(r"lookupjax\.export"),
    Rule(
        r"lookupjax\.report .*runs/mine runs/other",
        edits=((r"runs/mine runs/other", "runs/quickstart runs/i21k"),),
        needs=("quickstart", "lookupvit run"),
    ),
    Rule(r"lookupjax\.report", needs=("quickstart",)),
    Rule(r"lookupjax\.inspect .*runs/quickstart", needs=("quickstart",)),
    Rule(r"lookupjax\.inspect"),
    # Models and meshes
    Rule(r'lookupjax\.models "lookupvit_\*"', edits=((r"lookupvit_\*", "lookupvit_m*"),)),
    Rule(r"lookupjax\.models .*lookupvit_\[sb\]16", edits=((r"\[sb\]16", "[m]u"), (r" 10x10", ""))),
    Rule(
        r"lookupjax\.models .*video_b16x2",
        edits=((r"video_b16x2", "video_mu"), (r"16x3x3 8x5x5 16x5x5 16x7x7", "2x2x2")),
    ),
    Rule(r"lookupjax\.models$", add="vit_mu"),
    Rule(r"lookupjax\.parity", edits=((r"/\*\.npz", "/vit__*.npz"),), once=True),
    Rule(
        r"lookupjax\.sharding_report",
        edits=(
            (
                r"configs/\.\.\.|config=\.\.\.",
                lambda m: (
                    "configs/quickstart.py" if m[0].startswith("configs") else "config=configs/quickstart.py"
                ),
            ),
        ),
    ),
    Rule(r"lookupjax\.aot .*--platform=cpu", edits=((r"configs/\.\.\.", "configs/quickstart.py"),)),
    # Python blocks
    Rule(r"^docs/lookupvit_tour.ipynb", edits=((r"steps, grids = 600", "steps, grids = 3"),)),
    Rule(r"^README.md: import jax", edits=((r"lookupvit_b16", "lookupvit_mu"), (r"224, 224", "32, 32"))),
    Rule(r"^docs/attention_views.md: import jax"),
    Rule(
        r"^docs/configs.md: from ml_collections",
        add="from lookupjax.config import load_config\n"
        "if __name__ == '__main__':  # the block is the config that is loaded\n"
        "    assert load_config(f'{__file__}:vit_mu', []).model.name == 'vit_mu'",
    ),
    Rule(r"^docs/configs.md: from lookupjax|^docs/install.md: import jax"),
    Rule(
        r"^docs/evaluation.md: config\.evaluators",
        before="from lookupjax.config import default_config\nconfig = default_config()",
        add="from importlib import import_module\n"
        "for spec in config.evaluators.values():\n"
        "    assert import_module('lookupjax.evaluation.' + spec['type']).Evaluator",
    ),
    Rule(r"^docs/export.md: .*import jax, jax\.export", needs=("quickstart",)),
    Rule(r"^docs/export.md: .*onnxruntime", needs=("quickstart",), module="onnxruntime"),
    Rule(
        r"^docs/weights.md: model = ",
        edits=(
            (r"vit_b16", "vit_mu"),
            (r'"vit_s16"', '"vit_mu", patch=(8, 8), depth=2, num_heads=4, pos_grid=(4, 4), num_classes=10'),
        ),
        before="import lookupjax",
        needs=("weights",),
    ),
    Rule(r"^docs/extend.md: # lookupjax/", test="tests/docs/test_extend.py"),
    Rule(r"^docs/tutorial.md: (from pathlib|import json)"),
)


def rule_for(page: str, text: str) -> Rule | None:
    """The first rule for a command, or None."""
    return next((rule for rule in RULES if re.search(rule.match, f"{page}: {text}", re.DOTALL)), None)


def small(page: str, text: str, kind: str) -> str:
    """What is run in place of a documented command.

    Raises:
      LookupError: when no rule matches.
      ValueError: when an edit of its rule finds nothing: the table has to follow the documents.
    """
    rule = rule_for(page, text)
    if rule is None:
        raise LookupError(f"{page}: no rule of scripts/doc_rules.py accounts for {text!r}")
    for pattern, replacement in PLACES:
        text = re.sub(pattern, replacement, text)
    for pattern, replacement in rule.edits:
        text, count = re.subn(pattern, replacement, text)
        if not count:
            raise ValueError(
                f"{page}: the edit {pattern!r} of the rule {rule.match!r} finds nothing in {text!r}"
            )
    if kind == "python":
        return "\n".join(filter(None, [rule.before, text, rule.add])) + "\n"
    return f"{text} {rule.add}".strip()
