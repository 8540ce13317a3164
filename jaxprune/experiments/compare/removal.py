"""Methods that remove units for real: a loop on the host over seeds, rounds and sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.compare.outcome import Trained
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.compare.start import SCORED_IMAGES, Keys, first_state
from jaxprune.params import PyTree, flatten_with_paths


def run_removal(
    settings: CompareSettings,
    task: Classification,
    recipe_of: Callable[[float], jp.Recipe],
    sparsity: float,
    of_seeds: Keys,
    params: PyTree,
) -> Trained:
    """All seeds of a method at a sparsity."""
    recipe = recipe_of(sparsity)
    trainings = recipe.trainings(settings.steps)
    whole = settings.steps if recipe.continues else trainings[-1]
    found = []
    for i in range(settings.seeds):
        of_seed, first = jax.tree.map(lambda x, i=i: x[i], (of_seeds, params))
        experiment = recipe.experiment(
            lambda compact: _train_step(compact(task.loss_fn)),
            task.batch_fn,
            steps=settings.steps,
            evaluate=lambda fn, small: jax.jit(lambda of: task.measure(of, fn))(small),
            loss_fn=task.loss_fn,
            batches=[task.draw(of_seed.scores, SCORED_IMAGES)],
            fn=task.logits,
            inputs=(task.train.images[:1],),
        )
        state, history = experiment.run(of_seed.training, first_state(settings, first, whole))
        found.append((state.params, history))
    rounds = {
        name: np.stack([history.evaluation[name] for _, history in found]) for name in found[0][1].evaluation
    }
    kept = [dict(zip(*flatten_with_paths(small)[:2], strict=True)) for small, _ in found]
    return Trained(
        found[0][0],
        found[0][1].plan,
        {path: np.asarray([of[path].size for of in kept]) for path in kept[0]},
        rounds,
        {name: values[..., None] for name, values in rounds.items()},
    )


def _train_step(loss_fn: Callable[..., jax.Array]) -> Callable[[Any, Any], tuple[Any, PyTree]]:
    def step(state: Any, batch: Any) -> tuple[Any, PyTree]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads), {"loss": loss}

    return step
