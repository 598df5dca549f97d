"""LookupViT on moving digits: eight frames, and a motion that no single frame tells.

    python -m lookupjax.train --config=configs/quickstart_video.py --workdir=runs/quickstart_video

Data: scikit-learn's handwritten digits running around a circle, in one of four ways that show the same eight
pictures in another order (`moving_digits`). Expected on two CPU cores, in less than five minutes: test
accuracy above 0.9 as the frames are, and chance, 0.25, when they are shuffled ("shuffled/accuracy"): what
the model has learned is the motion. The report shows where and when each compressed token looks.
"""

from ml_collections import ConfigDict

SPLIT = dict(name="split_frames", frames=8)
NORMALIZE = dict(name="normalize")


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(
                name="lookupvit_video_mu",
                patch=(2, 6, 6),
                pos_grid=(4, 4, 4),
                compressed=(4, 2, 2),
                dim=48,
                depth=2,
                num_heads=4,
                pos_init=0.5,
                tubelet_init="random",
            ),
            data=dict(
                name="moving_digits",
                channels=1,
                cache=True,
                train_transforms=(SPLIT, NORMALIZE),
                eval_transforms=(SPLIT, NORMALIZE),
            ),
            batch_size=64,
            eval_batch_size=360,
            steps=1000,
            optimizer=dict(learning_rate=3e-3, weight_decay=0.01),
            schedule=dict(warmup_steps=100),
            eval_every=250,
            evaluators=dict(
                shuffled=dict(
                    type="figures",
                    data=dict(eval_transforms=(SPLIT, dict(name="shuffle_frames"), NORMALIZE)),
                )
            ),
            checkpoint=dict(every=500),
            report=True,
        )
    )
