"""python -m lookupjax.train --config=FILE[:ARG] --workdir=DIR [--config.key=value ...]

Trains, or goes on with what the work directory holds. Afterwards trains the config's baselines in
DIR/baselines/NAME and, if the config asks for it, writes DIR/report.
"""

import argparse
import json
import logging
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lookupjax import cli
from lookupjax.config import apply_changes, load_config, pretraining
from lookupjax.data.tokenizer import make_tokenizer
from lookupjax.errors import UserError
from lookupjax.files import write_whole
from lookupjax.training import distributed
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.loop import Interrupted, train
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import TOKENIZER, disk_errors, has_captions, open_workdir, with_files

EXIT_INTERRUPTED = 143  # 128 + SIGTERM, as a shell reports it


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk between runs (JAX's own variable overrides the place)."""
    default = Path.home() / ".cache" / "lookupjax" / "xla"
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_one(config: ConfigDict, workdir: Path, name: str, override: bool) -> None:
    """Trains one resolved config in one directory, after its pretraining, and stores its final evaluation."""
    with open_workdir(workdir, config, override):
        first = None if config.init.path else pretraining(config)
        if first is not None:
            run_one(resolve(first), workdir / "pretraining", f"{name}, pretraining", override)
        if has_captions(config.data):
            with disk_errors(workdir):
                distributed.first_process_first(lambda: make_tokenizer(config.data, workdir / TOKENIZER))
        config = with_files(config, workdir)
        experiment = Experiment(config, make_mesh(config.mesh))
        with disk_errors(workdir):
            _, results = train(experiment, workdir, name)
            if jax.process_index() == 0:
                write_whole(workdir / "results.json", json.dumps(results, indent=2) + "\n")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lookupjax.train", description=__doc__.split("\n\n")[1])
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--override", action="store_true", help="accept a work directory of another config")
    distributed.add_flags(parser)
    args, rest = parser.parse_known_args(argv)
    strange = [text for text in rest if not text.startswith("--config.")]
    if strange:
        raise UserError(f"unknown argument {strange[0]!r}; config keys are set with --config.key=value")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    distributed.start(args)
    use_compilation_cache()
    with distributed.leave_together():
        return run_all(args, rest)


def run_all(args: argparse.Namespace, overrides: list[str]) -> int:
    """Trains the config and then its baselines; the exit status."""
    config = load_config(args.config, overrides)
    changes = config.baselines.to_dict()
    runs = {"": config} | {name: apply_changes(config, change) for name, change in changes.items()}
    runs = distributed.first_process_first(lambda: {name: resolve(run) for name, run in runs.items()})
    try:
        for name, run in runs.items():
            workdir = args.workdir / "baselines" / name if name else args.workdir
            run_one(run, workdir, name or run.model.name, args.override)
    except Interrupted as interrupt:
        if jax.process_index() == 0:
            print(interrupt)
        return EXIT_INTERRUPTED
    if config.report and jax.process_index() == 0:
        from lookupjax.report import report_workdir, write_page  # brings matplotlib, slow to import

        page, path = write_page([args.workdir]), report_workdir(args.workdir)
        print("\n".join(line for line in path.read_text().splitlines() if line.startswith("|")))
        print(f"report: {path}\npage: {page}")
    return 0


if __name__ == "__main__":
    cli.run(main)
