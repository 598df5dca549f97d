"""The ImageNet family's evaluators on a fabricated one: six classes, images that say which they are."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from lookupjax.config import default_config
from lookupjax.data import loader
from lookupjax.data.sources import DatasetInfo
from lookupjax.errors import UserError
from lookupjax.evaluation import context as context_module
from lookupjax.evaluation import create_evaluators, run_evaluators
from lookupjax.evaluation.labels import heads, match_classes
from lookupjax.tasks.classification import Classification
from lookupjax.training.sharding import make_mesh

IDS = tuple(f"n0000000{i}" for i in range(6))
SIZE = 8


def example(colour: int, label: int, **more) -> dict:
    """An image whose grey level is 20 + 40 colour."""
    image = np.full((SIZE, SIZE, 3), 20 + 40 * colour, np.uint8)
    return {"image": cv2.imencode(".png", image)[1].tobytes(), "label": label, **more}


DATASETS = {
    "clean": (IDS, {"train": [example(i % 6, i % 6) for i in range(60)]}),
    # labels of all classes, three present; the second of each class looks like class 0, which is absent
    "a": (IDS, {"test": [example(c, label) for label in (1, 2, 4) for c in (label, 0)]}),
    # classes of its own, in another order: 0 is n00000004
    "sub": ((IDS[4], IDS[1]), {"test": [example(4, 0), example(1, 1), example(0, 1)]}),
    "odd": (("n99999999",), {"test": [example(0, 0)]}),
    "real": (
        IDS,
        {
            "validation": [
                example(1, 0, real_label=[0, 1]),
                example(2, 2, real_label=[3]),
                example(3, 3, real_label=[]),
                example(4, 4, real_label=[4, 5, 2]),
            ]
        },
    ),
}


class Reader(nnx.Module):
    """A model that reads the class from the grey level; head "lookup" is always one class off."""

    def __call__(self, images, *, compressed=None):
        level = (images.mean((1, 2, 3)) * 127.5 + 127.5 - 20) / 40
        distance = jnp.square(level[:, None] - jnp.arange(6.0)[None])
        sharp = 0.5 if compressed == (2, 2) else 4.0
        logits = -sharp * distance
        shifted = jnp.roll(logits, 1, axis=-1)
        return {
            "logits": logits,
            "logits_lookup": shifted,
            "features": jax.nn.softmax(logits),
            "features_lookup": jnp.ones((images.shape[0], 2)) * images.mean((1, 2, 3))[:, None],
        }


@pytest.fixture
def context(monkeypatch):
    def info(name, _):
        ids, splits = DATASETS[name]
        sizes = {split: len(examples) for split, examples in splits.items()}
        return DatasetInfo(len(ids), ids, sizes)

    monkeypatch.setattr(context_module, "dataset_info", info)
    monkeypatch.setattr(loader, "open_source", lambda name, split, _: DATASETS[name][1][split])
    data = default_config().data
    data.update(dict(name="clean", eval_split="train"))
    calls = tuple((("compressed", grid),) for grid in ((2, 2), (3, 3)))
    mesh = make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1)))
    return context_module.Context(nnx.graphdef(Reader()), Classification(), mesh, data, 8, calls)


def run(context, **spec):
    evaluators = create_evaluators({"e": spec}, context, ["e"])
    return run_evaluators(evaluators, {}, {})


def test_masks_of_the_classes_present(context):
    """Class 0 is not there: its images go to the nearest class that is, 1, which is right once in three."""
    results = run(context, type="classification", data={"name": "a"}, split="test", among="present")["3x3"]
    assert results["e/accuracy"] == pytest.approx(4 / 6) and results["e/examples"] == 6
    assert results["e/top5"] == 1.0  # among three
    everything = run(context, type="classification", data={"name": "a"}, split="test")["3x3"]
    assert everything["e/accuracy"] == pytest.approx(3 / 6)
    assert everything["e/lookup/accuracy"] == pytest.approx(1 / 6)  # class 0 taken for class 1
    soft = run(context, type="classification", data={"name": "a"}, split="test", among="present")["2x2"]
    assert soft["e/nll"] != results["e/nll"]


def test_classes_are_matched_by_name(context):
    results = run(context, type="classification", data={"name": "sub"}, split="test")["3x3"]
    assert results["e/accuracy"] == 1.0  # the third image, of class 0, is nearest to class 1
    assert match_classes(IDS, IDS, "x") is None
    assert match_classes(IDS, (IDS[4], IDS[1]), "x") == (4, 1)
    with pytest.raises(UserError, match=r"evaluator 'e': odd has another label space .*'n99999999'"):
        run(context, type="classification", data={"name": "odd"}, split="test")
    with pytest.raises(UserError, match="another label space"):
        match_classes(("0", "1", "2"), ("0", "1"), "numbers are no names")


def test_heads_of_a_model():
    logits = jnp.zeros((1, 2))
    found = heads({"logits": logits, "logits_compressed": logits, "features": logits})
    assert list(found) == ["", "compressed/"]


def test_real_labels(context):
    """Images with labels: 1 in {0, 1} right, 2 in {3} wrong, none left out, 4 in {2, 4, 5} right."""
    results = run(context, type="real", data={"name": "real"})["3x3"]
    assert results["e/accuracy"] == pytest.approx(2 / 3) and results["e/examples"] == 3
    assert results["e/lookup/accuracy"] == pytest.approx(2 / 3)  # 2 no, 3 in {3} yes, 5 in {2, 4, 5} yes
    with pytest.raises(UserError, match="evaluator 'e': examples have no 'real_label'"):
        run(context, type="real", data={"name": "clean"}, split="train")


def test_outliers_by_hand(context, monkeypatch):
    """Outliers between two classes have half the confidence of known images: AUPR 1."""
    halfway = [dict(example(0, 0), image=gray_png(level)) for level in (80, 81, 82)]
    monkeypatch.setitem(DATASETS, "o", ((IDS[1], IDS[2]), {"test": halfway}))
    results = run(context, type="outliers", data={"name": "o"})["3x3"]
    assert results["e/aupr"] == 1.0
    assert results["e/examples"] == 3 + 20  # the known images of two of six classes
    sure = [example(1, 0), example(2, 1)]
    monkeypatch.setitem(DATASETS, "p", ((IDS[1], IDS[2]), {"test": sure}))
    assert run(context, type="outliers", data={"name": "p"})["3x3"]["e/aupr"] == pytest.approx(2 / 22)


def gray_png(level):
    return cv2.imencode(".png", np.full((SIZE, SIZE, 3), level, np.uint8))[1].tobytes()


def test_corruptions(context, monkeypatch):
    """Brightness at severity s adds 25.5 s: more than half of a class's distance of 40 from severity 1 on."""
    clean = {"type": "corruptions", "on_the_fly": True, "stored": False}
    results = run(context, **clean, corruptions=("brightness", "contrast", "spatter"))
    figures = results["3x3"]
    assert figures["e/error/brightness"] > 0.8 and figures["e/error/contrast"] == 0.0  # flat images
    assert "e/mce" not in figures and figures["e/ce/brightness"] > 100 and "e/ce/spatter" not in figures
    errors = [figures[f"e/error/{name}"] for name in ("brightness", "contrast", "spatter")]
    assert figures["e/mean_accuracy"] == pytest.approx(1 - np.mean(errors))
    assert "e/lookup/error/contrast" in figures

    splits = {f"fog_{s}": [example(0, 0), example(1, s % 2)] for s in range(1, 6)}
    monkeypatch.setitem(DATASETS, "imagenet_c", (IDS, splits))
    prepared = run(context, type="corruptions", corruptions=("fog",))["3x3"]
    assert prepared["e/error/fog"] == pytest.approx(np.mean([0, 0.5, 0, 0.5, 0]))
    for spec, complaint in (
        (dict(corruptions=("fogg",)), "no corruption 'fogg'"),
        (dict(severities=(0,)), "severities are 1 to 5"),
        (dict(data={"eval_transforms": ()}, on_the_fly=True), 'go before "normalize"'),
    ):
        with pytest.raises(UserError, match=complaint):
            run(context, type="corruptions", **spec)


def test_a_probe_per_head(context):
    results = run(context, type="fewshot", shots=(1, 5), seeds=2, l2=(0.5, 4.0))["3x3"]
    assert results["e/5shot"] == 1.0 and results["e/compressed/1shot"] == 1.0
    assert results["e/lookup/5shot"] < 1.0  # one line cannot tell six classes apart
    assert results["e/5shot_l2"] in (0.5, 4.0)
