"""A convolution as one matrix product."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def matmul_conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated` as shifted slices, one concatenation and one matrix product (im2col).

    For a kernel of K positions and C input channels: patches (N, *out, K C) times kernel (K C, O).

    On a CPU, XLA runs `conv_general_dilated` inside a loop (`scan`, `fori_loop`) several times slower than
    outside, and a whole training under `jit` is such a loop. This form is not slower in a loop. It needs K times
    the memory of the input. On a GPU or TPU use the native convolution.

    Args:
      lhs: input (N, *spatial, C), channels last.
      rhs: kernel (*spatial, C, O), the layout of Flax.
      window_strides: stride of each spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", or (low, high) for each spatial axis.
      lhs_dilation: factor by which the input is spread with zeros between its entries, for each spatial axis;
        needs a padding in numbers.
      rhs_dilation: the same for the kernel.
      dimension_numbers: must be channels last, as Flax passes it.
      feature_group_count, batch_group_count: must be 1.
      precision, preferred_element_type, out_sharding: as for `lax.dot_general`.

    Returns:
      (N, *out, O), equal to that of `lax.conv_general_dilated` up to rounding.

    Raises:
      ValueError: if the layout is another one, there are groups, the kernel has other input channels, or strides
        or pads have the wrong length.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jaxprune import matmul_conv
      >>> conv = nn.Conv(8, (3, 3), conv_general_dilated=matmul_conv)
      >>> variables = conv.init(jax.random.key(0), jnp.ones((1, 5, 5, 2)))
      >>> conv.apply(variables, jnp.ones((1, 5, 5, 2))).shape
      (1, 5, 5, 8)

    References:
      Chellapilla, Puri, Simard, High Performance Convolutional Neural Networks for Document Processing, 2006.
    """
    rank = lhs.ndim - 2
    _check(lhs, rhs, dimension_numbers, feature_group_count, batch_group_count)
    stretch = tuple(lhs_dilation or (1,) * rank)
    dilation = tuple(rhs_dilation or (1,) * rank)
    strides = tuple(window_strides)
    for name, value in (("window_strides", strides), ("lhs_dilation", stretch), ("rhs_dilation", dilation)):
        if len(value) != rank or any(v < 1 for v in value):
            raise ValueError(
                f"`{name}` must hold {rank} factors of at least 1, one for each spatial axis, got {value}."
            )
    size = rhs.shape[:rank]
    extent = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
    pads = _pads(lhs.shape[1:-1], extent, strides, padding, stretch)
    inner = [(low, high, s - 1) for (low, high), s in zip(pads, stretch, strict=True)]
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
    out = [max((n - e) // s + 1, 0) for n, e, s in zip(padded.shape[1:-1], extent, strides, strict=True)]

    def shifted(at: tuple[int, ...]) -> jax.Array:
        if 0 in out:
            return jnp.zeros((lhs.shape[0], *out, lhs.shape[-1]), lhs.dtype)
        start = [i * d for i, d in zip(at, dilation, strict=True)]
        limit = [b + (n - 1) * s + 1 for b, n, s in zip(start, out, strides, strict=True)]
        return lax.slice(padded, [0, *start, 0], [lhs.shape[0], *limit, lhs.shape[-1]], [1, *strides, 1])

    slices = [shifted(at) for at in itertools.product(*(range(k) for k in size))]
    patches = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
    kernel = rhs.reshape(-1, rhs.shape[-1])
    return lax.dot_general(
        patches,
        kernel,
        (((patches.ndim - 1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def _check(lhs: jax.Array, rhs: jax.Array, numbers: Any, features: int, batches: int) -> None:
    for name, value in (("feature_group_count", features), ("batch_group_count", batches)):
        if value != 1:
            raise ValueError(
                f"matmul_conv has no groups: `{name}` must be 1, got {value}. "
                "Use the native convolution for this layer."
            )
    if lhs.ndim != rhs.ndim or lhs.ndim < 3:
        raise ValueError(
            f"`lhs` (N, *spatial, C) and `rhs` (*spatial, C, O) must have the same number of axes, "
            f"at least 3, got {lhs.shape} and {rhs.shape}."
        )
    rank = lhs.ndim - 2
    last = (0, rank + 1, *range(1, rank + 1))
    of_kernel = (rank + 1, rank, *range(rank))
    specs = lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
    if (specs.lhs_spec, specs.rhs_spec, specs.out_spec) != (last, of_kernel, last):
        raise ValueError(
            "matmul_conv needs channels last and kernels (*spatial, in, out), such as `dimension_numbers`="
            f"('NHWC', 'HWIO', 'NHWC'), got {numbers!r}."
        )
    if lhs.shape[-1] != rhs.shape[-2]:
        raise ValueError(
            f"`rhs` must have the {lhs.shape[-1]} input channels of `lhs` on its last axis but one, "
            f"got {rhs.shape}."
        )


def _pads(
    spatial: Sequence[int],
    extent: Sequence[int],
    strides: Sequence[int],
    padding: Any,
    stretch: Sequence[int],
) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        if any(s != 1 for s in stretch):
            raise ValueError(f"`padding` must be numbers if `lhs_dilation` is given, got {padding!r}.")
        return [(int(a), int(b)) for a, b in lax.padtype_to_pads(spatial, extent, strides, padding)]
    pads = [tuple(int(p) for p in np.atleast_1d(pair)) for pair in padding]
    if len(pads) != len(spatial) or any(len(pair) != 2 for pair in pads):
        raise ValueError(
            f"`padding` must be 'SAME', 'VALID' or {len(spatial)} pairs (low, high), got {padding!r}."
        )
    return [(low, high) for low, high in pads]
