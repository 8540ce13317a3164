"""Lottery tickets of five seeds side by side, as one program, and a plot of their accuracies.

python examples/imp_five_seeds.py --out tickets.png        # needs scikit-learn and matplotlib
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxprune as jp


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", default="tickets.png")
    args = parser.parse_args(argv)

    images, y = map(jnp.asarray, load_digits(return_X_y=True))
    x = images.astype(jnp.float32) / 16

    def init(key):
        shapes, draw = ((64, 300), (300, 100), (100, 10)), jax.nn.initializers.lecun_normal()
        return [draw(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)]

    def logits(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]

    def train_step(state, rows):
        def loss_fn(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, x[rows]), y[rows]).mean()

        return state.apply_gradients(grads=jax.grad(loss_fn)(state.params)), {}

    def batch_fn(key, step):
        return jax.random.randint(jax.random.fold_in(key, step), (60,), 0, 1400)

    def evaluate(state):
        return {"accuracy": (logits(state.params, x[1400:]).argmax(-1) == y[1400:]).mean()}

    imp = jp.imp(train_step, batch_fn, steps=args.steps, rounds=args.rounds, rate=0.2, evaluate=evaluate)

    def experiment(key):
        return imp.run(key, jp.TrainState.create(params=init(key), tx=jp.masked(optax.adam(1.2e-3))))

    _, history = jax.jit(jax.vmap(experiment))(jax.random.split(jax.random.key(0), args.seeds))
    for sparsity, row in zip(history.sparsity[0], history.evaluation["accuracy"].T, strict=True):
        print(f"{float(sparsity):6.1%} pruned: {float(row.mean()):.1%} ± {float(row.std()):.1%}")
    jp.plots.history(history).savefig(args.out)


if __name__ == "__main__":
    main()
