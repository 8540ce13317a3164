"""Models as jaxprs: all code that walks through the equations of a function of parameters builds on this package."""

from jaxprune.jaxprs.equations import bind, shape_of
from jaxprune.jaxprs.sources import Source, source_of
from jaxprune.jaxprs.tracing import Traced, as_abstract, is_array_leaf, trace

__all__ = [
    "Source",
    "Traced",
    "as_abstract",
    "bind",
    "is_array_leaf",
    "shape_of",
    "source_of",
    "trace",
]
