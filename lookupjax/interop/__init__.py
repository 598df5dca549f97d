"""Weights and reference outputs from elsewhere.

One module per family, named as the family. It offers `outputs(fixture) -> {name: array}` for
`lookupjax.parity` and, where official weights exist, the renaming that loads them.
"""
