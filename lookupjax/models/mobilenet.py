"""MobileNet V1, V2 and V3 (arXiv 1704.04861, 1801.04381, 1905.02244): backbones and baselines.

    image (b, H, W, c) -> 3x3 /2 convolution -> blocks -> [1x1 convolution] -> mean -> [linear, h-swish]
      -> linear
    V1 block: depthwise 3x3, 1x1, ReLU after both
    V2 block: 1x1 to t d, depthwise 3x3, 1x1 to d' (linear), + x    ReLU6
    V3 block: the same with 3x3 or 5x5, squeeze-and-excitation, ReLU or h-swish, widths by search

Reference: torchvision (V2, V3: the same numbering of layers); V1 after the paper. `subspace` puts ULSAM
modules (`lookupjax.attention.ulsam`) behind layers or in their place. `run_stem` and `run_stage` let
another model work between the stages, which `cuts` separate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.ulsam import SubspaceAttention
from lookupjax.errors import UserError
from lookupjax.layers.conv import ConvNorm
from lookupjax.layers.regularise import drop_path, drop_path_rates
from lookupjax.layers.squeeze import SqueezeExcite
from lookupjax.models.published import Published
from lookupjax.models.staged import Staged


class Row(NamedTuple):
    """A block: widths before scaling, 3x3 or 5x5, stride, activation, squeeze-and-excitation.

    `expand` is the hidden width in V3, its ratio to the block's input in V2, unused in V1.
    """

    expand: int
    out: int
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"
    squeeze: bool = False


class Form(NamedTuple):
    """What else distinguishes the versions."""

    stem: int
    activation: str  # of the stem and the last convolution
    eps: float = 1e-5
    momentum: float = 0.9


FORMS = {
    "v1": Form(32, "relu"),
    "v2": Form(32, "relu6"),
    "v3": Form(16, "hard_swish", eps=1e-3, momentum=0.99),
}
V1 = tuple(Row(0, d, stride=s) for d, s in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)))
V1 += (Row(0, 512),) * 5 + (Row(0, 1024, stride=2), Row(0, 1024))
V2 = tuple(
    Row(t, d, stride=s if i == 0 else 1, activation="relu6")
    for t, d, n, s in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for i in range(n)
)
V3_LARGE = (
    Row(16, 16),
    Row(64, 24, stride=2),
    Row(72, 24),
    Row(72, 40, 5, 2, squeeze=True),
    Row(120, 40, 5, squeeze=True),
    Row(120, 40, 5, squeeze=True),
    Row(240, 80, stride=2, activation="hard_swish"),
    Row(200, 80, activation="hard_swish"),
    Row(184, 80, activation="hard_swish"),
    Row(184, 80, activation="hard_swish"),
    Row(480, 112, 3, 1, "hard_swish", True),
    Row(672, 112, 3, 1, "hard_swish", True),
    Row(672, 160, 5, 2, "hard_swish", True),
    Row(960, 160, 5, 1, "hard_swish", True),
    Row(960, 160, 5, 1, "hard_swish", True),
)
V3_SMALL = (
    Row(16, 16, 3, 2, squeeze=True),
    Row(72, 24, stride=2),
    Row(88, 24),
    Row(96, 40, 5, 2, "hard_swish", True),
    Row(240, 40, 5, 1, "hard_swish", True),
    Row(240, 40, 5, 1, "hard_swish", True),
    Row(120, 48, 5, 1, "hard_swish", True),
    Row(144, 48, 5, 1, "hard_swish", True),
    Row(288, 96, 5, 2, "hard_swish", True),
    Row(576, 96, 5, 1, "hard_swish", True),
    Row(576, 96, 5, 1, "hard_swish", True),
)
VARIANTS: dict[str, dict] = {
    "mu": dict(  # the smallest, for tests
        version="v3",
        table=(Row(16, 16), *(Row(32, d, 3, 2, "hard_swish", True) for d in (16, 24, 24, 32))),
        hidden=32,
        momentum=0.9,
    ),
    "v1": dict(version="v1", table=V1),
    "v1_075": dict(version="v1", table=V1, width=0.75),
    "v1_050": dict(version="v1", table=V1, width=0.5),
    "v2": dict(version="v2", table=V2, last=1280, dropout=0.2),
    "v3_large": dict(version="v3", table=V3_LARGE, hidden=1280, dropout=0.2),
    "v3_small": dict(version="v3", table=V3_SMALL, hidden=1024, dropout=0.2),
}
INPUT_SIZE = {"mu": (64, 64)}
V1_PAPER = "arXiv 1704.04861, table 6"
PUBLISHED = {
    "v1": Published(gmacs=0.569, top1=70.6, source=V1_PAPER),
    "v1_075": Published(gmacs=0.325, top1=68.4, source=V1_PAPER),
    "v1_050": Published(gmacs=0.149, top1=63.7, source=V1_PAPER),
    "v2": Published(params=3_504_872, gmacs=0.301, top1=71.878, source="torchvision, IMAGENET1K_V1"),
    "v3_large": Published(params=5_483_032, gmacs=0.217, top1=74.042, source="torchvision, IMAGENET1K_V1"),
    "v3_small": Published(params=2_542_856, gmacs=0.057, top1=67.668, source="torchvision, IMAGENET1K_V1"),
}
KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
PLACES = ("after", "instead")


def scaled(channels: int, width: float = 1.0) -> int:
    """`channels * width` rounded to a multiple of 8, at least 8 and never more than 10 % lower."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


