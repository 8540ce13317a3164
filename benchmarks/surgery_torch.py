"""Torch-Pruning on the two networks of `surgery_speed.py`; needs torch and torch-pruning.

References:
  Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as typed_narrowly
from models import torch_nets
from surgery_speed import Network, Pruned
from torch.nn import attention
from torch.utils import flop_counter

tp: Any = typed_narrowly  # its annotations are narrower than what it takes


def network(name: str, image: int) -> Network:
    """ "ResNet-18" or "ViT-S/16" in PyTorch, eager mode, on as many threads as it takes by itself."""
    torch.manual_seed(0)
    model = (torch_nets.resnet18() if name == "ResNet-18" else torch_nets.ViT()).eval()
    size = sum(p.numel() for p in model.parameters())

    def prune() -> Pruned:
        small = copy.deepcopy(model)
        x = torch.ones(1, 3, image, image)
        heads = {m.qkv: m.heads for m in small.modules() if isinstance(m, torch_nets.Attention)}
        start = time.perf_counter()
        pruner = tp.pruner.MagnitudePruner(
            small,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            head_pruning_ratio=0.5,
            ignored_layers=[
                m for m in small.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000
            ],
            in_channel_groups={},
            out_channel_groups={},  # a default argument of theirs that they write into
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=False,
        )
        analysed = time.perf_counter()
        pruner.step()
        done = time.perf_counter()
        for module in small.modules():
            if isinstance(module, torch_nets.Attention):
                module.heads = pruner.num_heads[module.qkv]
        left = sum(p.numel() for p in small.parameters())
        found = left, macs(small, image), run(small, image)
        return Pruned(analysed - start, done - analysed, *found, small)

    title = f"Torch-Pruning {tp.__version__}, torch {torch.__version__.split('+')[0]}"
    return Network(title, size, macs(model, image), run(model, image), prune, model)


def run(model: Any, image: int) -> Callable[[int], Callable[[], Any]]:
    def at(batch: int) -> Callable[[], Any]:
        x = torch.ones(batch, 3, image, image)

        def forward() -> Any:
            with torch.inference_mode():
                return model(x)

        return forward

    return at


def macs(model: Any, image: int) -> float:
    """Multiply-adds of all convolutions and matrix products, those of attention included."""
    counter = flop_counter.FlopCounterMode(display=False)
    with counter, attention.sdpa_kernel(attention.SDPBackend.MATH), torch.no_grad():
        model(torch.ones(1, 3, image, image))
    return counter.get_total_flops() / 2
