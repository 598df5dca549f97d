"""Large depthwise kernels trained as sums of smaller ones, merged for use (UniRepLKNet, arXiv 2311.15599).

training: sum over branches of BN(depthwise conv, k_i x k_i, dilation r_i)
merged  : one depthwise k x k convolution with a bias, the same function in evaluation
"""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.conv import ConvNorm, conv
from lookupjax.layers.norm import BatchNorm
from lookupjax.layers.rngs import Keys

# kernel -> (kernel, dilation) of the branches beside the full one
BRANCHES = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class DilatedReparam(nnx.Module):
    """A depthwise convolution of `kernel` pixels; `merged` builds the form without branches.

    Raises:
      UserError: for a kernel without published branches.
    """

    def __init__(
        self,
        dim: int,
        kernel: int,
        *,
        merged: bool = False,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kernel not in BRANCHES:
            raise UserError(f"kernels of {kernel} pixels have no branches; choose one of {list(BRANCHES)}")
        self.dim, self.kernel, self.dtype = dim, kernel, dtype
        options = dict(groups=dim, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        whole = dict(padding=kernel // 2) | options
        self.conv = conv(dim, dim, kernel, **whole) if merged else None
        self.branches = nnx.List([] if merged else [ConvNorm(dim, dim, kernel, **whole)])
        for k, r in () if merged else BRANCHES[kernel]:
            self.branches.append(ConvNorm(dim, dim, k, padding=r * (k - 1) // 2, dilation=r, **options))

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        if self.conv is not None:
            return self.conv(x)
        return sum((branch(x, train=train) for branch in self.branches[1:]), self.branches[0](x, train=train))

    def merge(self) -> "DilatedReparam":
        """The merged form with the same outputs in evaluation; of a merged one, itself."""
        if self.conv is not None:
            return self
        kernel, bias = jnp.zeros((self.kernel, self.kernel, 1, self.dim)), jnp.zeros((self.dim,))
        dilations = [1, *(r for _, r in BRANCHES[self.kernel])]
        for branch, r in zip(self.branches, dilations):
            weight, shift = fold(branch.conv.kernel[...], branch.norm)
            kernel, bias = kernel + spread(weight, r, self.kernel), bias + shift
        merged = nnx.eval_shape(
            lambda: DilatedReparam(self.dim, self.kernel, merged=True, dtype=self.dtype, rngs=Keys(0))
        )
        nnx.update(merged, nnx.State({"conv": {"kernel": nnx.Param(kernel), "bias": nnx.Param(bias)}}))
        return merged


def fold(
    kernel: Float[Array, "kh kw i o"], norm: BatchNorm
) -> tuple[Float[Array, "kh kw i o"], Float[Array, "o"]]:
    """(kernel, bias) of one convolution equal to a bias-free one followed by `norm` in evaluation."""
    gain = norm.scale[...] * lax.rsqrt(norm.var[...] + norm.eps)
    return kernel * gain[None, None, None], norm.bias[...] - norm.mean[...] * gain


def spread(kernel: Float[Array, "k k i o"], dilation: int, size: int) -> Float[Array, "s s i o"]:
    """A dilated kernel as a plain one of `size` pixels: zeros between its taps and around them."""
    taps = kernel.shape[0]
    reach = dilation * (taps - 1) + 1
    margin = (size - reach) // 2
    grid = margin + dilation * jnp.arange(taps)
    plain = jnp.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
    return plain.at[grid[:, None], grid[None]].set(kernel)


def merge_branches(model: nnx.Module) -> nnx.Module:
    """A copy of `model` with every `DilatedReparam` merged: equal outputs in evaluation, for export."""
    model = nnx.merge(*nnx.split(model))
    for _, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if isinstance(child, DilatedReparam):
                setattr(module, name, child.merge())
    return model
