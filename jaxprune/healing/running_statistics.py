"""Which leaves of a tree are running statistics: means and variances of activations that training updates."""

from __future__ import annotations

import re
import sys
from typing import Any, Literal, NamedTuple

import jax

from jaxprune.healing.arrays import is_array
from jaxprune.params import PyTree, is_float_array
from jaxprune.tree_nodes import Leaf, is_variable, leaves_of
from jaxprune.weight_names import is_statistic

_VARIANCE = re.compile(r"(.*_)?(var|variance)(_ema|_\d+)?", re.IGNORECASE)
_MEAN = re.compile(r"(.*_)?mean(_ema|_\d+)?", re.IGNORECASE)
_COUNTER = 2**30  # after so many updates no moving average is corrected for its start


class Statistic(NamedTuple):
    """A leaf that is a running statistic.

    place: its position among the leaves; path; kind; dtype: in which it can be computed (float32 at least, where the
    framework lets it); mean: for a variance, the position of its mean if it has one;
    follower: the position of a second leaf with the same value (Haiku's `average` beside `hidden`).
    """

    place: int
    path: str
    kind: Literal["mean", "variance", "other"]
    dtype: Any
    mean: int | None = None
    follower: int | None = None

    @property
    def places(self) -> tuple[int, ...]:
        return (self.place,) if self.follower is None else (self.place, self.follower)


class Counter(NamedTuple):
    """A leaf that counts updates of statistics, or says that there was none yet, so that their start is corrected."""

    place: int

    def fresh(self, leaf: Any) -> Any:
        """Its value before the first update, of the same type."""
        return leaf | True if leaf.dtype == bool else leaf * 0

    def settled(self, leaf: Any) -> Any:
        """Its value when averages need no correction."""
        return (
            leaf & False if leaf.dtype == bool else leaf * 0 + min(_COUNTER, jax.numpy.iinfo(leaf.dtype).max)
        )


def statistics_of(tree: PyTree) -> list[Statistic]:
    """The running statistics of a tree, by the names of their leaves, or by their place in Equinox's `State`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.healing.running_statistics import statistics_of
      >>> tree = {"batch_stats": {"bn": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}, "w": jnp.ones(2)}
      >>> [(stat.path, stat.kind, stat.mean) for stat in statistics_of(tree)]
      [('batch_stats/bn/mean', 'mean', None), ('batch_stats/bn/var', 'variance', 0)]
    """
    leaves = leaves_of(tree)
    inside = _places_in_states(tree)
    by_path = {leaf.path: i for i, leaf in enumerate(leaves) if _is_named(leaf, i in inside)}
    found = [_named(leaves[place], place, by_path) for place in by_path.values()]
    found = [stat for stat in found if stat is not None]
    for i, j in inside.items():
        if j is not None:
            dtype = leaves[i].value.dtype
            found.append(Statistic(i, leaves[i].path, "mean", dtype))
            found.append(Statistic(j, leaves[j].path, "variance", dtype, i))
    return sorted(found, key=lambda stat: stat.place)


def counters_of(tree: PyTree) -> list[Counter]:
    """The counters of Equinox's BatchNorm and of Haiku's averages."""
    inside = _places_in_states(tree)
    return [
        Counter(i)
        for i, leaf in enumerate(leaves_of(tree))
        if is_array(leaf.value) and leaf.value.shape == () and not is_float_array(leaf.value)
        if i in inside or re.split("[/.]", leaf.path)[-1] == "counter"
    ]


def equinox_states(tree: PyTree) -> list[Any]:
    """The `State`s of Equinox in a tree."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return []
    kind = equinox.nn.State
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)]


def _is_named(leaf: Leaf, is_inside: bool) -> bool:
    """Whether the name of a leaf says that it is a statistic, and no framework says that it is a parameter."""
    if is_inside or not is_float_array(leaf.value) or leaf.keys[:1] == ("params",):
        return False
    if is_variable(leaf.holder):
        from flax import nnx

        return isinstance(leaf.holder, nnx.BatchStat | nnx.Cache | nnx.Intermediate)
    *parents, name = re.split("[/.]", leaf.path)
    if name in ("hidden", "average"):  # which plain weights may be called too
        return bool(parents) and _kind(parents[-1]) != "other"
    return is_statistic(leaf.path)


def _named(leaf: Leaf, place: int, by_path: dict[str, int]) -> Statistic | None:
    path, dtype = leaf.path, jax.numpy.promote_types(leaf.value.dtype, jax.numpy.float32)
    *parents, name = path.split("/")
    if name in ("hidden", "average") and parents:  # Haiku's `mean_ema/hidden`
        other = "/".join([*parents, "average"])
        if name == "average" and "/".join([*parents, "hidden"]) in by_path:
            return None
        follower = by_path.get(other) if name == "hidden" else None
        kind, mean = _kind(parents[-1]), "/".join([*parents[:-1], _mean_of(parents[-1]), name])
    else:
        follower, kind, mean = None, _kind(name), "/".join([*parents, _mean_of(name)])
    return Statistic(place, path, kind, dtype, by_path.get(mean) if kind == "variance" else None, follower)


def _kind(name: str) -> Literal["mean", "variance", "other"]:
    last = name.split(".")[-1]
    return "variance" if _VARIANCE.fullmatch(last) else "mean" if _MEAN.fullmatch(last) else "other"


def _mean_of(name: str) -> str:
    return re.sub(r"(variance|var)(?=(_ema|_\d+)?$)", "mean", name)


def _places_in_states(tree: PyTree) -> dict[int, int | None]:
    """Position of a leaf inside Equinox's `State` -> for a mean of a BatchNorm the position of its variance."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return {}
    kind, found, place = equinox.nn.State, {}, 0
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)):
        if not isinstance(node, kind):
            place += 1
            continue
        values, _ = node.tree_flatten()
        for value in values:
            leaves = jax.tree.leaves(value)
            found |= {place + i: None for i in range(len(leaves))}
            is_pair = isinstance(value, tuple) and len(value) == len(leaves) == 2
            if is_pair and all(map(is_float_array, leaves)) and leaves[0].shape == leaves[1].shape:
                found[place] = place + 1
            place += len(leaves)
    return found
