"""Configs: the schema with its defaults, reading a config file, overriding keys, storing the result.

A config file has `get_config()` or `get_config(argument)`, called with the text after ":" in
`--config=configs/file.py:argument`, and returns a ConfigDict of the keys it wants to differ from
`default_config()`. Unknown keys are errors. The resolved config lies in the work directory as JSON,
and everything after training reads that.
"""

import ast
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lookupjax.data.config import default_data_config
from lookupjax.errors import UserError, nearest

# keys of these are checked by what is created from them
FREE = ("model", "task", "evaluators", "baselines", "pretraining")


def default_config() -> ConfigDict:
    """Every key there is, with its default."""
    return ConfigDict(
        dict(
            seed=0,
            # {"name": a name of create_model, ...any option of that model}; num_classes and channels
            # follow the dataset unless given
            model=dict(name=""),
            dtype="float32",  # of the computation: float32 or bfloat16; parameters are float32
            # compressed grids, one drawn at random per training step; () trains the model's own grid
            grids=(),
            # {"name": a file of lookupjax.tasks, ...any field of its task}
            task=dict(name="classification"),
            data=default_data_config().to_dict(),
            batch_size=128,  # global
            eval_batch_size=256,
            steps=1000,
            optimizer=dict(
                name="adamw",  # "adam" (weight decay in the gradient), "muon", "sgd", "lars"
                learning_rate=1e-3,  # peak
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                momentum=0.9,  # of muon, sgd and lars
                weight_decay=0.0,  # decoupled, times the learning rate (but see adam)
                decay=(("kernel$", 1.0),),  # (pattern, factor): what decays, and how much
                clip_norm=1.0,  # global norm; 0 for none
                layer_decay=1.0,  # learning-rate factor per block towards the input
            ),
            schedule=dict(
                name="cosine",  # "cosine", "linear", "rsqrt", "constant", "knots"
                warmup_steps=0,
                end=0.0,  # final factor of cosine and linear
                timescale=10_000,  # of rsqrt
                cooldown_steps=0,  # of rsqrt
                knots=(),  # of knots: (share of the steps after warm-up, factor), a line between them
            ),
            # MixUp and CutMix: their Beta parameters (0: off), see lookupjax.data.mixing
            mixing=dict(mixup=0.0, cutmix=0.0, switch=0.5, probability=1.0, per="batch"),
            accumulate=1,  # microbatches per step
            ema=0.0,  # decay of the parameters' moving average, which is then what is evaluated; 0: none
            frozen=(),  # patterns of parameters that are not trained
            # of a captioner whose encoder is frozen: compute its tokens of the training images once, without
            # augmentation, keep them in workdir/tokens and train on them
            cache_tokens=False,
            mesh=dict(data=-1, fsdp=1, model=1),  # -1: all remaining devices
            # further (parameter pattern, axis that "model" splits), before those of training/sharding.py
            tensor_rules=(),
            log_every=50,
            eval_every=0,  # 0: only at the end
            # {name: {"type": a file of lookupjax.evaluation, ...its options}}, beside the task's own figures
            evaluators={},
            checkpoint=dict(
                every=500,  # 0: only at the end
                keep=2,  # newest
                best="",  # a figure, such as "eval/3x3/accuracy": its best checkpoints are kept too
                best_mode="max",  # or "min"
                keep_best=1,
            ),
            # what to start from when the work directory has no checkpoint, see lookupjax.training.init
            init=dict(path="", module="", include=(), exclude=(), strict=False),
            # changes to this config: a run in workdir/pretraining that comes first and whose weights are then
            # the init.path of this one (unless that is set)
            pretraining={},
            profile=dict(after=10, steps=0),  # trace so many steps into workdir/profile, after the first ...
            check_nans=False,  # name the operation that made the first NaN; slow
            # {name: changes to this config}: further runs, in workdir/baselines/name
            baselines={},
            report=False,  # write workdir/report after training: tables and plots, next to the baselines
        ),
        convert_dict=True,
    )


