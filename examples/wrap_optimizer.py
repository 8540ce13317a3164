"""A network for handwritten digits, pruned to 90 % while it trains. One line differs from dense training.

python examples/wrap_optimizer.py --sparsity 0.9        # needs scikit-learn
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxprune as jp


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args(argv)

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs))
    graph, params = nnx.split(model)

    def loss_fn(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y).mean()

    until = max(options.steps * 3 // 4, 1)
    schedule = jp.schedules.cubic(options.sparsity, begin=0, end=until, every=max(until // 50, 1))
    tx = jp.gradual(optax.adam(1e-3), schedule)  # this line is new

    @jax.jit
    def step(params, opt_state, key):
        rows = jax.random.randint(key, (64,), 0, 1400)
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, x[rows], y[rows]), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for key in jax.random.split(jax.random.key(0), options.steps):
        params, opt_state = step(params, opt_state, key)

    nnx.update(model, params)
    accuracy = float((model(x[1400:]).argmax(-1) == y[1400:]).mean())
    print(jp.summary(params, jp.get_masks(opt_state)))
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
