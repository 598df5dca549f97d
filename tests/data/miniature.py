"""Makes a miniature of ILSVRC2012 in the official layouts: real JPEGs of mixed size, grey, CMYK, broken ones.

    python tests/data/miniature.py DIR

DIR/tars holds the archives as they are distributed, DIR/tree the same images in folders, DIR/others the
test sets. Few classes and images, so every count needs `--partial`.
"""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n01443537", "n02105855")
WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "Shetland sheepdog")
IDS = (449, 3, 7)  # ILSVRC2012 ids are not in the order of the WordNet ids
TRAIN, VALIDATION = 8, 9  # images per class, images


def picture(label: int, number: int) -> np.ndarray:
    """A picture whose colour tells its class, of a size of its own."""
    rng = np.random.default_rng([label, number])
    height, width = (int(x) for x in rng.integers(40, 90, 2))
    image = rng.integers(0, 90, (height, width, 3))
    image[..., label % 3] += 150
    return image.astype(np.uint8)


def jpeg(label: int, number: int) -> bytes:
    image = Image.fromarray(picture(label, number))
    if number == 1:
        image = image.convert("L")
    if number == 2:
        image = image.convert("CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if number == 3 else "JPEG", quality=90)  # ImageNet has a PNG named .JPEG
    return buffer.getvalue()


def train_image(label: int, number: int) -> bytes:
    """Of the first class, image 4 is no image and image 5 is cut off."""
    encoded = jpeg(label, number)
    if label == 0 and number == 4:
        return b"this is not an image"
    return encoded[: len(encoded) // 2] if label == 0 and number == 5 else encoded


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


def devkit() -> dict[str, bytes]:
    truth = "".join(f"{IDS[i % 3]}\n" for i in range(VALIDATION))
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")]
    synsets = np.array(list(zip(IDS, WNIDS, WORDS)), dtype=kinds)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets[:, None]})
    base = "ILSVRC2012_devkit_t12/data/"
    return {
        base + "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        base + "meta.mat": buffer.getvalue(),
        "ILSVRC2012_devkit_t12/readme.txt": b"devkit",
    }


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def make(root: Path) -> None:
    """Writes everything below `root`."""
    train = {
        wnid: {f"{wnid}_{n}.JPEG": train_image(label, n) for n in range(TRAIN)}
        for label, wnid in enumerate(WNIDS)
    }
    validation = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i % 3, 100 + i) for i in range(VALIDATION)}
    real = json.dumps([[], *([i % 3, 7] for i in range(1, VALIDATION))]).encode()
    archives = {
        "ILSVRC2012_img_train.tar": tar({f"{wnid}.tar": tar(images) for wnid, images in train.items()}),
        "ILSVRC2012_img_val.tar": tar(validation),
        "ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), "w:gz"),
        "real.json": real,
    }
    write(root / "tars", archives)
    write(
        root / "tree/train", {f"{w}/{name}": x for w, images in train.items() for name, x in images.items()}
    )
    labelled = {f"{WNIDS[i % 3]}/{name}": x for i, (name, x) in enumerate(validation.items())}
    write(root / "tree/val", labelled)
    two = {n: {f"{n}_{i}.JPEG": jpeg(k, 50 + i) for i in range(2)} for k, n in enumerate(WNIDS)}
    flat = {f"{w}/{name}": x for w, images in two.items() for name, x in images.items()}
    others = {
        "imagenet_r/imagenet-r/README.txt": b"ImageNet-R",
        **{
            f"imagenet_{kind}/imagenet-{kind}/{name}": x
            for kind in ("a", "r", "o")
            for name, x in flat.items()
        },
        "imagenet_sketch/sketch.tar": tar({f"sketch/{name}": x for name, x in flat.items()}),
        **{
            f"imagenet_v2/matched/{label}/{i}.jpeg": jpeg(label % 3, i)
            for label in (0, 1, 999)
            for i in range(2)
        },
        "imagenet_c/noise.tar": tar(
            {f"gaussian_noise/{s}/{name}": x for s in (1, 5) for name, x in flat.items()}
        ),
        "imagenet21k/n00004475.tar": tar({"n00004475_1.JPEG": jpeg(0, 0)}),
        **{f"imagenet21k/n00005787/{name.split('/')[1]}": x for name, x in list(flat.items())[:2]},
    }
    write(root / "others", others)


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    make(Path(sys.argv[1]))
    print(f"made {sys.argv[1]}: tars, tree, others")
