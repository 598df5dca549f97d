"""What was published of a model: the figures that ours are checked against and the docs table prints."""

from typing import NamedTuple


class Published(NamedTuple):
    """Figures of one variant.

    Attributes:
      params: parameters, exact, or None where no exact number was published or measured.
      gmacs: 1e9 multiply-accumulates of one input, or None; ours agree within 2 %.
      gmacs_extra: what the published count leaves out (1e9); `note` says what it is.
      top1: ImageNet-1K accuracy in percent, of the paper or the official release.
      size: input (height, width), of videos (frames, height, width), of `gmacs` and `top1`.
      source: where the figures stand.
    """

    params: int | None = None
    gmacs: float | None = None
    gmacs_extra: float = 0.0
    top1: float | None = None
    size: tuple[int, ...] = (224, 224)
    source: str = ""
    note: str = ""
