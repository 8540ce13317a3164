"""The former place of `jaxprune.matmul_conv`."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "matmul_conv":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxprune._matmul_conv import matmul_conv

    warnings.warn(
        "`jaxprune.demo.matmul_conv` is deprecated: it is `jaxprune.matmul_conv` now.",
        DeprecationWarning,
        stacklevel=2,
    )
    return matmul_conv
