"""The `data` part of a config."""

from ml_collections import ConfigDict


def default_data_config() -> ConfigDict:
    """Every key with its default."""
    return ConfigDict(
        dict(
            name="digits",  # a dataset of lookupjax.data.sources
            dir="",  # where prepared datasets lie; "": $LOOKUPJAX_DATA or ~/.cache/lookupjax/data
            train_split="train",
            eval_split="test",
            channels=3,  # 3 decodes to RGB, 1 to grey
            # what follows decoding, in order: dicts of a transform's "name" and its arguments
            train_transforms=(dict(name="normalize"),),
            eval_transforms=(dict(name="normalize"),),
            cache=False,  # keep decoded examples in memory (small datasets)
            threads=4,  # that read and transform ahead
            prefetch=64,  # examples read ahead
        )
    )
