"""The architectures of `surgery_survey.py`: those of tests/surgery, and those of other people's libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Make = Callable[[], tuple[Callable, Any, tuple[Any, ...]]]


def own_models() -> dict[str, Make]:
    """The models of tests/surgery: functions, and modules of Linen, NNX, Equinox and Haiku."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "surgery"))
    import library_models  # pyright: ignore[reportMissingImports]
    import plain_models  # pyright: ignore[reportMissingImports]

    return {**plain_models.MODELS, **library_models.MODELS}


def haiku_models() -> dict[str, Make]:
    """Networks that come with Haiku."""
    import haiku as hk

    def make(net: Callable) -> Make:
        def build():
            training = hk.transform_with_state(lambda x: net(x, is_training=True))
            testing = hk.without_apply_rng(hk.transform_with_state(lambda x: net(x, is_training=False)))
            images = normal(2, 32, 32, 3)
            variables = filled(jax.eval_shape(training.init, jax.random.key(0), images))
            return (lambda v, x: testing.apply(*v, x)[0]), variables, (images,)

        return build

    def resnet(v2: bool) -> Callable:
        widths = (16, 16, 32, 32)
        return lambda x, **kw: hk.nets.ResNet(
            (1, 2, 1, 1), 5, bottleneck=True, channels_per_group=widths, resnet_v2=v2
        )(x, **kw)

    strides, channels = (1, 2, 1, 2), (16, 32, 32, 48)
    return {
        "ResNet v1": make(resnet(False)),
        "ResNet v2": make(resnet(True)),
        "MobileNet v1": make(lambda x, **kw: hk.nets.MobileNetV1(strides, channels, 5)(x, **kw)),
        "MLP": make(lambda x, is_training: hk.nets.MLP([24, 16, 5])(hk.Flatten()(x))),
    }


def flaxmodels_models() -> dict[str, Make]:
    """Linen networks of `flaxmodels`."""
    import flaxmodels

    def make(network: Any, **kwargs: Any) -> Make:
        def build():
            images = jnp.abs(normal(1, 32, 32, 3)) % 1
            model = network(output="logits", pretrained=None, normalize=False, num_classes=5, **kwargs)
            variables = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
            return (lambda v, x: model.apply(v, x, train=False)), filled(variables), (images,)

        return build

    return {"ResNet-18": make(flaxmodels.ResNet18), "VGG-16": make(flaxmodels.VGG16, include_head=False)}


def equimo_models() -> dict[str, Make]:
    """Equinox networks of `equimo`, small."""
    import equinox as eqx
    from equimo.models import (
        convnext,
        lowformer,
        mlla,
        mobilenet,
        reduceformer,
        vit,
        vssd,
    )

    def make(network: Any, *args: Any, side: int = 32, **kwargs: Any) -> Make:
        def build():
            key = jax.random.key(0)
            model = eqx.filter_eval_shape(
                lambda: network(*args, num_classes=5, key=jax.random.key(0), **kwargs)
            )
            arrays, static = eqx.partition(
                eqx.nn.inference_mode(model), lambda x: isinstance(x, jax.ShapeDtypeStruct)
            )

            def fn(arrays: Any, x: jax.Array) -> jax.Array:
                one: Any = eqx.combine(arrays, static)
                return jax.vmap(lambda image: one(image, key=key, inference=True))(x)

            return fn, filled(arrays), (normal(2, 3, side, side),)

        return build

    four: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4]}
    five: dict[str, Any] = {"widths": [8, 8, 16, 16, 32], "depths": [1, 1, 1, 1, 1]}
    kinds = ["conv", "conv", "conv", "attention", "attention"]
    rows = [(16, 16, 3, 2, True, "relu"), (16, 32, 3, 1, False, "relu"), (24, 48, 5, 2, True, "hard_swish")]
    return {
        "ViT": make(vit.VisionTransformer, 16, 3, 32, 4, 4, [2], side=16),
        "ViT, registers, SwiGLU, QK norm": make(
            vit.VisionTransformer,
            16,
            3,
            32,
            4,
            4,
            [2],
            side=16,
            ffn_layer="swiglu",
            qk_norm=True,
            init_values=0.5,
        ),
        "ConvNeXt": make(convnext.ConvNeXt, 3, depths=[1, 1, 1, 1], dims=[8, 16, 24, 32]),
        "MobileNet v3": make(mobilenet.MobileNetv3, 3, rows, last_channels=32),
        "LowFormer": make(
            lowformer.LowFormer,
            3,
            att_strides=[1, 1, 1, 1, 1],
            block_types=kinds,
            attention_type="softmax",
            **five,
        ),
        "ReduceFormer": make(reduceformer.ReduceFormer, 3, block_types=kinds, head_dim=8, **five),
        "MLLA": make(mlla.Mlla, 32, 3, dim=16, patch_size=4, **four),
        "VSSD (Mamba 2)": make(vssd.Vssd, 32, 3, dim=16, d_state=8, patch_size=4, **four),
    }


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def filled(shapes: Any) -> Any:
    """Random numbers of a plausible size in place of abstract arrays; variances are positive."""
    rng = np.random.default_rng(1)

    def one(path: Any, leaf: Any) -> Any:
        values = rng.normal(size=leaf.shape) / np.sqrt(
            max(np.prod(leaf.shape) / max(leaf.shape, default=1), 1)
        )
        if "var" in jax.tree_util.keystr(path).lower():
            values = 0.5 + np.abs(values)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)
