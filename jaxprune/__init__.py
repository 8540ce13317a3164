"""Functional pruning for JAX: scores, masks, schedules, lottery tickets and removal of whole units.

The way through the code is one way: scores -> selection -> masks -> transforms -> imp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxprune import lazy

if TYPE_CHECKING:
    from jaxprune.public import *  # noqa: F403

__version__ = "0.2.0"

lazy.attach(__name__, "jaxprune.public", modules=("checkpoint", "plots"))
