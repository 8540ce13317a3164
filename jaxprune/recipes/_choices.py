"""What the parts of a recipe read of the whole."""

from __future__ import annotations

from typing import Any, Protocol

import optax

from jaxprune.params import PyTree
from jaxprune.recipes._scoring import Scoring
from jaxprune.rewind import Initialization
from jaxprune.structures import Structure


class Choices(Protocol):
    """The four choices; a `Recipe` has them."""

    @property
    def name(self) -> str: ...

    @property
    def sparsity(self) -> Any: ...

    @property
    def structure(self) -> Structure: ...

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

    def transform(
        self, inner: optax.GradientTransformation, params: PyTree, *, steps: int, **more: Any
    ) -> optax.GradientTransformationExtraArgs: ...
