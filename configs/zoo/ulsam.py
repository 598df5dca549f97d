"""MobileNets with ULSAM on ImageNet-1K: `configs/zoo/ulsam.py:v2_96_160`, and without: `mobilenet_v2`.

Argument: variant of ulsam (v1, v1_075, v1_050, v1_added_a, v2_added, v2_96_160, v2_160_160, ...), or a plain
network (mobilenet_v1, mobilenet_v2, ...); "g1" to "g16", the number of subspaces; "smoke" (a minute,
anywhere). Default v2_96_160,g4.

The paper (arXiv 2006.15102) names no recipe, its repository neither; these are its baselines' usual ones
(unconfirmed). V1: SGD 0.1 at batch 128, a tenth after 30 and 60 of 90 epochs. V2: 0.045, times 0.98 per epoch
for 400 epochs. Weight decay 4e-5 in the gradient; here it is decoupled, where momentum does not enlarge it,
hence ten times that. Meant for 1 to 8 devices. Expected top-1: v1 70.43 (g4; plain 70.65), v2_96_160 71.52
(g4; plain 71.25), v2_160_160 70.74, v2_96_96_160_160 69.72 %.
"""

from ml_collections import ConfigDict

from lookupjax.models.mobilenet import VARIANTS as PLAIN
from lookupjax.models.ulsam import VARIANTS
from lookupjax.recipes import imagenet, parse, smoke

STEPS = ((0.0, 1.0), (1 / 3, 1.0), (0.3334, 0.1), (2 / 3, 0.1), (0.6667, 0.01), (1.0, 0.01))
DECAY = tuple((i / 40, 0.98 ** (10 * i)) for i in range(41))


def get_config(argument: str = "") -> ConfigDict:
    names = [*VARIANTS, *(f"mobilenet_{name}" for name in PLAIN)]
    asked = parse(argument, variant=("|".join(names), "v2_96_160"), groups=(r"g\d+", "g4"))
    plain = asked["variant"].startswith("mobilenet_")
    first = asked["variant"].removeprefix("mobilenet_").startswith("v1")
    config = imagenet(
        asked["variant"] if plain else f"ulsam_{asked['variant']}",
        epochs=90 if first else 400,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1 if first else 0.045,
        weight_decay=4e-5 / (1 - 0.9),
        warmup_epochs=0,
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        rand_augment=None,
        erasing=0.0,
        **({} if plain else dict(subspaces=int(asked["groups"][1:]))),
    )
    config.schedule = ConfigDict(dict(name="knots", knots=STEPS if first else DECAY))
    return smoke(config) if asked["smoke"] else config
