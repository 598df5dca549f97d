"""Captions on a laptop: a decoder on LookupViT's compressed tokens, next to one on all tokens of a ViT.

    python -m lookupjax.train --config=configs/quickstart_caption.py --workdir=runs/caption

Data: scenes of two handwritten digits, "a large red 7 above a small blue 3"; the combinations of attributes
in the test split occur in no training scene. Each encoder is first trained on the classes of a scene's
digits (place, size, colour, digit), then frozen; its tokens of the training scenes are computed once, and
the same decoder learns to write captions from 16 compressed tokens of the LookupViT, or 64 of the ViT.
Captions are written by beam search.

Needs pip install -e ".[captions]". Cost: seven to eight minutes on two CPU cores. Expected: the whole
tuple of attributes right in 82 % of the test scenes (ViT 79 %). The report lies in runs/caption/report.
"""

from ml_collections import ConfigDict

# Positions start at the scale of the patches, as in configs/quickstart.py.
SIZE = dict(patch=(4, 4), pos_grid=(8, 8), dim=48, depth=2, num_heads=4, pos_init=0.5, num_classes=320)
LOOKUPVIT = SIZE | dict(compressed=(4, 4))
VIT = SIZE | dict(head="gap")
DECODER = dict(dim=48, depth=2, num_heads=4, length=16)
OPTIMIZER = dict(name="muon", learning_rate=6e-3, momentum=0.95, weight_decay=0.01)
NORMALIZE = dict(name="normalize")
CAPTIONS = dict(name="captions", length=16)


def captioner(encoder: str, options: dict) -> dict:
    return dict(name="captioner_mu", encoder=encoder, encoder_options=options, **DECODER)


def pretraining(encoder: str, options: dict) -> dict:
    return dict(
        model=dict(name=encoder, **options),
        task=dict(name="classification"),
        data=dict(train_transforms=(NORMALIZE,), eval_transforms=(NORMALIZE,)),
        batch_size=32,
        steps=4000,
        optimizer=OPTIMIZER,
        schedule=dict(warmup_steps=100),
    )


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=captioner("lookupvit_mu", LOOKUPVIT),
            task=dict(name="captioning", label_smoothing=0.1),
            frozen=("^encoder/",),
            init=dict(module="encoder"),
            cache_tokens=True,
            pretraining=pretraining("lookupvit_mu", LOOKUPVIT),
            baselines=dict(vit=dict(model=captioner("vit_mu", VIT), pretraining=pretraining("vit_mu", VIT))),
            data=dict(
                name="captioned_digits",
                cache=True,
                tokenizer=dict(kind="bpe", size=80),
                train_transforms=(CAPTIONS, NORMALIZE),
                eval_transforms=(CAPTIONS, NORMALIZE),
            ),
            batch_size=64,
            eval_batch_size=250,
            steps=1500,
            optimizer=OPTIMIZER,
            schedule=dict(warmup_steps=100),
            evaluators=dict(captions=dict(type="captions", beams=3)),
            eval_every=0,
            log_every=100,
            checkpoint=dict(every=0, keep=1),
            report=True,
        )
    )
