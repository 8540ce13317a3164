"""A ResNet of Haiku with random weights: `jaxprune shrink examples/haiku_resnet.py --flops 0.5 --out DIR`."""

import haiku as hk
import jax
import numpy as np

import jaxprune as jp


def net(images, is_training):
    sizes = {"channels_per_group": (16, 32, 64, 128), "logits_config": {"w_init": None}}
    return hk.nets.ResNet((1, 1, 1, 1), 10, bottleneck=False, **sizes)(images, is_training)


def build():
    model, random = hk.without_apply_rng(hk.transform_with_state(net)), np.random.default_rng(0)
    images = random.normal(size=(32, 64, 64, 3)).astype(np.float32)
    params, state = jax.eval_shape(lambda key: model.init(key, images, True), jax.random.key(0))
    params = jax.tree.map(lambda x: random.normal(size=x.shape, scale=0.1).astype(x.dtype), params)
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)
    batches = [(images[:16],), (images[16:],)]
    return jp.Model(lambda v, x: model.apply(*v, x, False)[0], (params, state), (images[:4],), batches)
