"""Re-identification and attribute retrieval on embeddings made by hand."""

import numpy as np
import pytest

from lookupjax.errors import UserError
from lookupjax.evaluation.attributes import Evaluator as Attributes
from lookupjax.evaluation.context import Context
from lookupjax.evaluation.retrieval import Evaluator as Retrieval


class Rows(Context):
    """A context whose splits are columns already."""

    calls = ((),)

    def __init__(self, **splits):
        self.splits = splits

    def batches(self, split, data):
        return split

    def collect(self, columns, params, stats, batches, call):
        return self.splits[batches or "test"]


def angle(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_same_camera_is_ignored_and_queries_without_match_are_left_out():
    query = {"embedding": angle(0, 0, 90), "label": np.array([1, 2, 9]), "camera": np.array([0, 1, 0])}
    gallery = {
        "embedding": angle(1, 2, 3, 4),
        "label": np.array([1, 2, 1, 2]),
        "camera": np.array([0, 0, 1, 1]),
    }
    options = dict(query="query", gallery="gallery", camera="camera", ranks=(1, 2, 10))
    figures = Retrieval(Rows(query=query, gallery=gallery), **options).run({}, {})[""]
    # identity 1: ranks 2, 1(id 1), 2 -> AP 1/2; identity 2 (camera 1): 1, 2, 1 -> AP 1/2
    assert figures == {"map": 0.5, "cmc1": 0.0, "cmc2": 1.0, "cmc10": 1.0, "examples": 3}


def test_without_a_gallery_the_split_searches_itself():
    rows = {"embedding": angle(0, 10, 50, 61), "label": np.array([1, 1, 2, 2])}
    assert Retrieval(Rows(test=rows)).run({}, {})[""]["map"] == 1.0
    rows["label"] = np.array([1, 2, 3, 4])
    with pytest.raises(UserError, match="no query has a match"):
        Retrieval(Rows(test=rows)).run({}, {})


def test_every_attribute_is_found_in_its_own_space_only():
    random = np.random.default_rng(0)
    values = random.integers(0, 3, (60, 2))
    spaces = np.stack([np.eye(3)[values[:, 0]], np.eye(3)[values[:, 1]]], axis=1)
    spaces += 0.01 * random.normal(size=spaces.shape)
    rows = {"embedding": spaces, "attributes": values}
    figures = Attributes(Rows(test=rows), names=("a", "b")).run({}, {})[""]
    assert figures["map"] == figures["map_a"] == figures["map_b"] == 1.0 and figures["map_wrong"] < 0.6
    shared = Attributes(Rows(test=rows | {"embedding": spaces[:, 0]})).run({}, {})[""]
    assert shared["map_0"] == 1.0 and shared["map_1"] < 0.6 and shared["map"] == shared["map_wrong"]
    with pytest.raises(UserError, match="2 attributes, but 3 names"):
        Attributes(Rows(test=rows), names=("a", "b", "c")).run({}, {})
