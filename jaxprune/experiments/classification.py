"""Image classification: a network, its data, and the pure functions that train and evaluate it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from jaxprune.experiments import models
from jaxprune.experiments.data import Data, Split
from jaxprune.params import PyTree

_MOST_AT_ONCE = 250  # images: more take no less time, and the patches of a convolution hundreds of megabytes


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """An image classification task; made by `classification`. All methods are pure.

    model: images -> logits; train, validation, test: on the device; batch_size: images per step.
    """

    model: nn.Module
    train: Split
    validation: Split
    test: Split
    batch_size: int

    def init_fn(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        return self.model.init(key, jnp.zeros((1, *self.train.images.shape[1:])))["params"]

    def logits(self, params: PyTree, images: jax.Array) -> jax.Array:
        """(N, H, W, 1) -> (N, classes)."""
        found: Any = self.model.apply({"params": params}, images)
        return found

    def loss_and_accuracy(
        self, params: PyTree, split: Split, fn: Callable[..., jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Means over the images; `fn` is another function than `logits`."""
        logits = (fn or self.logits)(params, split.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
        return losses.mean(), (logits.argmax(-1) == split.labels).mean()

    def loss_fn(self, params: PyTree, batch: Split) -> jax.Array:
        """Mean cross-entropy of a batch."""
        return self.loss_and_accuracy(params, batch)[0]

    def train_step(self, state: TrainState, batch: Split) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of the optimizer in the state."""
        loss, grads = jax.value_and_grad(self.loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads), {"loss": loss}

    def batch_fn(self, key: jax.Array, step: jax.Array) -> Split:
        """The batch of a step."""
        return self.draw(jax.random.fold_in(key, step), self.batch_size)

    def draw(self, key: jax.Array, count: int) -> Split:
        """Training images that are drawn with replacement."""
        drawn = jax.random.randint(key, (count,), 0, len(self.train.labels))
        return Split(self.train.images[drawn], self.train.labels[drawn])

    def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
        """`measure` of the parameters in the state."""
        return self.measure(state.params)

    def measure(self, params: PyTree, fn: Callable[..., jax.Array] | None = None) -> dict[str, jax.Array]:
        """Loss and accuracy on all images of the validation and test splits; `fn` is another function than `logits`."""
        metrics = {}
        for name, split in (("validation", self.validation), ("test", self.test)):
            parts = jax.lax.map(lambda part: self.loss_and_accuracy(params, part, fn), _in_parts(split))
            metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = (part.mean() for part in parts)
        return metrics


def classification(model: models.Name, data: Data, batch_size: int) -> Classification:
    """The task of training the network of this name on this data."""
    train, validation, test = map(_on_device, data)
    return Classification(models.build(model), train, validation, test, batch_size)


def _in_parts(split: Split) -> Split:
    """The array with a leading axis of equal parts, as few as keep the memory small."""
    count = len(split.labels)
    parts = next(k for k in range(-(-count // _MOST_AT_ONCE), count + 1) if count % k == 0)
    return Split(*(array.reshape(parts, count // parts, *array.shape[1:]) for array in split))


def _on_device(split: Split) -> Split:
    return Split(*(jnp.asarray(np.asarray(array)) for array in split))
