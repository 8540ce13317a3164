"""Surgery: what removing channels, heads and units brings in size, FLOPs and measured CPU latency.

python benchmarks/surgery.py accuracy   # a residual CNN on digits: one shot and recursive, with fine-tuning
python benchmarks/surgery.py speed      # ResNet-18-like and ViT-S-like: seconds to analyse, latency gain
python benchmarks/surgery.py torch      # the same shapes with Torch-Pruning (needs the `bench` extra)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxprune as jp
from jaxprune.surgery import cost
from jaxprune.surgery.kept import Keep

BATCHES = (1, 32)


class ResNet(nn.Module):
    """ResNet-18: basic blocks, widths 64 to 512."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    classes: int = 1000
    small_input: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x)

        def conv(x, width, size, stride=1):
            return nn.Conv(width, (size, size), (stride, stride), use_bias=False)(x)

        if self.small_input:
            x = nn.relu(norm(conv(x, self.widths[0], 3)))
        else:
            x = nn.relu(norm(conv(x, self.widths[0], 7, 2)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(norm(conv(x, width, 3, stride)))
                y = norm(conv(y, width, 3))
                if x.shape != y.shape:
                    x = norm(conv(x, width, 1, stride))
                x = nn.relu(x + y)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class ViT(nn.Module):
    """ViT-S: width 384, 6 heads, 12 layers, 16 x 16 patches."""

    width: int = 384
    heads: int = 6
    depth: int = 12

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (16, 16), (16, 16))(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.depth):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(1))


def best_seconds(run: Callable[[], Any], budget: float = 4.0) -> float:
    """Shortest of the runs that fit a time budget, at least three."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def latency(fn: Callable, params: Any, image: int) -> list[float]:
    compiled = jax.jit(fn)
    out = []
    for batch in BATCHES:
        x = jnp.ones((batch, image, image, 3))
        out.append(best_seconds(lambda x=x: jax.block_until_ready(compiled(params, x))))
    return out


def count(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def xla_flops(fn: Callable, *args: Any) -> float:
    analysis: Any = jax.jit(fn).lower(*args).compile().cost_analysis()
    return analysis["flops"]


def speed() -> None:
    """Half of every prunable width of a ResNet-18 and a ViT-S, without the residual streams of the ViT."""
    print("jaxprune, JAX", jax.__version__)
    for name, model, image in (("ResNet-18", ResNet(), 112), ("ViT-S/16", ViT(), 96)):
        x = jnp.ones((1, image, image, 3))
        params = jax.jit(model.init)(jax.random.key(0), x)
        fn = model.apply
        start = time.perf_counter()
        groups = jp.find_groups(fn, params, x)
        found = time.perf_counter() - start
        start = time.perf_counter()
        plan = jp.plan_removal(groups, params, 0.5, budget="units")
        small, small_fn = plan.shrink(params), plan.compact(fn)
        jax.block_until_ready(small)
        planned = time.perf_counter() - start
        before, after = latency(fn, params, image), latency(small_fn, small, image)
        macs = [f / 2 for f in (cost.flops(groups.model.frame, Keep()), _small_flops(small_fn, small, x))]
        row(name, found, planned, (count(params), count(small)), macs, before, after)


def _small_flops(fn: Callable, params: Any, x: Any) -> int:
    return cost.flops(jp.find_groups(fn, params, x).model.frame, Keep())


def row(name: str, found: float, planned: float, sizes: Any, macs: Any, before: Any, after: Any) -> None:
    gain = macs[0] / macs[1]
    print(
        f"{name:<10} analysis {found:.2f} s, plan and slices {planned:.2f} s, "
        f"parameters {sizes[0] / 1e6:.1f} -> {sizes[1] / 1e6:.1f} M, "
        f"MACs {macs[0] / 1e6:.0f} -> {macs[1] / 1e6:.0f} M ({gain:.2f}x)"
    )
    for batch, old, new in zip(BATCHES, before, after, strict=True):
        print(
            f"    batch {batch:>2}: {old * 1e3:7.1f} -> {new * 1e3:7.1f} ms ({old / new:.2f}x, "
            f"{old / new / gain:.0%} of the MAC gain)",
            flush=True,
        )


def accuracy() -> None:
    """A residual CNN with BatchNorm on scikit-learn's digits: train, remove, fine-tune."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = jnp.asarray(images[order].reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(labels[order])
    data = (images[:1400], labels[:1400], images[1400:], labels[1400:])
    settings = {"widths": (32, 64), "blocks": 2, "classes": 10, "small_input": True}
    training, testing = ResNet(train=True, **settings), ResNet(**settings)

    def train_fn(variables, x):
        return training.apply(variables, x, mutable=["batch_stats"])

    variables = testing.init(jax.random.key(0), images[:1])
    variables = train(train_fn, variables, data, steps=300, rate=3e-3)
    header = f"{'':<34} accuracy   parameters   XLA MFLOPs   ms at batch 1, 32"
    print(header)
    report("dense", testing.apply, variables, data)
    example = images[:1]
    groups = jp.find_groups(testing.apply, variables, example)
    for share in (0.5, 0.7):
        plan = jp.plan_removal(groups, variables, share, budget="units")
        small_test, small_train = plan.compact(testing.apply), _stateful(plan, train_fn)
        small = plan.shrink(variables)
        report(f"{share:.0%} of channels, one shot", small_test, small, data)
        small = train(small_train, small, data, steps=150, rate=1e-3)
        report("    and fine-tuned", small_test, small, data)
        small, plan = variables, jp.plan_removal(groups, variables, 0.0)
        rounds = 3
        for _ in range(rounds):
            stage = jp.find_groups(plan.compact(testing.apply), small, example)
            step = jp.plan_removal(stage, small, 1 - (1 - share) ** (1 / rounds), budget="units")
            small, plan = step.shrink(small), plan.then(step)
            small = train(_stateful(plan, train_fn), small, data, steps=50, rate=1e-3)
        report(f"{share:.0%} in {rounds} rounds of fine-tuning", plan.compact(testing.apply), small, data)


