"""A ResNet of Haiku, untrained: `jaxprune inspect examples/haiku_resnet.py`."""

import haiku as hk
import jax
import jaxprune as jp


def net(x, is_training=False):
    return hk.nets.ResNet((1, 1, 1, 1), 10, channels_per_group=(16, 32, 64, 128), bottleneck=False)(x, is_training)


def build():
    model = hk.without_apply_rng(hk.transform_with_state(net))
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    params, state = hk.transform_with_state(net).init(jax.random.key(1), images[:8], is_training=True)
    return jp.Model(
        fn=lambda v, x: model.apply(v["params"], v["state"], x)[0],
        params={"params": params, "state": state},
        inputs=(images[:8],),
        batches=[(images[:32],), (images[32:],)],
    )
