"""Videos: decoding by number, sampling, views, preparation from the official layouts. On a miniature."""

import sys
from functools import partial
from pathlib import Path

import cv2
import miniature_video as mini
import numpy as np
import pytest
from sklearn.datasets import load_digits

from lookupjax.data import shards, videos
from lookupjax.data.builders.moving_digits import STEPS
from lookupjax.data.clips import (
    EvenClips,
    EvenSegments,
    RandomClip,
    RandomSegments,
    ShuffleFrames,
    SpatialCrops,
    SplitFrames,
)
from lookupjax.data.config import default_data_config
from lookupjax.data.loader import Decoded, EvalBatches, train_iterator
from lookupjax.data.prepare import main
from lookupjax.data.sources import dataset_info, open_source
from lookupjax.data.transforms import apply_example, build_transforms, decode_image
from lookupjax.data.video import Video, check, shrink
from lookupjax.errors import Unreadable, UserError

SMALL = ("--partial", "--shard_examples=4", "--threads=2")


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("miniature_video")
    mini.make(root)
    return root


@pytest.fixture(scope="session")
def prepared(source, tmp_path_factory) -> Path:
    """A data directory with both datasets."""
    directory = tmp_path_factory.mktemp("prepared_video")
    for name, folder in (("kinetics400", "kinetics400"), ("something_something_v2", "ssv2")):
        main([name, f"--source={source / folder}", f"--data_dir={directory}", *SMALL])
    return directory


def contents(directory: Path, name: str, split: str) -> dict[str, tuple[bytes, int]]:
    records = open_source(name, split, str(directory))
    examples = [records[i] for i in range(len(records))]
    return {e["file_name"].decode(): (e["video"], e["label"]) for e in examples}


def numbers(clip: np.ndarray) -> list[int]:
    return [mini.number_of(frame) for frame in clip]


def test_original_bytes_and_what_is_missing_or_broken(source, prepared):
    info = dataset_info("kinetics400", str(prepared))
    assert info.class_names == mini.KINETICS
    assert info.splits == {"train": 3 * mini.TRAIN - 2, "validation": 3 * mini.VALIDATION}
    train = contents(prepared, "kinetics400", "train")
    for name, (encoded, label) in train.items():
        assert encoded == (source / "kinetics400" / name).read_bytes()
        assert name.split("/")[1].replace("_", " ") == mini.KINETICS[label]
    root = prepared / "kinetics400/1.0.0"
    broken = (root / "unreadable.txt").read_text().splitlines()
    assert [line.partition(": ")[0].rsplit("_", 3)[1] for line in broken] == ["00000001", "00000002"]
    assert "breaks off after" in broken[0] and "not a video that can be opened" in broken[1]
    problems = (root / "problems.txt").read_text()
    assert problems == "train/gone_video1_000003_000013: listed, but not there\n"

    info = dataset_info("something_something_v2", str(prepared))
    assert info.class_names == ("Moving something left", "Moving something right")
    assert info.splits == {"train": 2 * mini.TRAIN - 2, "validation": 2 * mini.VALIDATION}
    broken = (prepared / "something_something_v2/1.0.0/unreadable.txt").read_text().splitlines()
    assert "1001.webm: cut off" in broken[0] and "1002.webm: not a video" in broken[1]


def test_a_preparation_goes_on_where_it_stopped(source, prepared, tmp_path, monkeypatch, capsys):
    arguments = ["kinetics400", f"--source={source / 'kinetics400'}", f"--data_dir={tmp_path}", *SMALL[:2]]
    whole, calls = videos.video.check, []

    def stops(encoded: bytes) -> None:
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        whole(encoded)

    with monkeypatch.context() as patch:
        patch.setattr(videos.video, "check", stops)
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--threads=1"])
    main([*arguments, "--threads=1"])
    assert "going on: " in capsys.readouterr().out
    for split in ("train", "validation"):
        assert contents(tmp_path, "kinetics400", split) == contents(prepared, "kinetics400", split)


def test_encoding_anew_with_a_shorter_side(source, tmp_path):
    arguments = [f"--source={source / 'kinetics400'}", f"--data_dir={tmp_path}", *SMALL, "--short_side=36"]
    main(["kinetics400", *arguments])
    encoded, _ = next(iter(contents(tmp_path, "kinetics400", "validation").values()))
    with Video(encoded) as video:
        frames = video.read(range(mini.FRAMES))
    assert frames[0].shape == (36, 48, 3)
    assert numbers([frames[i] for i in range(mini.FRAMES)]) == list(range(mini.FRAMES))
    small = mini.clip_bytes(1, 0, "mp4")
    assert shrink(small, 200) == small
    assert shards.fingerprint({}, 4, "short side 36") != shards.fingerprint({}, 4)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_frames_by_number_decode_only_what_is_needed(kind):
    encoded = mini.clip_bytes(1, 0, kind)
    with Video(encoded) as video:
        assert len(video) == mini.FRAMES
        frames = video.read([3, 38, 17, 38])
        assert {n: mini.number_of(frame) for n, frame in frames.items()} == {3: 3, 17: 17, 38: 38}
        # key frames lie twelve apart: of 40 frames at most those of the groups that were asked for
        assert video.decoded < 30
    with Video(encoded) as video:
        assert mini.number_of(video.read([37])[37]) == 37 and video.decoded <= 6


