"""From a resolved config to the objects of a run: model, task, optimizer, mesh, abstract state."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lookupjax.data.mixing import Mixing
from lookupjax.data.sources import dataset_info
from lookupjax.data.transforms import Normalize, build_transforms, split_normalize
from lookupjax.errors import UserError
from lookupjax.evaluation.context import Call, Context
from lookupjax.grids import format_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models import create_model, model_options
from lookupjax.paths import named_leaves
from lookupjax.tasks import create_task
from lookupjax.tasks.base import Task
from lookupjax.training import optimizer, sharding, state

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def resolve(config: ConfigDict, data: bool = True) -> ConfigDict:
    """Fills what follows from the dataset: the number of classes and channels of the model.

    Args:
      data: whether the dataset must be there; without it the model keeps its own number of classes.

    Raises:
      UserError: when no model is named, or a number makes no sense.
    """
    if not config.model.get("name"):
        raise UserError("config.model.name is not set; `python -m lookupjax.models` lists the models")
    for key in ("batch_size", "eval_batch_size", "steps", "accumulate", "log_every"):
        if config[key] < 1:
            raise UserError(f"config.{key}={config[key]} must be at least 1")
    if config.dtype not in DTYPES:
        raise UserError(f"config.dtype={config.dtype!r} is unknown; choose one of {tuple(DTYPES)}")
    known = model_options(config.model.name)
    if config.grids and "compressed" not in known:
        raise UserError(
            f"config.grids is set, but {config.model.name} has no compressed tokens; set it to ()"
        )
    try:
        num_classes = dataset_info(config.data.name, config.data.dir).num_classes
    except UserError:
        if data:
            raise
        num_classes = known.get("num_classes", 0)
    config = config.copy_and_resolve_references()
    with config.model.unlocked():
        if "num_classes" in known and "num_classes" not in config.model and num_classes:
            config.model.num_classes = num_classes
        if "channels" in known and "channels" not in config.model:
            config.model.channels = config.data.channels
    return config


@dataclass(frozen=True)
class Experiment:
    """The parts of a run. Everything is derived from the config; nothing large is created."""

    config: ConfigDict
    mesh: Mesh

    def make_model(self, rngs: nnx.Rngs | None = None) -> nnx.Module:
        options = self.config.model.to_dict()
        name = options.pop("name")
        return create_model(name, rngs=rngs, dtype=DTYPES[self.config.dtype], **options)

    @cached_property
    def abstract_model(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.make_model(Keys(0)))

    @cached_property
    def task(self) -> Task:
        return create_task(self.config.task.to_dict(), self.abstract_model)

    @property
    def normalize(self) -> Normalize | None:
        """The end of the training transforms, which the step does."""
        return split_normalize(build_transforms(self.config.data.train_transforms))[1]

    @property
    def mixing(self) -> Mixing:
        return Mixing(**self.config.mixing.to_dict(), num_classes=self.config.model.get("num_classes", 0))

    @cached_property
    def schedule(self) -> optax.Schedule:
        config = self.config
        return optimizer.make_schedule(config.schedule, config.optimizer.learning_rate, config.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        _, params, _ = state.split_model(self.abstract_model)
        trainable, _ = state.partition(params, self.config.frozen)
        return optimizer.make_optimizer(self.config.optimizer, self.schedule, trainable)

    @property
    def graphdef(self) -> nnx.GraphDef:
        return state.split_model(self.abstract_model)[0]

    @cached_property
    def layout(self) -> sharding.Layout:
        names = named_leaves(state.split_model(self.abstract_model)[1])
        rules = sharding.tensor_rules(self.config.tensor_rules, names, self.mesh)
        return sharding.Layout(self.mesh, rules)

    def init(self) -> state.TrainState:
        """The state at step 0 (pure; see `create_state`)."""
        config = self.config
        return state.init_state(self.make_model, config.seed, self.optimizer, config.frozen, config.ema > 0)

    @cached_property
    def abstract_state(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the state."""
        abstract = jax.eval_shape(self.init)
        names = named_leaves(abstract.params)
        shardings = sharding.tree_shardings(abstract, self.mesh, self.layout.rules, names)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )

    @property
    def state_shardings(self) -> state.TrainState:
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    def create_state(self) -> state.TrainState:
        """The state at step 0, created shard by shard."""
        return jax.jit(self.init, out_shardings=self.state_shardings)()

    def context(self, calls: list[Call], directory: Path | None = None) -> Context:
        """What evaluators are built from."""
        return Context(
            self.graphdef,
            self.task,
            self.mesh,
            self.config.data,
            self.config.eval_batch_size,
            tuple(calls),
            directory,
        )

    def calls(self) -> list[Call]:
        """The variants of the model's call that training draws from, one program each."""
        return [(("compressed", tuple(grid)),) for grid in self.config.grids] or [()]


def check_compressed(experiment: Experiment, grid: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Raises UserError unless the model can be asked for `grid` at inputs of `size` pixels."""
    model, name = experiment.abstract_model, experiment.config.model.name
    if not hasattr(model, "check_grid"):
        raise UserError(f"{name} has no compressed tokens, so no grid can be chosen for it")
    lookup = model.lookup_grid(size)
    if any(m > n for m, n in zip(model.check_grid(grid), lookup)):
        raise UserError(
            f"the compressed grid {format_grid(grid)} is larger than the {format_grid(lookup)} lookup grid "
            f"of {name} at this input size; use at most {format_grid(lookup)}"
        )


def evaluation_params(model_part: dict[str, Any]) -> Any:
    """The parameters to evaluate: the moving average where there is one."""
    params, ema = model_part["params"], model_part["ema"]
    if ema is None:
        return params
    return jax.tree.map(lambda e, p: p if e is None else e, ema, params, is_leaf=lambda x: x is None)
