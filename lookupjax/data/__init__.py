"""Datasets as random-access sources of encoded examples, transforms, and the loader.

TensorFlow is never imported here: TFDS prepares and reads ArrayRecord files without it.
"""