def test_broken_videos_say_what_is_wrong():
    encoded = mini.clip_bytes(1, 0, "mp4")
    for content, complaint in (
        (b"", "not a video that can be opened"),
        (b"no video" * 100, "not a video that can be opened"),
        (encoded[: len(encoded) // 2], "cut off|breaks off"),
    ):
        with pytest.raises(Unreadable, match=complaint):
            check(content)
    check(encoded)
    with Video(encoded[: len(encoded) // 2]) as video:  # what is there can still be used
        assert numbers(video.read([0, 3]).values()) == [0, 3]


def picked(transform, n: int, seed: int = 0) -> np.ndarray:
    """The numbers of the frames that a transform picks of n."""
    frames = np.arange(n)[:, None, None, None] * np.ones((1, 1, 1, 1), int)
    draws = (np.random.default_rng(seed),) if getattr(transform, "random", False) else ()
    return transform({"image": frames}, *draws)["image"][..., 0, 0, 0]


def test_temporal_sampling():
    clips = np.array([picked(RandomClip(8, 2), 40, seed) for seed in range(200)])
    assert (np.diff(clips) == 2).all() and {clips[:, 0].min(), clips[:, 0].max()} == {0, 25}
    strides = {int(np.diff(picked(RandomClip(4, (1, 3)), 40, seed))[0]) for seed in range(50)}
    assert strides == {1, 2, 3}
    assert picked(EvenClips(4, 2), 20).tolist() == [6, 8, 10, 12]
    assert picked(EvenClips(4, 2, clips=3), 21).tolist() == [[0, 2, 4, 6], [7, 9, 11, 13], [14, 16, 18, 20]]
    assert picked(EvenClips(4, 2), 5).tolist() == [0, 2, 4, 1]  # shorter than asked: it begins again
    segments = np.array([picked(RandomSegments(5), 23, seed) for seed in range(300)])
    part = np.arange(5)
    assert (segments >= np.floor(4.6 * part)).all() and (segments < 4.6 * (part + 1)).all()
    assert len(set(segments[:, 2])) == 5
    assert picked(EvenSegments(4), 16).tolist() == [2, 6, 10, 14]
    assert picked(EvenSegments(4, clips=2), 16).tolist() == [[1, 5, 9, 13], [3, 7, 11, 15]]
    assert picked(EvenSegments(8), 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    with pytest.raises(UserError, match="even_clips: stride=0 must be at least 1"):
        EvenClips(4, 0)


def test_a_clip_is_augmented_as_one():
    """Equal frames stay equal: every frame sees the same random draws; and draws do not end with a clip."""
    frame = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    specs = (
        dict(name="random_scaled_crop", size=(24, 24)),
        dict(name="random_flip"),
        dict(name="rand_augment", n=2, m=15.0, operations="tf"),
        dict(name="colour_jitter", hue=0.2, probability=0.8),
        dict(name="random_grey", probability=0.1),
        dict(name="normalize"),
    )
    transforms, results = build_transforms(specs), []
    for seed in range(12):
        clip = {"image": np.stack([frame] * 4)}
        random = np.random.default_rng(seed)
        image = apply_example(transforms, clip, random)["image"]
        alone = apply_example(transforms, {"image": frame}, np.random.default_rng(seed))["image"]
        assert image.shape == (4, 24, 24, 3) and image.dtype == np.float32
        np.testing.assert_array_equal(image, np.stack([alone] * 4))
        results.append(alone.tobytes())
    assert len(set(results)) == 12


def test_views_in_space():
    ramp = np.arange(96, dtype=np.uint8)[None, None, :, None] * np.ones((2, 48, 1, 3), np.uint8)
    views = SpatialCrops((48, 48), crop_pct=1.0)(ramp)
    assert views.shape == (3, 2, 48, 48, 3)
    assert [view[0, 0, 0, 0] for view in views] == [0, 24, 48]
    upright = SpatialCrops((48, 48), crop_pct=1.0)(ramp.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(upright, views.swapaxes(2, 3))
    assert SpatialCrops((24, 32), crops=1)(ramp).shape == (2, 24, 32, 3)
    clips = SpatialCrops((48, 48), crop_pct=1.0)(np.stack([ramp, ramp + 100]))
    assert [view[0, 0, 0, 0] for view in clips] == [0, 24, 48, 100, 124, 148]
    with pytest.raises(UserError, match="no room for"):
        SpatialCrops((48, 48), crop_pct=1.5)(ramp)


def video_config(directory: Path, **changes):
    config = default_data_config()
    config.update(dict(name="kinetics400", dir=str(directory), eval_split="validation", threads=1))
    config.train_transforms = (
        dict(name="random_clip", frames=8, stride=2),
        dict(name="random_scaled_crop", size=(32, 32)),
        dict(name="rand_augment", n=1, m=10.0, operations="tf"),
        dict(name="normalize"),
    )
    config.eval_transforms = (
        dict(name="even_clips", frames=8, stride=2, clips=2),
        dict(name="spatial_crops", size=(32, 32)),
    )
    config.update(changes)
    return config


def test_batches_are_the_same_whatever_reads_them(prepared):
    batches = [next(train_iterator(video_config(prepared), 8, 0))]
    assert batches[0]["image"].shape == (8, 8, 32, 32, 3) and batches[0]["image"].dtype == np.uint8
    batches.append(next(train_iterator(video_config(prepared, threads=4), 8, 0)))
    halves = [
        next(train_iterator(video_config(prepared), 8, 0, process_index=i, process_count=2)) for i in (0, 1)
    ]
    batches.append({k: np.concatenate([half[k] for half in halves]) for k in batches[0]})
    for other in batches[1:]:
        for key in batches[0]:
            np.testing.assert_array_equal(other[key], batches[0][key])


def test_every_video_is_evaluated_once(prepared):
    batches = list(EvalBatches(video_config(prepared), "validation", 4))
    assert batches[0]["image"].shape == (4, 6, 8, 32, 32, 3)
    assert sum(batch["mask"].sum() for batch in batches) == 15


class Damaged:
    """A source in which every third video breaks off right after its header."""

    def __init__(self, source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        return example | ({"video": example["video"][:2000]} if index % 3 == 0 else {})


def test_videos_that_break_later_are_named_counted_and_skipped(prepared, caplog):
    config = video_config(prepared, max_corrupt=0.5)
    batches = EvalBatches(config, "validation", 5)
    batches.source = Decoded(Damaged(open_source("kinetics400", "validation", str(prepared))), config)
    assert sum(batch["mask"].sum() for batch in batches) == 10
    assert len(batches.source.corrupt) == 5
    assert all("val/" in line and ".mp4 is corrupt and left out" in line for line in caplog.messages)
    config.max_corrupt = 0.2
    batches.source = Decoded(batches.source.source, config)
    with pytest.raises(UserError, match=r"of 15 records are corrupt"):
        list(batches)


def test_what_is_wrong_is_one_sentence(source, tmp_path, monkeypatch):
    collect = partial(videos.collect, source=str(source / "kinetics400"))
    with pytest.raises(UserError, match=r"3 classes, 400 in the official set; .* --partial"):
        collect("kinetics400")
    with pytest.raises(UserError, match=r"no labels\.json with train\.json"):
        collect("something_something_v2", partial=True)
    with pytest.raises(UserError, match="no annotation file of Kinetics"):
        videos.collect("kinetics400", str(tmp_path), partial=True)
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nabseiling,x,1,11\n")
    with pytest.raises(UserError, match=r"1 of 1 listed clips are not below .*x_000001_000011"):
        videos.collect("kinetics400", str(tmp_path), partial=True)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"videos are read with PyAV: pip install -e '\.\[video\]'"):
        collect("kinetics400", partial=True)


@pytest.fixture(scope="session")
def moving(tmp_path_factory):
    return open_source("moving_digits", "test", str(tmp_path_factory.mktemp("moving")))


def test_no_frame_of_a_moving_digit_tells_its_class(moving):
    """The four clips of a digit hold the same pictures; their order is the class."""
    assert len(moving) == 1440
    groups: dict[tuple, dict[int, np.ndarray]] = {}
    for index in range(0, 1440):
        example = moving[index]
        clip = SplitFrames(8)({"image": decode_image(example["image"], 1)})["image"]
        groups.setdefault(tuple(sorted(f.tobytes() for f in clip)), {})[example["label"]] = clip
    assert all(sorted(clips) == [0, 1, 2, 3] for clips in groups.values()) and len(groups) >= 355
    known = {np.round(d * 255 / 16).astype(np.uint8).tobytes() for d in load_digits().images}
    clips = next(iter(groups.values()))
    top, left = (np.flatnonzero(clips[0][0].any(axis)).min() for axis in (1, 0))
    inside = [(y, x) for y in range(top - 7, top + 1) for x in range(left - 7, left + 1)]
    windows = {clips[0][0][y : y + 8, x : x + 8].tobytes() for y, x in inside if min(y, x) >= 0}
    assert windows & known
    corners = [frame.tobytes() for frame in clips[0]]
    for label, step in enumerate(STEPS.values()):
        order = [corners.index(frame.tobytes()) for frame in clips[label]]
        assert order == [step * i % 8 for i in range(8)]
    shuffled = ShuffleFrames()(clips[1])
    assert sorted(f.tobytes() for f in shuffled) == sorted(corners)
    assert not np.array_equal(shuffled, clips[1])
    assert cv2.countNonZero(clips[0][0][..., 0]) > 10
