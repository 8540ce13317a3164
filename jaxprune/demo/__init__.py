"""What the commands run: data, models and the experiments. Only `matmul_conv` is meant for other code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxprune import lazy

if TYPE_CHECKING:
    from jaxprune.demo._matmul_conv import *  # noqa: F403

lazy.attach(__name__, "jaxprune.demo._matmul_conv")
