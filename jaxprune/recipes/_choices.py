"""What the parts of a recipe read of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import optax

from jaxprune.recipes._scoring import Scoring
from jaxprune.rewind import Initialization


class Choices(Protocol):
    """The four choices; a `Recipe` has them."""

    @property
    def name(self) -> str: ...

    @property
    def sparsity(self) -> Any: ...

    @property
    def structure(self) -> Any: ...

    @property
    def scoring(self) -> Scoring: ...

    @property
    def scheduling(self) -> Any: ...

    @property
    def initialization(self) -> Initialization: ...

    @property
    def is_known(self) -> bool: ...

    @property
    def continues(self) -> bool: ...

    @property
    def removes(self) -> bool: ...

    @property
    def transform(self) -> Callable[..., optax.GradientTransformationExtraArgs]: ...
