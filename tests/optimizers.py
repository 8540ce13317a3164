"""Every optimizer, and a small model to train with each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "sgd_momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "adamw_bf16_moments": lambda: optax.adamw(0.1, mu_dtype=jnp.bfloat16),
    "nadam": lambda: optax.nadam(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "lion": lambda: optax.lion(0.01),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "adafactor_momentum": lambda: optax.adafactor(0.1, min_dim_size_to_factor=128, momentum=0.9),
    "adagrad": lambda: optax.adagrad(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "lars": lambda: optax.lars(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "sm3": lambda: optax.sm3(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=lambda step: 0.1 / (1 + step)
    ),
    "chain_with_clipping": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.adam(0.1), optax.ema(0.9)
    ),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "noisy": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "partition": lambda: optax.partition(
        {"w": optax.adamw(0.1), "other": optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda p: "w" if p.ndim > 1 else "other", params),
    ),
    "lookahead_free_params_mask": lambda: optax.masked(
        optax.adamw(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
}


def params_of(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (8, 16), dtype), "bias": jnp.ones(16, dtype)},
        "Dense_1": {"kernel": jax.random.normal(keys[1], (16, 4), dtype), "bias": jnp.ones(4, dtype)},
    }


def loss(params, x):
    h = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    return jnp.mean(
        (h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"] - 1).astype(jnp.float32) ** 2
    )


def inputs(dtype=jnp.float32):
    return jax.random.normal(jax.random.key(9), (8, 8), dtype)


def step_of(tx, x):
    def step(params, state):
        step.traces += 1
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step.traces = 0
    return step


def assert_exact_zeros(params, masks):
    for w, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        dead = np.asarray(w)[~np.broadcast_to(np.asarray(mask), w.shape)]
        assert (dead == 0).all() and not np.signbit(dead.astype(np.float32)).any(), "exactly +0.0"


def masks_for(params, sparsity=0.6, **kwargs):
    return jp.make_masks(jp.scores.magnitude(params), sparsity, **kwargs)


def wrap(kind, inner, params):
    if kind == "masked":
        return jp.masked(inner, masks_for(params))
    return jp.gradual(inner, jp.schedules.linear(0.5, begin=0, end=2))
