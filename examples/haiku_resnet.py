"""A ResNet of Haiku, untrained: `jaxprune shrink examples/haiku_resnet.py --flops 0.5 --out small`."""

import haiku as hk
import jax

import jaxprune as jp


def net(images, is_training):
    sizes = {"channels_per_group": (16, 32, 64, 128), "logits_config": {"w_init": None}}
    return hk.nets.ResNet((1, 1, 1, 1), 10, bottleneck=False, **sizes)(images, is_training)


def build():
    model = hk.without_apply_rng(hk.transform_with_state(net))
    images = jax.random.normal(jax.random.key(0), (32, 64, 64, 3))
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(1), images[:4], True)
    return jp.Model(
        fn=lambda variables, images: model.apply(*variables, images, False)[0],
        params=variables,
        inputs=(images[:4],),
        batches=[(images[:16],), (images[16:],)],
    )
