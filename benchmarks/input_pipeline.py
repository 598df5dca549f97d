"""How fast the input pipeline is on one core, against decoding and resizing alone.

    python benchmarks/input_pipeline.py [--rounds=9] [--accelerator=2500 ...]

Images: fabricated JPEGs with the size, bytes and detail of ImageNet's average (500x375, about 110 kB), the
few of them standing for 1,281,167. Bare: `cv2.imdecode` and `cv2.resize` to 224x224, bytes in memory.
Pipelines: everything a training batch passes through (ArrayRecord, Grain, transforms, stacking), with one
reading thread. All take turns, round by round; rates are images per second of CPU time, so other work on the
machine disturbs them little. --accelerator gives training rates in images per second: how many cores feed it.
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
from lookupjax.recipes import AUGREG, DEIT, IMAGENET_1K, imagenet

IMAGES, BATCH = 384, 32


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--accelerator", type=float, nargs="*", default=[1000.0, 2500.0], metavar="IMAGES/S")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    encoded = [photograph(i) for i in range(IMAGES)]
    print(f"{IMAGES} JPEGs of 500x375, {np.mean([len(x) for x in encoded]) / 1e3:.0f} kB on average")
    with tempfile.TemporaryDirectory() as directory:
        for i, data in enumerate(encoded):
            path = Path(directory) / f"source/n{i % 2:08d}/{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        prepare.main(["imagenet21k", f"--source={directory}/source", f"--data_dir={directory}"])
        iterators = pipelines(directory)
        works = {"bare decode + resize": lambda: bare(encoded)}
        for name, iterator in iterators.items():
            next(iterator)
            wait_until_idle()
            works[name] = lambda iterator=iterator: [next(iterator) for _ in range(IMAGES // BATCH)]
        rates = {name: [] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                rates[name].append(cpu_rate(work, IMAGES))
    reference = np.array(rates["bare decode + resize"])
    for name, values in rates.items():
        ratios = np.array(values) / reference
        rate = float(np.median(values))
        cores = ", ".join(f"{a:,.0f} images/s: {a / rate:.1f} cores" for a in args.accelerator)
        print(
            f"{name:34s} {rate:7.0f} images/s per core  "
            f"{np.median(ratios):.2f} of bare (rounds {ratios.min():.2f} to {ratios.max():.2f})  {cores}"
        )


if __name__ == "__main__":
    main()
