import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxprune import matmul_conv

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("padding", ["SAME", "VALID", "SAME_LOWER", [(2, 0), (1, 3)], [(-1, 0), (0, -2)]])
@pytest.mark.parametrize(
    ("strides", "dilation", "kernel"),
    [((1, 1), (1, 1), (3, 3)), ((2, 1), (1, 1), (3, 2)), ((2, 3), (2, 1), (2, 3)), ((1, 2), (1, 2), (1, 1))],
)
def test_equals_the_native_convolution(padding, strides, dilation, kernel):
    x, w = draw(2, 9, 8, 3), draw(*kernel, 3, 4, seed=1)
    call = {
        "window_strides": strides,
        "padding": padding,
        "rhs_dilation": dilation,
        "dimension_numbers": NHWC,
    }
    np.testing.assert_allclose(
        matmul_conv(x, w, **call), lax.conv_general_dilated(x, w, **call), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [1, 3])
def test_any_number_of_spatial_axes(spatial):
    x, w = draw(2, *(5,) * spatial, 3), draw(*(3,) * spatial, 3, 4, seed=1)
    names = "DHW"[-spatial:]
    call = {
        "window_strides": (2,) * spatial,
        "padding": "SAME",
        "dimension_numbers": (f"N{names}C", f"{names}IO", f"N{names}C"),
    }
    np.testing.assert_allclose(
        matmul_conv(x, w, **call), lax.conv_general_dilated(x, w, **call), rtol=1e-5, atol=1e-5
    )


def test_a_dilated_input_equals_the_native_convolution():
    x, w = draw(2, 4, 5, 3), draw(3, 3, 3, 4, seed=1)
    call = {
        "window_strides": (1, 1),
        "padding": [(1, 2), (0, 1)],
        "lhs_dilation": (2, 3),
        "dimension_numbers": NHWC,
    }
    np.testing.assert_allclose(
        matmul_conv(x, w, **call), lax.conv_general_dilated(x, w, **call), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_gradients_equal_the_native_ones():
    x, w = draw(2, 6, 6, 3), draw(3, 3, 3, 4, seed=1)

    def total(conv, x, w):
        return jnp.sin(conv(x, w, (2, 2), "SAME", dimension_numbers=NHWC)).sum()

    ours = jax.grad(functools.partial(total, matmul_conv), (0, 1))(x, w)
    native = jax.grad(functools.partial(total, lax.conv_general_dilated), (0, 1))(x, w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, native)


def test_a_window_larger_than_the_input_gives_an_empty_output():
    assert matmul_conv(draw(2, 2, 2, 3), draw(3, 3, 3, 4), (1, 1), "VALID", dimension_numbers=NHWC).shape == (
        2,
        0,
        0,
        4,
    )


@pytest.mark.slow
def test_preferred_element_type_and_precision_are_passed_on():
    x, w = draw(1, 4, 4, 2).astype(jnp.bfloat16), draw(3, 3, 2, 2).astype(jnp.bfloat16)
    out = matmul_conv(
        x, w, (1, 1), "SAME", dimension_numbers=NHWC, precision="highest", preferred_element_type=jnp.float32
    )
    assert out.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1])
def test_serves_linen_and_nnx_with_the_same_kernel(padding):
    x = draw(2, 8, 8, 3)
    args = {"features": 4, "kernel_size": (3, 3), "strides": 2, "padding": padding, "kernel_dilation": 1}
    native, ours = nn.Conv(**args), nn.Conv(**args, conv_general_dilated=matmul_conv)
    variables = native.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), native.apply(variables, x), rtol=1e-5, atol=1e-5)
    nnx_args = {"strides": 2, "padding": padding}
    native = nnx.Conv(3, 4, (3, 3), **nnx_args, rngs=nnx.Rngs(0))
    ours = nnx.Conv(3, 4, (3, 3), **nnx_args, conv_general_dilated=matmul_conv, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ours(x), native(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"feature_group_count": 3}, "`feature_group_count` must be 1, got 3"),
        ({"batch_group_count": 2}, "`batch_group_count` must be 1, got 2"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "channels last"),
        ({"dimension_numbers": None}, "channels last"),
        ({"window_strides": (1,)}, "`window_strides` must hold 2 factors"),
        ({"rhs_dilation": (0, 1)}, "`rhs_dilation` must hold 2 factors"),
        ({"padding": [(1, 1)]}, "`padding` must be"),
        ({"lhs_dilation": (2, 2)}, "`padding` must be numbers"),
        ({"rhs": draw(3, 3, 2, 4)}, "must have the 3 input channels"),
        ({"rhs": draw(3, 3, 4)}, "same number of axes"),
    ],
)
def test_what_it_does_not_do_is_an_error_that_says_so(call, message):
    call = {
        "lhs": draw(2, 6, 6, 3),
        "rhs": draw(3, 3, 3, 4),
        "window_strides": (1, 1),
        "padding": "SAME",
    } | call
    call = {"dimension_numbers": NHWC} | call
    with pytest.raises(ValueError, match=message):
        matmul_conv(**call)


@pytest.mark.slow
def test_needs_jax_alone():
    code = (
        "import sys; from importlib.abc import MetaPathFinder\n"
        "class Missing(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('sklearn', 'matplotlib', 'tyro', 'orbax'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from jaxprune import matmul_conv\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_old_name_still_works_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"it is `jaxprune\.matmul_conv` now"):
        from jaxprune.demo import matmul_conv as old
    assert old is matmul_conv
    with pytest.raises(ImportError):
        from jaxprune.demo import data  # noqa: F401
