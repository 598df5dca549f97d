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
            # what of an example goes into the batch beside "image" and "label"; (): every number and array
            batch_keys=(),
            # what follows decoding, in order: dicts of a transform's "name" and its arguments
            train_transforms=(dict(name="normalize"),),
            eval_transforms=(dict(name="normalize"),),
            # of captions: a sentencepiece model at `path`, or one of `size` tokens trained on the training
            # captions; "bpe" or "unigram". The work directory keeps a copy. Nothing of it without texts
            tokenizer=dict(path="", kind="bpe", size=0),
            per_class=0,  # images of each class in a batch, of batch_size / per_class classes; 0: any
            repeats=1,  # repeated augmentation: views of each example in a batch (DeiT: 3)
            cache=False,  # keep decoded examples in memory (small datasets)
            max_corrupt=0.01,  # share of a split's records that may be unreadable before training stops
            threads=4,  # that read and transform ahead
            workers=0,  # processes that do so instead, `threads` in each; for more than about 8 cores
            prefetch=64,  # examples read ahead
        )
    )