class Block(nnx.Module):
    """[1x1 expansion,] depthwise convolution, [squeeze-and-excitation,] 1x1 convolution[, + x].

    V1 has neither expansion nor skip, and an activation at the end.
    """

    def __init__(
        self,
        row: Row,
        d_in: int,
        d_out: int,
        hidden: int,
        version: str,
        *,
        momentum: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        eps = FORMS[version].eps
        options = dict(kernel_init=KERNEL_INIT, eps=eps, momentum=momentum, dtype=dtype, rngs=rngs)
        act = dict(activation=row.activation)
        self.expand = ConvNorm(d_in, hidden, 1, **act, **options) if hidden != d_in else None
        self.depthwise = ConvNorm(
            hidden,
            hidden,
            row.kernel,
            stride=row.stride,
            padding=row.kernel // 2,
            groups=hidden,
            **act,
            **options,
        )
        squeeze = dict(gate="hard_sigmoid", dtype=dtype, rngs=rngs)
        self.se = SqueezeExcite(hidden, scaled(hidden // 4), **squeeze) if row.squeeze else None
        self.project = ConvNorm(hidden, d_out, 1, **(act if version == "v1" else {}), **options)
        self.skip = version != "v1" and row.stride == 1 and d_in == d_out

    def __call__(
        self, x: Float[Array, "b h w c"], *, rate: float = 0.0, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        train = rngs is not None
        y = x if self.expand is None else self.expand(x, train=train)
        y = self.depthwise(y, train=train)
        y = y if self.se is None else self.se(y)
        y = self.project(y, train=train)
        return x + drop_path(y, rate, rngs) if self.skip else y


class MobileNet(Staged):
    """MobileNet over images of any size.

    Args:
      version: "v1", "v2" or "v3": form of the blocks, activation, normalisation constants.
      table: the blocks, with widths before scaling by `width`. Layer 0 is the stem, block i layer i.
      last: width of the last 1x1 convolution (V2: 1280, not scaled down); V3's is 6 times its input.
      hidden: width of the hidden layer before the classifier, 0 for none.
      momentum: weight of the old statistics in BatchNorm; None is the version's own (V3: 0.99, which takes
        hundreds of steps to settle).
      subspace: ((layer, "after" | "instead"), ...): where ULSAM modules of `subspaces` groups stand. Only a
        block that keeps the shape can be replaced.
      cuts: first layer of every stage; default: stages end before the maps are halved.
      num_classes: 0 for a backbone without head.
      dtype: compute dtype; parameters and statistics stay float32.
    """

    def __init__(
        self,
        *,
        version: str = "v2",
        table: tuple[Row, ...] = V2,
        width: float = 1.0,
        last: int = 0,
        hidden: int = 0,
        momentum: float | None = None,
        subspace: tuple[tuple[int, str], ...] = (),
        subspaces: int = 4,
        cuts: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if version not in FORMS:
            raise UserError(f"version={version!r} is unknown; choose one of {tuple(FORMS)}")
        form = FORMS[version]
        momentum = form.momentum if momentum is None else momentum
        options = dict(kernel_init=KERNEL_INIT, eps=form.eps, momentum=momentum, dtype=dtype, rngs=rngs)
        d = scaled(form.stem, width)
        layers: list[nnx.Module] = [
            ConvNorm(channels, d, 3, stride=2, padding=1, activation=form.activation, **options)
        ]
        replaced = check_subspace(subspace, version, table)
        widths, strides = [d], [2]
        for i, row in enumerate((Row(*row) for row in table), 1):
            d_out = scaled(row.out, width)
            inner = {"v1": d, "v2": d * row.expand, "v3": scaled(row.expand, width)}[version]
            if i in replaced:
                layers.append(SubspaceAttention(d, subspaces, dtype=dtype, rngs=rngs))
            else:
                layers.append(Block(row, d, d_out, inner, version, momentum=momentum, dtype=dtype, rngs=rngs))
            d = d_out
            widths.append(d)
            strides.append(row.stride)
        last = 6 * d if version == "v3" else last and scaled(last, max(1.0, width))
        if last:
            layers.append(ConvNorm(d, last, 1, activation=form.activation, **options))
            widths.append(last)
        self.layers = nnx.List(layers)
        self.added = nnx.Dict(
            {
                str(i): SubspaceAttention(widths[i], subspaces, dtype=dtype, rngs=rngs)
                for i, place in subspace
                if place == "after"
            }
        )
        halved = [i for i, stride in enumerate(strides) if stride == 2]
        cuts = (1, *halved[2:]) if cuts is None else tuple(cuts)
        self.bounds = (0, *cuts, len(layers))
        self.widths = tuple(widths[stop - 1] for stop in self.bounds[1:])
        self.dropout, self.drop_path, self.dtype = dropout, drop_path, dtype
        draw = dict(kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        hidden = scaled(hidden, width) if hidden and num_classes else 0
        self.hidden = nnx.Linear(widths[-1], hidden, **draw) if hidden else None
        self.head = nnx.Linear(hidden or widths[-1], num_classes, **draw) if num_classes else None

    def run(
        self, x: Float[Array, "b h w c"], start: int, stop: int, rngs: nnx.Rngs | None
    ) -> Float[Array, "b h2 w2 d"]:
        """Layers start to stop - 1."""
        rates = drop_path_rates(self.drop_path, len(self.layers))
        for i in range(start, stop):
            layer = self.layers[i]
            if isinstance(layer, SubspaceAttention):
                x = layer.attend(x, rngs=rngs)
            elif isinstance(layer, Block):
                x = layer(x, rate=rates[i], rngs=rngs)
            else:
                x = layer(x, train=rngs is not None)
            if str(i) in self.added:
                x = self.added[str(i)].attend(x, rngs=rngs)
        return x

    def run_stem(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The map that stage 0 reads."""
        return self.run(images.astype(self.dtype), 0, self.bounds[1], rngs)

    def run_stage(
        self, index: int, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Stage `index`, counted from 0."""
        return self.run(x, self.bounds[index + 1], self.bounds[index + 2], rngs)

    def classify(self, pooled: Float[Array, "b d"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Logits of the pooled last map."""
        x = pooled if self.hidden is None else jax.nn.hard_swish(self.hidden(pooled))
        return super().classify(x, rngs=rngs)


def check_subspace(subspace: tuple[tuple[int, str], ...], version: str, table: tuple[Row, ...]) -> set[int]:
    """The layers that ULSAM replaces.

    Raises:
      UserError: for a layer or place that does not exist, or a replaced block that changes the shape.
    """
    outs = [FORMS[version].stem, *(row[1] for row in table)]
    for layer, place in subspace:
        if place not in PLACES or not 0 < layer <= len(table):
            raise UserError(
                f"subspace entry {(layer, place)} is unknown: give a layer of 1 to {len(table)} and one of "
                f"{PLACES}"
            )
        if place == "instead" and (Row(*table[layer - 1]).stride > 1 or outs[layer] != outs[layer - 1]):
            raise UserError(
                f"layer {layer} changes the shape of its input, so ULSAM cannot stand in its place; "
                "choose one of equal width and stride 1"
            )
    return {layer for layer, place in subspace if place == "instead"}


def create(variant: str, **overrides) -> MobileNet:
    """Builds "v1", "v2", "v3_large", ...; any constructor argument can be overridden."""
    return MobileNet(**(VARIANTS[variant] | overrides))
