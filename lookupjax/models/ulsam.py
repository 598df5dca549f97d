"""MobileNet V1 and V2 with ULSAM (arXiv 2006.15102, WACV 2020): subspace attention added or replacing layers.

    layer i (b, h, w, m) -> ULSAM behind it ("added"), or ULSAM in place of layer i ("replacing")

The module is `lookupjax.attention.ulsam`, the networks `models/mobilenet.py` with their `subspace` option;
layers count from the stem, 0. Reference: Nandan91/ULSAM publishes the module only. Which blocks were
replaced follows from the paper's differences in MACs and parameters; where modules were added does not:
"added" positions are ours, of the paper's width and map size. `subspaces` is the number of groups g.
"""

from lookupjax.models import mobilenet
from lookupjax.models.mobilenet import MobileNet
from lookupjax.models.published import Published

V1 = mobilenet.VARIANTS["v1"]
V2 = mobilenet.VARIANTS["v2"]
MU = mobilenet.VARIANTS["mu"]


def replacing(*layers: int) -> dict:
    return dict(subspace=tuple((layer, "instead") for layer in layers))


VARIANTS: dict[str, dict] = {
    "mu": MU | dict(subspace=((1, "instead"), (3, "after"))),  # the smallest, for tests
    "v1_added_a": V1 | dict(subspace=((10, "after"),)),  # 512 channels, 14x14
    "v1_added_b": V1 | dict(subspace=((11, "after"),)),
    "v1_added_c": V1 | dict(subspace=((12, "after"),)),  # 1024 channels, 7x7
    "v1": V1 | replacing(11),
    "v1_075": V1 | dict(width=0.75) | replacing(11),
    "v1_050": V1 | dict(width=0.5) | replacing(11),
    "v2_added": V2 | dict(subspace=((16, "after"),)),  # 160 channels, 7x7
    # replaced blocks by their channels, as in the rows of the paper's table
    "v2_96": V2 | replacing(13),
    "v2_160": V2 | replacing(16),
    "v2_64_96": V2 | replacing(10, 13),
    "v2_160_160": V2 | replacing(15, 16),
    "v2_96_160": V2 | replacing(13, 16),
    "v2_96_96_160_160": V2 | replacing(12, 13, 15, 16),
}
INPUT_SIZE = {"mu": (64, 64)}
SLIDES = "ULSAM slides, best over g"
PUBLISHED = {
    "v1_added_a": Published(gmacs=0.5692, top1=70.89, source=SLIDES),
    "v1_added_b": Published(gmacs=0.5692, top1=70.92, source=SLIDES),
    "v1_added_c": Published(gmacs=0.5691, top1=70.86, source=SLIDES),
    "v1": Published(gmacs=0.517, top1=70.43, source=SLIDES),
    "v1_075": Published(gmacs=0.296, top1=67.98, source=SLIDES),
    "v1_050": Published(gmacs=0.136, top1=63.42, source=SLIDES),
    "v2_added": Published(gmacs=0.30001, top1=71.64, source=SLIDES),
    "v2_96": Published(gmacs=0.27734, source=SLIDES),
    "v2_160": Published(gmacs=0.28454, source=SLIDES),
    "v2_64_96": Published(gmacs=0.26706, source=SLIDES),
    "v2_160_160": Published(gmacs=0.26907, top1=70.74, source=SLIDES),
    "v2_96_160": Published(gmacs=0.26188, top1=71.52, source=SLIDES),
    "v2_96_96_160_160": Published(gmacs=0.22377, top1=69.72, source=SLIDES),
}


def create(variant: str, **overrides) -> MobileNet:
    """Builds "v1_050", "v2_96_160", ...; any argument of `MobileNet` can be overridden."""
    return MobileNet(**(VARIANTS[variant] | overrides))