def _stateful(plan: jp.Plan, train_fn: Callable) -> Callable:
    def state(variables, outputs):
        return variables["batch_stats"], outputs[1]["batch_stats"]

    return jp.Plan(plan.shapes, plan.kept, state).compact(train_fn)


def train(fn: Callable, variables: Any, data: Any, steps: int, rate: float) -> Any:
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps))
    images, labels = data[:2]

    def loss(params, stats, x, y):
        logits, new = fn({"params": params, "batch_stats": stats}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

    @jax.jit
    def step(params, stats, opt_state, key):
        index = jax.random.randint(key, (64,), 0, len(labels))
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, images[index], labels[index])
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    params, stats = variables["params"], variables["batch_stats"]
    opt_state = tx.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, stats, opt_state = step(params, stats, opt_state, key)
    return {"params": params, "batch_stats": stats}


def report(name: str, fn: Callable, variables: Any, data: Any) -> None:
    images, labels = data[2:]
    correct = float((jax.jit(fn)(variables, images).argmax(-1) == labels).mean())
    flops = xla_flops(fn, variables, images[:1])
    times = []
    for batch in BATCHES:
        compiled, x = jax.jit(fn), images[:batch]
        times.append(best_seconds(lambda c=compiled, x=x: jax.block_until_ready(c(variables, x)), 1.0))
    print(
        f"{name:<34} {correct:8.2%} {count(variables['params']):>12,} {flops / 1e6:>12.2f}   "
        f"{times[0] * 1e3:.2f}, {times[1] * 1e3:.2f}",
        flush=True,
    )


