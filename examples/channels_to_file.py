"""A convolutional network loses half of its FLOPs and becomes files that run without jaxprune and without its code.

python examples/channels_to_file.py --out digits        # needs scikit-learn, and jaxprune[export] for ONNX
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxprune as jp


def loss_fn(net, batch):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]).mean()


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--formats", nargs="+", default=["safetensors", "stablehlo", "onnx"])
    parser.add_argument("--out", default="digits")
    options = parser.parse_args(argv)

    images, y = map(jnp.asarray, load_digits(return_X_y=True))
    x = images.astype(jnp.float32).reshape(-1, 8, 8, 1) / 16
    inputs, targets = x[:1400].reshape(5, 280, 8, 8, 1), y[:1400].reshape(5, 280)
    rngs = nnx.Rngs(0)
    first = (nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.relu)
    second = (nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(32, rngs=rngs), nnx.relu)
    model = nnx.Sequential(*first, *second, jax.vmap(jnp.ravel), nnx.Linear(128, 10, rngs=rngs))

    training = jp.nnx_state(model, optax.adam(3e-3), loss_fn)
    state, step = training.state, jax.jit(training.train_step)
    for i in range(options.steps):
        state, _ = step(state, (inputs[i % 5], targets[i % 5]))
    training.update(state)  # the module holds what was trained, statistics included
    model.eval()
    graph, dense = nnx.split(model)

    def fn(variables, x):
        return nnx.merge(graph, variables)(x)

    groups = jp.find_groups(fn, dense, x[:4])
    scores = jp.surgery.activation_scores(groups, dense, inputs)
    plan = jp.plan_removal(groups, dense, 0.5, "global", score=scores, budget="flops", round_to=4)
    small, small_fn = plan.shrink(dense), plan.compact(fn)
    healed = jp.distill(small_fn, small, fn, dense, inputs, optax.adam(3e-3), steps=options.steps, loss="kl")
    for name, f, v in (("dense", fn, dense), ("small", small_fn, small), ("healed", small_fn, healed)):
        print(f"{name}: test accuracy {float((f(v, x[1400:]).argmax(-1) == y[1400:]).mean()):.1%}")
    choices = {"plan": plan, "reference": (fn, dense), "formats": options.formats}
    print(jp.export(options.out, small_fn, healed, x[:4], **choices))


if __name__ == "__main__":
    main()
