"""The figures of `questions.md`: what each choice of a pruning method looks like, drawn from what the library does.

python docs/figures.py          # writes docs/figures/*.png; needs matplotlib and scikit-learn
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import jaxprune as jp

FOLDER = Path(__file__).parent / "figures"
KEPT, PRUNED = "#3366aa", "#e8e8e8"


def model(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def structures() -> Figure:
    """One matrix under the masks of each structure, and as the smaller array that removed units leave."""
    keys = jax.random.split(jax.random.key(3))
    params = {"up": jax.random.normal(keys[0], (16, 16)), "down": jax.random.normal(keys[1], (16, 4))}
    scores = jp.scores.magnitude(params)
    drawn = {
        "Unstructured()": jp.make_masks(scores, 0.5),
        "NM(2, 4)": jp.make_masks(scores, 0.5, structure=jp.NM(2, 4, axis=0)),
        "Block((4, 4))": jp.make_masks(scores, 0.5, structure=jp.Block((4, 4))),
        "Channels()": jp.make_masks(scores, 0.5, scope="local", structure=jp.Channels()),
    }
    groups = jp.find_groups(model, params, jnp.ones((1, 16)))
    small = jp.plan_removal(groups, params, 0.5, budget="units").shrink(params)
    figure = Figure(figsize=(11, 2.9), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 5)
    for ax, (name, masks) in zip(axes, drawn.items(), strict=False):
        _matrix(ax, np.broadcast_to(masks["up"], (16, 16)), name)
    _matrix(axes[4], np.ones(small["up"].shape, bool), f"removed: 16 x {small['up'].shape[1]}")
    axes[4].set_xlim(-0.5, 15.5)
    figure.supxlabel("outputs", fontsize=9)
    axes[0].set_ylabel("inputs", fontsize=9)
    return figure


def _matrix(ax: Any, keep: np.ndarray, title: str) -> None:
    image = np.where(keep[..., None], _rgb(KEPT), _rgb(PRUNED))
    ax.imshow(image, interpolation="nearest")
    ax.set_xticks(np.arange(-0.5, keep.shape[1]), [])
    ax.set_yticks(np.arange(-0.5, keep.shape[0]), [])
    ax.grid(color="white", linewidth=0.7)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title, fontsize=10)


def _rgb(text: str) -> np.ndarray:
    return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def digits() -> tuple[jax.Array, jax.Array]:
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)


def scope() -> Figure:
    """What a global and a local threshold prune of each layer of a network that was trained on digits."""
    x, y = digits()
    shapes = {"first": (64, 128), "second": (128, 64), "third": (64, 10)}
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.nn.initializers.lecun_normal()
    params = {name: draw(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def loss_fn(params: Any) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu(x @ params["first"]) @ params["second"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["third"], y).mean()

    tx = optax.adam(3e-3)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=300)[0][0])(params)
    figure = Figure(figsize=(6.5, 3), layout="constrained", facecolor="white")
    ax = figure.subplots()
    for i, (name, color) in enumerate((("global", KEPT), ("local", "#cc7722"))):
        masks = jp.make_masks(jp.scores.magnitude(params), 0.9, scope=name)
        pruned = [100 * (1 - float(np.mean(masks[layer]))) for layer in shapes]
        bars = ax.bar(np.arange(3) + 0.38 * (i - 0.5), pruned, 0.36, color=color, label=f'scope="{name}"')
        ax.bar_label(bars, fmt="%.0f %%", fontsize=9)
    ax.set_xticks(range(3), [f"{name}, {a} x {b}" for name, (a, b) in shapes.items()])
    ax.set_ylabel("pruned, %")
    ax.set_ylim(0, 105)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return _plain(figure, ax)


def schedules() -> Figure:
    """Sparsity against the step of training for the ways to reach 90 %."""
    steps = np.arange(0, 1001)
    drawn = {
        "one-shot": jp.schedules.one_shot(0.9, step=500),
        "recursive, 5 rounds": jp.schedules.geometric(1 - 0.1**0.2, rounds=5, begin=100, every=150),
        "gradual, cubic": jp.schedules.cubic(0.9, begin=100, end=750, every=10),
    }
    figure = Figure(figsize=(6.5, 3), layout="constrained", facecolor="white")
    ax = figure.subplots()
    for (name, schedule), color in zip(drawn.items(), ("#cc7722", KEPT, "#2e8b57"), strict=True):
        ax.plot(steps, 100 * np.asarray(jax.vmap(schedule)(steps)), color=color, label=name)
    ax.set_xlabel("step")
    ax.set_ylabel("sparsity, %")
    ax.legend(frameon=False, loc="lower right")
    return _plain(figure, ax)


def initialization() -> Figure:
    """Four weights over three trainings, with one more pruned after each of the first two."""
    target = jnp.array([1.6, -1.1, 0.8, -0.35])
    start = {"w": jnp.array([[-0.3], [0.5], [0.3], [0.4]])}

    def train_step(state: Any, batch: jax.Array) -> Any:
        grads = jax.tree.map(lambda w: w - target[:, None] + 0.5 * batch, state.params)
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state, step=state.step + 1), {}

    def batch_fn(key: jax.Array, step: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, step), (4, 1))

    def draw(key: jax.Array) -> Any:
        return {"w": jax.random.normal(key, (4, 1)) / 2}

    choices = {
        "keep: Finetune()": jp.Finetune(),
        "rewind: Rewind(step=0)": jp.Rewind(0),
        "draw anew: Reinitialize(init_fn)": jp.Reinitialize(draw),
    }
    figure = Figure(figsize=(11, 2.8), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (name, rewind) in zip(axes, choices.items(), strict=True):
        imp = jp.imp(
            train_step,
            batch_fn,
            steps=60,
            sparsities=(0.25, 0.5),
            rewind=rewind,
            evaluate=lambda state: {"w": state.params["w"]},
            every=1,
        )
        state = jp.TrainState.create(params=start, tx=jp.masked(optax.sgd(0.05)))
        _, history = jax.jit(imp.run)(jax.random.key(1), state)
        curve = np.asarray(history.curve["w"])[..., 0]  # (rounds, steps, weights)
        for weight, color in enumerate((KEPT, "#cc7722", "#2e8b57", "#993366")):
            for number, line in enumerate(curve):
                ax.plot(np.arange(len(line)) + 60 * number, line[:, weight], color=color, linewidth=1.3)
        for border in (60, 120):
            ax.axvline(border, color="#bbbbbb", linewidth=0.8, linestyle="--")
        ax.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("step, in all")
        _plain(figure, ax)
    axes[0].set_ylabel("weight")
    return figure


def _plain(figure: Figure, ax: Any) -> Figure:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return figure


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for draw in (structures, scope, schedules, initialization):
        draw().savefig(FOLDER / f"{draw.__name__}.png", dpi=110)
        print(f"docs/figures/{draw.__name__}.png")


if __name__ == "__main__":
    main()
