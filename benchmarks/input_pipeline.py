"""How fast the input pipeline is on one core, against decoding and resizing alone.

    python benchmarks/input_pipeline.py [--rounds=9] [--accelerator=2500 ...]

Images: fabricated JPEGs with the size, bytes and detail of ImageNet's average (500x375, about 110 kB), the
few of them standing for 1,281,167. Bare: `cv2.imdecode` and `cv2.resize` to 224x224, bytes in memory.
Pipelines: everything a training batch passes through (ArrayRecord, Grain, transforms, stacking), with one
reading thread. All take turns, round by round; rates are images per second of CPU time, so other work on the
machine disturbs them little. --accelerator gives training rates in images per second: how many cores feed it.

    python benchmarks/input_pipeline.py --videos [--rounds=3] [--accelerator=640 ...]

Videos: films of Kinetics' usual size and length; clips per second, against decoding the frames that a clip of
Kinetics' recipe spans, and all of them.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from lookupjax.data import prepare
from lookupjax.data.config import default_data_config
from lookupjax.data.loader import train_iterator
from lookupjax.data.transforms import decode_image
from lookupjax.data.video import Video, encode_video
from lookupjax.recipes import AUGREG, DEIT, IMAGENET_1K, imagenet
from lookupjax.video_recipes import KINETICS, SOMETHING, video

IMAGES, BATCH, CLIPS = 384, 32, 8


def photograph(seed: int) -> bytes:
    """A 500x375 JPEG with detail on every scale, as photographs have (amplitude falls with frequency)."""
    rng, image = np.random.default_rng(seed), np.full((375, 500, 3), 128.0)
    for scale in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(375 // scale + 2, 500 // scale + 2, 3))
        image += 10.0 * scale**0.3 * cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 94])[1].tobytes()


def bare(encoded: list[bytes]) -> None:
    for data in encoded:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        cv2.resize(image, (224, 224), interpolation=cv2.INTER_LINEAR)


def pipelines(directory: str) -> dict:
    """Train iterators by name."""
    plain = dict(rand_augment=None, erasing=0.0)
    recipes = {
        "crop, flip, normalize": imagenet("vit_b16", **plain),
        "AugReg: and RandAugment(2, 15)": imagenet("vit_b16", **AUGREG),
        "DeiT: and RandAugment, erasing": imagenet("vit_b16", **DEIT | dict(repeats=1)),
    }
    made = {}
    for name, recipe in recipes.items():
        config = default_data_config()
        config.update(dict(name="imagenet21k", dir=directory, threads=1, prefetch=BATCH))
        config.train_transforms = recipe.data.train_transforms
        made[name] = train_iterator(config, BATCH, 0)
        made[name].batches.source.source = Long(made[name].batches.source.source)
    return made


def wait_until_idle() -> None:
    """Returns once the reading threads have filled their buffers."""
    before = -1.0
    while time.process_time() - before > 2e-3:
        before = time.process_time()
        time.sleep(0.05)


def cpu_rate(work, images: int) -> float:
    """Buffers are full before and after, so what is read is what is used."""
    start = time.process_time()
    work()
    wait_until_idle()
    return images / (time.process_time() - start)


class Long:
    """A few examples as many."""

    def __init__(self, source):
        self.source = source

    def __len__(self) -> int:
        return IMAGENET_1K

    def __getitem__(self, index: int) -> dict:
        return self.source[index % len(self.source)]


def image_works(directory: str) -> tuple[int, dict]:
    """(images that each piece of work reads, {name: work})."""
    encoded = [photograph(i) for i in range(IMAGES)]
    print(f"{IMAGES} JPEGs of 500x375, {np.mean([len(x) for x in encoded]) / 1e3:.0f} kB on average")
    for i, data in enumerate(encoded):
        path = Path(directory) / f"source/n{i % 2:08d}/{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    prepare.main(["imagenet21k", f"--source={directory}/source", f"--data_dir={directory}"])
    works = {"bare decode + resize": lambda: bare(encoded)}
    for name, iterator in pipelines(directory).items():
        next(iterator)
        wait_until_idle()
        works[name] = lambda iterator=iterator: [next(iterator) for _ in range(IMAGES // BATCH)]
    return IMAGES, works


def film(seed: int, frames: int = 250) -> bytes:
    """Ten seconds of a camera that moves over a photograph: H.264, 340x256, a key frame each second."""
    image = decode_image(photograph(seed), 3)
    path = np.random.default_rng(seed).normal(size=(frames, 2)).cumsum(0)
    steps = np.stack([np.interp(x, (x.min(), x.max()), (0, free)) for x, free in zip(path.T, (119, 160))], 1)
    corners = steps.round().astype(int)
    return encode_video((image[y : y + 256, x : x + 340] for y, x in corners), 25, crf=23, key_every=25)


def video_works(directory: str) -> tuple[int, dict]:
    """(clips that each piece of work reads, {name: work}); everything in this thread."""
    encoded = [film(i) for i in range(CLIPS)]
    print(
        f"{CLIPS} videos of 340x256, 250 frames, {np.mean([len(x) for x in encoded]) / 1e3:.0f} kB on average"
    )
    root = Path(directory) / "source"
    (root / "clips").mkdir(parents=True)
    for i, data in enumerate(encoded):
        (root / f"clips/{i:011d}.mp4").write_bytes(data)
    lines = [f"{'ab'[i % 2]},{i:011d}" for i in range(CLIPS)]
    (root / "train.csv").write_text("\n".join(["label,youtube_id", *lines]))
    prepare.main(["kinetics400", f"--source={root}", f"--data_dir={directory}", "--partial"])

    def decode(numbers: range) -> None:
        for data in encoded:
            with Video(data) as video:
                video.read(numbers)

    works = {
        "bare decode, 63 frames in a row": lambda: decode(range(75, 138)),
        "bare decode, all 250": lambda: decode(range(250)),
    }
    for name, recipe in {
        "Kinetics: 32 at stride 2, crop, colour": KINETICS,
        "SSv2: 32 segments, crop, RandAugment": SOMETHING,
    }.items():
        config = default_data_config()
        config.update(dict(name="kinetics400", dir=directory))
        config.train_transforms = video("vivit_b16x2", **recipe).data.train_transforms
        batches = train_iterator(config, CLIPS, 0).batches
        works[name] = lambda batches=batches: batches(0)
    return CLIPS, works


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", action="store_true", help="clips of videos instead of images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--accelerator", type=float, nargs="*", default=[1000.0, 2500.0], metavar="RATE")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as directory:
        count, works = (video_works if args.videos else image_works)(directory)
        rates = {name: [] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                rates[name].append(cpu_rate(work, count))
    what = "clips" if args.videos else "images"
    reference = np.array(next(iter(rates.values())))
    for name, values in rates.items():
        ratios = np.array(values) / reference
        rate = float(np.median(values))
        cores = ", ".join(f"{a:,.0f} {what}/s: {a / rate:.1f} cores" for a in args.accelerator)
        print(
            f"{name:38s} {rate:7.1f} {what}/s per core  "
            f"{np.median(ratios):.2f} of bare (rounds {ratios.min():.2f} to {ratios.max():.2f})  {cores}"
        )


if __name__ == "__main__":
    main()