def load_config(path_and_argument: str, overrides: list[str]) -> ConfigDict:
    """The resolved config of "path.py[:argument]" with "--config.key=value" overrides.

    Raises:
      UserError: for a missing or broken file, unknown keys, values of the wrong type.
    """
    config = default_config()
    _merge(config, _read_file(path_and_argument), "")
    for override in overrides:
        set_override(config, override)
    return config


def set_override(config: ConfigDict, override: str) -> None:
    """Sets what "--config.key=value" says.

    Raises:
      UserError: for an unknown key, a value of another type, or a text without "=".
    """
    key, equals, text = override.removeprefix("--config.").partition("=")
    if not equals:
        raise UserError(f"{override!r}: write overrides as --config.key=value")
    set_key(config, key, parse_literal(text))


def _read_file(path_and_argument: str) -> ConfigDict:
    path_text, _, argument = path_and_argument.partition(":")
    path = Path(path_text)
    if not path.is_file():
        others = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"there is no config file {path_text!r}{nearest(path_text, others)}")
    spec = importlib.util.spec_from_file_location("lookupjax_user_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path_text} has no get_config(): a config file defines get_config([argument])")
    takes = inspect.signature(module.get_config).parameters
    if argument and not takes:
        raise UserError(f"{path_text} takes no argument, but got {argument!r} after the colon")
    return module.get_config(argument) if argument else module.get_config()


def _merge(config: ConfigDict, changes: Any, prefix: str) -> None:
    for key, value in changes.items():
        if (
            isinstance(value, (dict, ConfigDict))
            and isinstance(config.get(key), ConfigDict)
            and key not in FREE
        ):
            _merge(config[key], value, f"{prefix}{key}.")
        else:
            set_key(config, f"{key}", value, prefix)


def set_key(config: ConfigDict, key: str, value: Any, prefix: str = "") -> None:
    """config.a.b = value for key "a.b".

    Raises:
      UserError: for a key that does not exist, with the nearest one, or a value of another type.
    """
    *parents, last = key.split(".")
    node, place = config, prefix
    free = bool(parents) and parents[0] in FREE
    for part in (*parents, last):
        if not isinstance(node, ConfigDict) or (part not in node and not free):
            known = [f"{place}{k}" for k in node] if isinstance(node, ConfigDict) else []
            if not known:
                raise UserError(f"config.{place.rstrip('.')} is a value, not a group: it has no key {part!r}")
            raise UserError(
                f"there is no config.{place}{part}{nearest(place + part, known)}; there are {known}"
            )
        if part is not last:
            if part not in node:  # below a free key
                with node.unlocked():
                    node[part] = ConfigDict()
            node, place = node[part], f"{place}{part}."
    try:
        if isinstance(node.get(last), tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(node.get(last), float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        with node.unlocked():
            node[last] = value
    except TypeError:
        kind = type(node[last]).__name__
        raise UserError(f"config.{place}{last} needs a value of type {kind}, got {value!r}") from None


def apply_changes(config: ConfigDict, changes: dict) -> ConfigDict:
    """A copy of `config` with `changes` (of the same structure) made; a baseline has no baselines."""
    changed = config.copy_and_resolve_references()
    _merge(changed, changes, "")
    changed.baselines, changed.report = ConfigDict(), False
    return changed


def pretraining(config: ConfigDict) -> ConfigDict | None:
    """The config of the run that comes first, or None: this one, without what concerns a trained encoder (and
    without evaluators), changed as it says."""
    if not config.pretraining:
        return None
    none = dict(evaluators={}, frozen=(), cache_tokens=False, pretraining={}, init=dict(path="", module=""))
    return apply_changes(apply_changes(config, none), config.pretraining.to_dict())


def parse_literal(text: str) -> Any:
    """A Python literal, true/false, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote (lists come back as the tuples they were)."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text)))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line per key that differs: "steps: 100 -> 200"."""
    old_flat, new_flat = flat(from_json(to_json(old))), flat(from_json(to_json(new)))
    absent = "(not set)"
    return [
        f"{key}: {old_flat.get(key, absent)} -> {new_flat.get(key, absent)}"
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key, absent) != new_flat.get(key, absent)
    ]


def flat(node: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"optimizer.learning_rate": 0.001, ...}."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, ConfigDict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values
