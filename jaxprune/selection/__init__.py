"""Which entries are pruned: the k smallest scores, exactly, without sorting, gathering or concatenating them."""

from jaxprune.selection.counts import Count, as_written, count_to_prune
from jaxprune.selection.groups import nm_keep
from jaxprune.selection.on_host import is_fine
from jaxprune.selection.smallest import select

__all__ = ["Count", "as_written", "count_to_prune", "is_fine", "nm_keep", "select"]
