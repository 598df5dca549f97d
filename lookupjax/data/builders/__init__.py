"""TFDS builders of our own. They yield encoded bytes, so preparing them needs no TensorFlow."""
