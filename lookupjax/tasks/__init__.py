"""What is learned, one file per task. A file's `TASK` is what `config.task.name` builds."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from flax import nnx

from lookupjax.errors import UserError, nearest
from lookupjax.tasks.base import Task


def list_tasks() -> list[str]:
    """Names that `config.task.name` accepts."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    return [n for n in names if hasattr(importlib.import_module(f"{__name__}.{n}"), "TASK")]


def create_task(options: Mapping[str, Any], model: nnx.Module) -> Task:
    """The task {"name": ..., ...options of its dataclass} for a (possibly abstract) model.

    Raises:
      UserError: for an unknown task or option, with the nearest known one.
    """
    options = dict(options)
    name = options.pop("name", "classification")
    names = list_tasks()
    if name not in names:
        raise UserError(f"there is no task {name!r}{nearest(name, names)}; there are {names}")
    task = importlib.import_module(f"{__name__}.{name}").TASK
    known = [f.name for f in dataclasses.fields(task)]
    for key in options:
        if key not in known:
            raise UserError(f"the task {name} has no option {key!r}{nearest(key, known)}; it has {known}")
    return task.for_model(model, **options)
