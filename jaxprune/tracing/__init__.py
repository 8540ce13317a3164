"""Models as jaxprs: tracing any function of parameters, and where in the source an equation comes from."""

from jaxprune.tracing._trace import (
    Source,
    Traced,
    as_abstract,
    contracted_dims,
    is_array_leaf,
    shape_of,
    source_of,
    trace,
)

__all__ = [
    "Source",
    "Traced",
    "as_abstract",
    "contracted_dims",
    "is_array_leaf",
    "shape_of",
    "source_of",
    "trace",
]
