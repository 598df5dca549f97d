"""Files in folders and tar archives (and tars in tars), listed and read in place: nothing is unpacked."""

import contextlib
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from lookupjax.errors import UserError

IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
VIDEOS = (".mp4", ".webm", ".mkv", ".avi")
OPEN_FILES = 16  # archives each thread keeps open


class Place(NamedTuple):
    """Where the bytes of one file lie; size -1 is the whole file."""

    path: str
    offset: int
    size: int


def is_kind(name: str, kinds: tuple[str, ...]) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    return base.endswith(kinds) and not base.startswith(".")


def list_files(source: epath.Path, kinds: tuple[str, ...] = IMAGES) -> Iterator[tuple[str, Place]]:
    """(name, place) of every file of some kinds below a folder or in a tar, in sorted order of files.

    Names are relative to `source` with "/" between parts; a tar below it counts as a folder of its name
    without ".tar". Other files are passed over.

    Raises:
      UserError: for an archive that is compressed (its members cannot be read in place) or damaged.
    """
    if source.is_dir():
        for child in sorted(source.iterdir(), key=lambda p: p.name):
            if child.is_dir() or child.name.endswith(".tar"):
                folder = child.name.removesuffix(".tar")
                yield from ((f"{folder}/{name}", place) for name, place in list_files(child, kinds))
            elif is_kind(child.name, kinds):
                yield child.name, Place(os.fspath(child), 0, -1)
        return
    if not source.name.endswith(".tar"):
        raise UserError(f"{source} is neither a folder nor a .tar; unpack compressed archives first")
    try:
        with source.open("rb") as file:
            yield from _members(file, os.fspath(source), 0, kinds)
    except tarfile.TarError as error:
        raise UserError(f"{source} is not a complete tar archive: {error}; fetch it again") from None


def _members(file: Any, path: str, base: int, kinds: tuple[str, ...]) -> Iterator[tuple[str, Place]]:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            name = member.name.removeprefix("./")
            if name.endswith(".tar"):
                inner = archive.extractfile(member)
                for below, place in _members(inner, path, base + member.offset_data, kinds):
                    yield f"{name.removesuffix('.tar')}/{below}", place
            elif is_kind(name, kinds):
                yield name, Place(path, base + member.offset_data, member.size)
            archive.members = []  # tarfile remembers every header: gigabytes for ImageNet


class Reader(threading.local):
    """Reads places; each thread keeps the archives it used last open."""

    def __init__(self):
        self.files: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, place: Place) -> bytes:
        if place.size < 0:
            return epath.Path(place.path).read_bytes()
        file = self.files.pop(place.path, None)
        if file is None:
            file = epath.Path(place.path).open("rb")
        self.files[place.path] = file
        while len(self.files) > OPEN_FILES:
            self.files.popitem(last=False)[1].close()
        file.seek(place.offset)
        return file.read(place.size)


@contextlib.contextmanager
def small_archive(path: epath.Path) -> Iterator[dict[str, bytes]]:
    """{base name: bytes} of the files of a small archive of any compression."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as archive:
        files = {m.name.rsplit("/", 1)[-1]: archive.extractfile(m) for m in archive if m.isfile()}
        yield {name: content.read() for name, content in files.items()}
