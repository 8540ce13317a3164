"""Random scores of branches, the baseline."""

from __future__ import annotations

import jax

from jaxprune.surgery.layers.branches import Branches


def random_branches(branches: Branches, key: jax.Array) -> dict[str, float]:
    """Uniform random scores.

    Args:
      branches: what `find_branches` found.
      key: a PRNG key.

    Returns:
      Branch name -> score in [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"f": jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> branches = jp.find_branches(lambda p, x: (x + x @ p["f"]) @ p["head"], params, jnp.ones((1, 2)))
      >>> list(jp.surgery.random_branches(branches, jax.random.key(0)))
      ['f']
    """
    return dict(zip(branches.keys(), jax.random.uniform(key, (len(branches),)).tolist(), strict=True))
