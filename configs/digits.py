"""Any classifier on the real handwritten digits, at its own input size: `configs/digits.py:davit_mu`.

    python -m lookupjax.train --config=configs/digits.py:davit_mu --workdir=runs/davit

The argument is a name of `create_model`; all models get the same data, steps, batch and optimizer. Cost:
under a minute on two CPU cores for the "mu" variants. Expected: `experiments/digits_zoo`.
"""

from ml_collections import ConfigDict

from lookupjax.models import native_size


def get_config(model: str = "lookupvit_mu") -> ConfigDict:
    enlarge = dict(name="resize", size=native_size(model))
    shake = dict(name="random_affine", degrees=10.0, translate=0.08, scale=(0.9, 1.1))
    normalize = dict(name="normalize")
    return ConfigDict(
        dict(
            model=dict(name=model),
            data=dict(
                name="digits",
                cache=True,
                train_transforms=(enlarge, shake, normalize),
                eval_transforms=(enlarge, normalize),
            ),
            batch_size=32,
            eval_batch_size=360,
            steps=400,
            optimizer=dict(learning_rate=2e-3, weight_decay=0.02),
            schedule=dict(warmup_steps=40),
            log_every=50,
            checkpoint=dict(every=0),
        )
    )
