"""One training in two processes of four devices each: both prune the same weights, and hold only their own shards.

Start both, on one machine or on two; all processes take the address of the first:

XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/two_processes.py localhost:1234 2 0 &
XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/two_processes.py localhost:1234 2 1
"""

import sys

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp


def main(address: str, processes: int, process: int, steps: int = 20) -> float:
    jax.distributed.initialize(address, num_processes=processes, process_id=process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    sharded, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def init(key):
        a, b = jax.random.split(key)
        return {"up": jax.random.normal(a, (64, 256)) / 8, "down": jax.random.normal(b, (256, 8)) / 16}

    def loss_fn(params, x):
        return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"] - jnp.sin(x[:, :8])) ** 2)

    tx = jp.gradual(optax.adam(1e-3), jp.schedules.cubic(0.8, begin=0, end=steps // 2, every=2))

    @jax.jit
    def step(params, opt_state, key):
        x = jax.lax.with_sharding_constraint(jax.random.normal(key, (64, 64)), sharded)
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, x), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    # Every process runs the same program with the same keys; the arrays are made where they shall lie.
    params = jax.jit(init, out_shardings=sharded)(jax.random.key(0))
    opt_state = jax.jit(tx.init)(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, opt_state = jax.block_until_ready(step(params, opt_state, key))

    kept = jax.jit(lambda masks: sum(m.sum() for m in jax.tree.leaves(masks)), out_shardings=whole)
    number = int(kept(jp.get_masks(opt_state)))
    here = len(params["up"].addressable_shards)
    print(f"process {process}: {number} of {64 * 256 + 256 * 8} weights kept; {here} shards of 'up' are here")
    jax.distributed.shutdown()
    return number


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
