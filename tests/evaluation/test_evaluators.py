"""Evaluators as plug-ins: what they count, what they share, what they say when something is wrong."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax.config import default_config
from lookupjax.data.sources import DatasetInfo
from lookupjax.errors import UserError
from lookupjax.evaluation import context as context_module
from lookupjax.evaluation import (
    create_evaluators,
    describe,
    flatten_results,
    list_evaluators,
    run_evaluators,
)
from lookupjax.evaluation.classification import judge_for
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh

GRIDS = ((2, 2), (3, 3))
COUNT = 45  # examples of the split: no multiple of the batch


def make_experiment(tmp_path, **changes) -> Experiment:
    config = default_config()
    config.model = ConfigDict(
        dict(name="lookupvit_mu", dim=16, depth=1, pos_grid=(4, 4), compressed=(3, 3), patch=(2, 2))
    )
    config.grids, config.data.channels, config.data.dir = GRIDS, 1, str(tmp_path)
    config.data.eval_split, config.eval_batch_size = f"test[:{COUNT}]", 16
    config.update(changes)
    return Experiment(resolve(config), make_mesh(config.mesh))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment on digits, and parameters whose heads are not zero."""
    experiment = make_experiment(tmp_path_factory.mktemp("data"))
    params = experiment.create_state().params
    for number, head in enumerate(("head_p", "head_l")):
        kernel = params[head]["kernel"]
        params[head]["kernel"] = jax.random.normal(jax.random.key(number), kernel.shape)
    return SimpleNamespace(experiment=experiment, params=params)


def run(trained, specs, **kwargs):
    context = trained.experiment.context(trained.experiment.calls(), kwargs.pop("directory", None))
    return run_evaluators(create_evaluators(specs, context, **kwargs), trained.params, {})


def test_every_example_counts_once_and_programs_are_shared(trained, tmp_path):
    context = trained.experiment.context(trained.experiment.calls(), tmp_path)
    again = {"type": "figures", "split": f"test[:{COUNT}]"}
    evaluators = create_evaluators({"again": again, "all": {"type": "classification"}}, context)
    results = run_evaluators(evaluators, trained.params, {})
    assert set(results) == {"2x2", "3x3"}
    assert context.program._cache_size() == 2 * len(GRIDS)  # two functions, two grids, three evaluators

    batches = list(context.batches())
    image, label = (np.concatenate([b[k] for b in batches])[:COUNT] for k in ("image", "label"))
    model = trained.experiment.make_model()
    model.head_p.kernel[...] = trained.params["head_p"]["kernel"]
    model.head_l.kernel[...] = trained.params["head_l"]["kernel"]
    out = jax.jit(lambda x: model(x, compressed=(2, 2)))(image)
    for head, key in (("", "logits"), ("compressed/", "logits_compressed"), ("lookup/", "logits_lookup")):
        hits = np.asarray(out[key]).argmax(-1) == label
        assert results["2x2"][f"all/{head}accuracy"] == pytest.approx(hits.mean())
    assert results["2x2"]["accuracy"] == results["2x2"]["again/accuracy"] == results["2x2"]["all/accuracy"]
    assert results["2x2"]["nll"] == pytest.approx(results["2x2"]["all/nll"], rel=1e-5)
    assert results["3x3"]["examples"] == results["3x3"]["all/examples"] == COUNT
    assert (tmp_path / "all" / "reliability_2x2.png").stat().st_size > 10_000

    flat = flatten_results(results)
    assert flat["eval/2x2/accuracy"] == results["2x2"]["accuracy"] and "eval/2x2/all/compressed/ece" in flat
    assert not any(key.endswith("examples") for key in flat)
    assert any(line.startswith("2x2 all/lookup: accuracy") for line in describe(results))


@pytest.mark.parametrize(
    "specs, complaint",
    [
        (
            {"v2": {"type": "clasification"}},
            "v2: there is no evaluator type 'clasification' .*'classification'",
        ),
        ({"v2": {"type": "figures", "splitt": "x"}}, "figures has no option 'splitt' .*did you mean 'split'"),
        ({"v2": {"type": "figures", "split": "tset"}}, "evaluator 'v2': digits has no split 'tset'"),
        ({"v2": {"type": "figures", "data": {"nam": 1}}}, "evaluator 'v2': there is no config.data.nam"),
        (
            {"v2": {"type": "figures", "data": {"name": "digit"}}},
            "evaluator 'v2': there is no dataset 'digit'",
        ),
    ],
)
def test_what_is_wrong_is_named(trained, specs, complaint):
    with pytest.raises(UserError, match=complaint):
        run(trained, specs)


def test_only_the_evaluators_asked_for(trained):
    context = trained.experiment.context([()])
    specs = {"a": {"type": "figures"}, "b": {"type": "classification"}}
    assert list(create_evaluators(specs, context)) == ["", "a", "b"]
    assert list(create_evaluators(specs, context, ["a"])) == ["a"]
    assert list(create_evaluators(specs, context, ["figures"])) == [""]
    with pytest.raises(UserError, match="no evaluator 'c'"):
        create_evaluators(specs, context, ["c"])


def test_another_label_space_is_one_sentence(trained, monkeypatch):
    real = context_module.dataset_info
    other = DatasetInfo(2, ("cat", "dog"), {})
    monkeypatch.setattr(context_module, "dataset_info", lambda n, d: other if n == "other" else real(n, d))
    with pytest.raises(UserError, match=r"other has another label space .* such as 'cat'"):
        judge_for(trained.experiment.context([()]), {"name": "other"})


def test_a_bug_in_an_evaluator_names_it(trained):
    context = trained.experiment.context(trained.experiment.calls())
    evaluators = create_evaluators({"odd": {"type": "figures"}}, context, ["odd"])
    evaluators["odd"].batches = None
    with pytest.raises(TypeError) as caught:
        run_evaluators(evaluators, trained.params, {})
    assert caught.value.__notes__ == ["in evaluator 'odd'"]


def test_types_are_the_files(root):
    files = {p.stem for p in (root / "lookupjax" / "evaluation").glob("*.py")}
    assert set(list_evaluators()) < files and "figures" in list_evaluators()
    assert "context" not in list_evaluators()
