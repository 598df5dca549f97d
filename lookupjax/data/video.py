"""Encoded videos in memory: reading frames by number, checking, encoding; with PyAV, imported when used."""

import bisect
import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from lookupjax.data.resize import Image, resize_image
from lookupjax.errors import Unreadable, UserError

COMPLETE = 0.9  # share of the declared length that a clip must have not to count as cut off


def pyav() -> Any:
    """The module `av`.

    Raises:
      UserError: when PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos are read with PyAV: pip install -e '.[video]'") from None
    return av


class Video:
    """Frames of an encoded video by number; a context that holds the decoder.

    The packets are listed first, which costs a hundredth of decoding them; frames are then reached from the
    nearest key frame before them.

    Attributes:
      times: presentation times of the frames, in order.
      decoded: frames decoded so far.

    Raises:
      Unreadable: when it is no video or holds no frame.
    """

    def __init__(self, encoded: bytes):
        av = pyav()
        self.error = av.error.FFmpegError
        try:
            self.container = av.open(io.BytesIO(encoded))
        except self.error as error:
            raise Unreadable(f"not a video that can be opened ({_reason(error)})") from None
        if not self.container.streams.video:
            self.container.close()
            raise Unreadable("no video stream in it")
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # the loader's own threads use the cores
        times, keys = [], []
        try:
            for packet in self.container.demux(self.stream):
                if packet.pts is not None and packet.size:
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
        except self.error:
            pass  # cut off: what was listed can still be decoded
        if not times:
            self.container.close()
            raise Unreadable("a video without frames")
        self.times, self.keys, self.decoded = sorted(times), sorted(keys), 0

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def complete(self) -> bool:
        """Whether it is as long as its header says."""
        return not self.stream.frames or len(self) >= COMPLETE * self.stream.frames

    def read(self, numbers: Iterable[int]) -> dict[int, Image]:
        """{number: RGB frame}; what cannot be decoded is the last frame before it that can be.

        Raises:
          Unreadable: when no frame can be decoded.
        """
        found: dict[int, Image] = {}
        pending = sorted(set(numbers), reverse=True)
        frames, at, image = None, -1, None
        while pending:
            key = max(bisect.bisect_right(self.keys, self.times[pending[-1]]) - 1, 0)
            start = bisect.bisect_left(self.times, self.keys[key]) if self.keys else 0
            try:
                if frames is None or start > at + 1:
                    self.container.seek(self.times[start], stream=self.stream)
                    frames = self.container.decode(self.stream)
                frame = next(frames, None)
            except self.error:
                frame = None
            if frame is None:
                break
            self.decoded += 1
            at = at + 1 if frame.pts is None else max(bisect.bisect_right(self.times, frame.pts) - 1, 0)
            if at >= pending[-1]:
                image = frame.to_ndarray(format="rgb24")
                while pending and at >= pending[-1]:
                    found[pending.pop()] = image
        if pending and image is None:
            raise Unreadable("none of the frames asked for can be decoded")
        return found | dict.fromkeys(pending, image)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def check(encoded: bytes) -> None:
    """Decodes all of a video.

    Raises:
      Unreadable: when it cannot be opened, breaks off, or is shorter than its header says.
    """
    with Video(encoded) as video:
        frames = last = 0
        try:
            video.container.seek(video.times[0], stream=video.stream)
            for frame in video.container.decode(video.stream):
                frames, last = frames + 1, frame.pts or last
        except video.error as error:
            raise Unreadable(f"breaks off after {frames} frames ({_reason(error)})") from None
        if not video.complete or frames < COMPLETE * len(video):
            whole = max(len(video), video.stream.frames)
            raise Unreadable(f"cut off: {frames} of {whole} frames can be decoded")
        length = video.container.duration  # of a container that does not count its frames, in microseconds
        seconds = float((last - video.times[0]) * video.stream.time_base) + 1 / float(_rate(video.stream))
        if not video.stream.frames and length and seconds < COMPLETE * length / 1e6:
            raise Unreadable(f"cut off: {seconds:.1f} of {length / 1e6:.1f} seconds can be decoded")


def _rate(stream: Any) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def encode_video(
    frames: Iterable[Image], rate: Fraction | int, *, crf: int = 18, key_every: int = 16
) -> bytes:
    """H.264 in MP4 of RGB frames with even sides, a key frame at least every `key_every` frames."""
    buffer = io.BytesIO()
    with pyav().open(buffer, "w", format="mp4") as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt, stream.gop_size, stream.thread_count = "yuv420p", key_every, 1
                stream.options = {"crf": str(crf)}
            frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def shrink(encoded: bytes, short_side: int) -> bytes:
    """The video with its shorter side at most `short_side` pixels, encoded anew; smaller ones as they are.

    Raises:
      Unreadable: see `check`.
    """
    check(encoded)
    with Video(encoded) as video:
        height, width = video.stream.height, video.stream.width
        if min(height, width) <= short_side:
            return encoded
        size = tuple(2 * round(n * short_side / min(height, width) / 2) for n in (height, width))
        video.container.seek(video.times[0], stream=video.stream)
        frames = (f.to_ndarray(format="rgb24") for f in video.container.decode(video.stream))
        return encode_video((resize_image(f, size, "area") for f in frames), _rate(video.stream))
