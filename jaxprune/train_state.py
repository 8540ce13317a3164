"""A state of training for parameters of any kind."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """What flax's `TrainState` is, for any pytree of parameters, and with a place for all else that training changes.

    Flax's own takes mappings and arrays as parameters, and no Equinox module. `create` makes a state, `replace` a
    copy with other fields. Subclasses may add fields.

    Args:
      params: the parameters.
      opt_state: the state of the optimizer.
      rest: everything else that changes: statistics of norms, random keys.
      step: number of steps, int32.
      tx: the optimizer, which is static.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> state = jp.TrainState.create(params=[jnp.ones(2)], tx=optax.sgd(0.1), rest={"key": jax.random.key(0)})
      >>> state = state.apply_gradients(grads=[jnp.array([1.0, 2.0])])
      >>> state.params, int(state.step)
      ([Array([0.9, 0.8], dtype=float32)], 1)
    """

    params: Any
    opt_state: Any
    rest: Any
    step: Any
    tx: Any = struct.field(pytree_node=False)

    @classmethod
    def create(cls, *, params: Any, tx: Any, rest: Any = (), **fields: Any) -> Any:
        """The state before the first step."""
        return cls(params, tx.init(params), rest, jnp.zeros([], jnp.int32), tx, **fields)

    def apply_gradients(self, *, grads: Any, **fields: Any) -> Any:
        """The state after a step of the optimizer; `fields` are the new values of others, such as `rest`."""
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(params=params, opt_state=opt_state, step=self.step + 1, **fields)
