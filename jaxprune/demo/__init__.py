"""The former place of `jaxprune.matmul_conv`."""

from __future__ import annotations

from typing import Any

from jaxprune.deprecated import warn_renamed


def __getattr__(name: str) -> Any:
    if name != "matmul_conv":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxprune._matmul_conv import matmul_conv

    warn_renamed("`jaxprune.demo.matmul_conv`", "`jaxprune.matmul_conv`")
    return matmul_conv
