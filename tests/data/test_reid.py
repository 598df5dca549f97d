"""Re-identification data and batches of several images per identity."""

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax.data.config import default_data_config
from lookupjax.data.loader import train_iterator
from lookupjax.data.reid import read_reid
from lookupjax.data.sources import dataset_info, open_source
from lookupjax.errors import UserError

FILES = {
    "bounding_box_train": ["0007_c1s1_1_01.jpg", "0007_c2s1_1_01.jpg", "0002_c3s1_1_01.jpg", "Thumbs.db"],
    "query": ["0003_c1s1_1_00.jpg"],
    "bounding_box_test": ["0003_c4s1_1_00.jpg", "-1_c1s1_1_00.jpg", "0000_c2s1_1_00.jpg"],
}


def market(root) -> str:
    for folder, names in FILES.items():
        (root / folder).mkdir()
        for name in names:
            cv2.imwrite(str(root / folder / "x.png"), np.zeros((8, 4, 3), np.uint8))
            (root / folder / "x.png").rename(root / folder / name)
    return str(root)


def test_identities_and_cameras_come_from_the_names(tmp_path):
    directory = market(tmp_path)
    info = dataset_info("reid", directory)
    assert info.num_classes == 2 and info.splits == {"train": 3, "query": 1, "gallery": 2}
    train = [open_source("reid", "train", directory)[i] for i in range(3)]
    assert [(e["label"], e["camera"]) for e in train] == [(0, 3), (1, 1), (1, 2)]
    gallery = [open_source("reid", "gallery", directory)[i] for i in range(2)]
    assert [(e["label"], e["camera"]) for e in gallery] == [(0, 2), (3, 4)]  # a distractor, and no junk
    (tmp_path / "query" / "someone.jpg").write_bytes(b"")
    read_reid.cache_clear()
    with pytest.raises(UserError, match="the name has no identity and camera"):
        dataset_info("reid", directory)


def test_without_its_folders_it_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="has no folder bounding_box_train or image_train"):
        dataset_info("reid", str(tmp_path))


def batches(count: int, **sharding) -> list[np.ndarray]:
    config = default_data_config()
    config.per_class, config.threads, config.cache = 4, 1, True
    iterator = train_iterator(ConfigDict(config), 16, 3, **sharding)
    return [next(iterator)["label"] for _ in range(count)]


def test_a_batch_has_the_same_number_of_images_of_each_of_its_classes():
    labels = batches(5)
    for batch in labels:
        assert len(set(batch)) == 4 and (batch.reshape(4, 4) == batch[::4, None]).all()
    drawn = np.concatenate([batch[::4] for batch in labels])
    assert len(set(drawn[:8])) == 8 and set(drawn) <= set(range(10))  # two batches are an epoch
    halves = [batches(5, process_index=i, process_count=2) for i in range(2)]
    np.testing.assert_array_equal(labels, np.concatenate(halves, axis=1))


def test_batches_that_cannot_be_are_an_error():
    config = default_data_config()
    config.per_class = 3
    with pytest.raises(UserError, match=r"data.per_class=3 must divide the batch of 16"):
        train_iterator(config, 16, 0)
    config.per_class = 1
    with pytest.raises(
        UserError, match=r"a batch of 16 classes \(data.per_class\) needs as many; there are 10"
    ):
        train_iterator(config, 16, 0)
