"""Functional pruning for JAX: scores, masks, schedules, lottery tickets and real removal."""

from jaxprune.params import prunable

__all__ = ["prunable"]
