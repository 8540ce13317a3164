"""What was found of a traced function, remembered for each structure, shape and dtype of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxprune.jaxprs.tracing import Traced, as_abstract, is_array_leaf

T = TypeVar("T")


def per_signature(find: Callable[..., tuple[Traced, T]]) -> Callable[..., tuple[Traced, T]]:
    """`find`, which is called with the abstract arguments, and only once for arguments of one signature.

    Nothing is remembered of a trace that closes over tracers, or of symbolic sizes: these belong to the
    transformation that runs at the time. Nor is anything if something static in the trees can't be hashed.
    """
    known: dict[Any, tuple[Traced, T]] = {}

    def found(*trees: Any) -> tuple[Traced, T]:
        abstract = jax.tree.map(lambda x: as_abstract(x) if is_array_leaf(x) else x, trees)
        leaves, treedef = jax.tree.flatten(abstract)
        key = (treedef, tuple((x.shape, x.dtype, x.weak_type) if is_array_leaf(x) else x for x in leaves))
        try:
            before = known.get(key)
        except TypeError:  # something static in the tree can't be hashed
            return find(*abstract)
        if before is not None:
            return before
        new = find(*abstract)
        fixed = all(isinstance(n, int) for x in leaves if is_array_leaf(x) for n in x.shape)
        if fixed and not new[0].closes_over_tracers:
            known[key] = new
        return new

    return found
