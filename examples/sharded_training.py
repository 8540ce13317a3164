"""Gradual pruning on eight devices: weights and their masks are sharded alike, and nothing is gathered.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/sharded_training.py     # or on 8 real devices
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(argv)

    # Four groups of two devices: batches are split over "data", weights over "model".
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    up, down = jax.random.split(jax.random.key(0))
    params = {
        "up": jax.random.normal(up, (64, options.width)) / 8,
        "down": jax.random.normal(down, (options.width, 16)) / options.width**0.5,
    }
    specs = {"up": P(None, "model"), "down": P("model", None)}
    params = {name: jax.device_put(w, NamedSharding(mesh, specs[name])) for name, w in params.items()}

    def loss_fn(params, key):
        x = jax.random.normal(key, (64, 64))
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data", None)))
        return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"] - jnp.sin(x[:, :16])) ** 2)

    schedule = jp.schedules.cubic(0.8, begin=0, end=options.steps // 2, every=max(options.steps // 20, 1))
    tx = jp.gradual(optax.adam(1e-3), schedule)

    @jax.jit
    def step(params, opt_state, key):
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, key), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.jit(tx.init)(params)
    for key in jax.random.split(jax.random.key(1), options.steps):
        # On virtual CPU devices wait for each step: queued collectives can wait for each other.
        params, opt_state = jax.block_until_ready(step(params, opt_state, key))

    masks = jp.get_masks(opt_state)
    print(jp.summary(params, masks))
    print(f"'up' lies as {params['up'].sharding.spec}, its mask as {masks['up'].sharding.spec}")
    return params, masks


if __name__ == "__main__":
    main()
