"""Makes a miniature of Kinetics-400 and Something-Something v2 in the official layouts, of encoded clips.

    python tests/data/miniature_video.py DIR

DIR/kinetics400 holds annotations/{train,val}.csv and mp4 (H.264) in folders by class, DIR/ssv2 labels and
webm (VP9). One clip of each is truncated, one empty, one shorter than a training clip; one that Kinetics'
list names is not there. Few classes and clips, so every count needs `--partial`.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from sklearn.datasets import load_sample_image

KINETICS = ("abseiling", "playing harp", "zumba")
SOMETHING = {"Moving [something] left": "0", "Moving [something] right": "1"}
FRAMES, HEIGHT, WIDTH = 40, 72, 96
SHORT = 5  # frames of the clip that is shorter than asked
TRAIN, VALIDATION = 8, 5  # clips per class


def frames(label: int, number: int, count: int = FRAMES) -> np.ndarray:
    """A window that slides over a photograph, in a direction and with a tint that tell the class.

    The first pixel rows encode the number of the frame in black and white blocks.
    """
    photograph = load_sample_image("china.jpg")[::2, ::2]
    random = np.random.default_rng([label, number])
    top, left = int(random.integers(0, 100)), int(random.integers(80, 140))
    clip = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(count):
        shift = left + (i if label % 2 else -i)
        clip[i] = photograph[top : top + HEIGHT, shift : shift + WIDTH]
        clip[i, ..., label % 3] = clip[i, ..., label % 3] // 2 + 127
        for bit in range(6):
            clip[i, :16, 16 * bit : 16 * bit + 16] = 255 * (i >> bit & 1)
    return clip


def number_of(frame: np.ndarray) -> int:
    """Which frame of a clip this is, read from its pixels (of any size)."""
    height, width = frame.shape[:2]
    row, step = height * 8 // HEIGHT, width / 6
    return sum(int(frame[row, int(step * (bit + 0.5))].mean() > 127) << bit for bit in range(6))


def encode(clip: np.ndarray, kind: str, rate: int = 25) -> bytes:
    """H.264 with B frames in "mp4", the header first as on the web, or VP9 in "webm"."""
    codec, options = ("libx264", {"crf": "20"}) if kind == "mp4" else ("libvpx-vp9", {"cpu-used": "8"})
    with tempfile.NamedTemporaryFile(suffix=f".{kind}") as file:
        with av.open(file.name, "w", options={"movflags": "faststart"} if kind == "mp4" else {}) as out:
            stream = out.add_stream(codec, rate=rate)
            stream.height, stream.width = clip.shape[1:3]
            stream.pix_fmt, stream.gop_size, stream.thread_count, stream.options = "yuv420p", 12, 1, options
            for frame in clip:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        return Path(file.name).read_bytes()


def clip_bytes(label: int, number: int, kind: str) -> bytes:
    """Of class 0, clip 1 is cut off, clip 2 is empty and clip 3 is short."""
    if label == 0 and number == 2:
        return b""
    encoded = encode(frames(label, number, SHORT if label == 0 and number == 3 else FRAMES), kind)
    return encoded[: len(encoded) // 2] if label == 0 and number == 1 else encoded


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_kinetics(root: Path) -> None:
    for split, first, count in (("train", 0, TRAIN), ("val", 100, VALIDATION)):
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for label, name in enumerate(KINETICS):
            for number in range(first, first + count):
                identity = f"id-{label}_{number:08d}"
                lines.append(f"{name},{identity},10,20,{split},0")
                file = root / split / name.replace(" ", "_") / f"{identity}_000010_000020.mp4"
                write(file, clip_bytes(label, number, "mp4"))
        if split == "train":
            lines.append(f"{KINETICS[0]},gone_video1,3,13,train,0")
        write(root / "annotations" / f"{split}.csv", ("\n".join(lines) + "\n").encode())


def make_something(root: Path) -> None:
    labels = {name.replace("[", "").replace("]", ""): index for name, index in SOMETHING.items()}
    write(root / "labels/labels.json", json.dumps(labels).encode())
    for split, first, count in (("train", 0, TRAIN), ("validation", 100, VALIDATION)):
        entries = []
        for label, template in enumerate(SOMETHING):
            for number in range(first, first + count):
                identity = str(1000 * (label + 1) + number)
                words = template.replace("[something]", "a cup")
                entry = {"id": identity, "label": words, "template": template, "placeholders": ["a cup"]}
                entries.append(entry)
                write(
                    root / f"20bn-something-something-v2/{identity}.webm", clip_bytes(label, number, "webm")
                )
        write(root / f"labels/{split}.json", json.dumps(entries).encode())
    write(root / "labels/test.json", json.dumps([{"id": "9999"}]).encode())


def make(root: Path) -> None:
    """Writes everything below `root`."""
    make_kinetics(root / "kinetics400")
    make_something(root / "ssv2")


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    make(Path(sys.argv[1]))
    print(f"made {sys.argv[1]}: kinetics400, ssv2")
