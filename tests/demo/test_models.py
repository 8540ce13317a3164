import jax
import numpy as np
import pytest

from jaxprune.experiments import models


def test_lenet_has_the_weights_of_the_paper():
    images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    params = models.build("mlp").init(jax.random.key(1), images)["params"]
    assert [params[f"Dense_{i}"]["kernel"].shape for i in range(3)] == [(784, 300), (300, 100), (100, 10)]
    kernel = params["Dense_0"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / 1084) ** 0.5, rel=0.01)


def test_the_vgg_has_one_convolution_and_then_blocks_of_two():
    params = jax.eval_shape(models.build("vgg").init, jax.random.key(1), np.zeros((1, 28, 28, 1)))["params"]
    shapes = [params[f"Conv_{i}"]["kernel"].shape[2:] for i in range(5)]
    assert shapes == [(1, 8), (8, 16), (16, 16), (16, 32), (32, 32)]
    assert params["Dense_0"]["kernel"].shape == (32, 10) and len(params) == 6


@pytest.mark.slow
@pytest.mark.parametrize("network", [models.SmallCNN, models.SmallVGG])
def test_a_cnn_is_the_same_with_the_native_convolution(network):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    ours, native = network(), network(conv=None)
    variables = jax.jit(ours.init)(jax.random.key(1), images)
    one, other = (jax.jit(model.apply)(variables, images) for model in (ours, native))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