def torch_pruning() -> None:
    """The same two shapes with Torch-Pruning."""
    import torch
    import torch_pruning as tp_typed
    from torch import nn as tnn

    tp: Any = tp_typed  # its annotations are narrower than what it takes

    class Block(tnn.Module):
        def __init__(self, inner, outer, stride):
            super().__init__()
            self.a = tnn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.b = tnn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.na, self.nb = tnn.BatchNorm2d(outer), tnn.BatchNorm2d(outer)
            self.short = tnn.Sequential()
            if stride > 1 or inner != outer:
                self.short = tnn.Sequential(
                    tnn.Conv2d(inner, outer, 1, stride, bias=False), tnn.BatchNorm2d(outer)
                )

        def forward(self, x):
            y = self.nb(self.b(torch.relu(self.na(self.a(x)))))
            return torch.relu(y + self.short(x))

    def resnet():
        layers: list[Any] = [
            tnn.Conv2d(3, 64, 7, 2, 3, bias=False),
            tnn.BatchNorm2d(64),
            tnn.ReLU(),
            tnn.MaxPool2d(3, 2, 1),
        ]
        inner = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            for block in range(2):
                layers.append(Block(inner, width, 2 if stage and not block else 1))
                inner = width
        return tnn.Sequential(*layers, tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Linear(512, 1000))

    class Attention(tnn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads, self.head_dim = heads, width // heads
            self.qkv, self.out = tnn.Linear(width, 3 * width), tnn.Linear(width, width)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (a.reshape(b, t, self.heads, -1).transpose(1, 2) for a in self.qkv(x).chunk(3, dim=-1))
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(b, t, -1))

    class Layer(tnn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.n1, self.n2 = tnn.LayerNorm(width), tnn.LayerNorm(width)
            self.attention = Attention(width, heads)
            self.up, self.down = tnn.Linear(width, 4 * width), tnn.Linear(4 * width, width)

        def forward(self, x):
            x = x + self.attention(self.n1(x))
            return x + self.down(torch.nn.functional.gelu(self.up(self.n2(x))))

    class Vit(tnn.Module):
        def __init__(self, width=384, heads=6, depth=12):
            super().__init__()
            self.patch = tnn.Conv2d(3, width, 16, 16)
            self.layers = tnn.Sequential(*[Layer(width, heads) for _ in range(depth)])
            self.norm, self.head = tnn.LayerNorm(width), tnn.Linear(width, 1000)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(self.layers(x)).mean(1))

    print("Torch-Pruning, torch", torch.__version__)
    for name, model, image in (("ResNet-18", resnet(), 112), ("ViT-S/16", Vit(), 96)):
        model = model.eval()
        x = torch.ones(1, 3, image, image)
        macs, size = tp.utils.count_ops_and_params(model, x)
        before = _torch_latency(torch, model, image)
        heads = {m.qkv: m.heads for m in model.modules() if isinstance(m, Attention)}
        start = time.perf_counter()
        pruner = tp.pruner.MagnitudePruner(
            model,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[
                m for m in model.modules() if isinstance(m, tnn.Linear) and m.out_features == 1000
            ],
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=0.5,
        )
        found = time.perf_counter() - start
        start = time.perf_counter()
        pruner.step()
        planned = time.perf_counter() - start
        for module in model.modules():
            if isinstance(module, Attention):
                module.heads = pruner.num_heads[module.qkv]
        small_macs, small_size = tp.utils.count_ops_and_params(model, x)
        after = _torch_latency(torch, model, image)
        row(name, found, planned, (size, small_size), (macs, small_macs), before, after)


def _torch_latency(torch: Any, model: Any, image: int) -> list[float]:
    out = []
    with torch.inference_mode():
        for batch in BATCHES:
            x = torch.ones(batch, 3, image, image)
            out.append(best_seconds(lambda x=x: model(x)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("accuracy", "speed", "torch"))
    {"accuracy": accuracy, "speed": speed, "torch": torch_pruning}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
