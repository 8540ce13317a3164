"""NNX modules sliced in place compute what the small function computes."""

import library_models
import pytest
from checks import difference, random_masks
from flax import nnx
from plain_models import data

import jaxprune as jp
from jaxprune.surgery import plan_units, shrink_module

MODULES = {
    "MLP": (library_models.NnxMlp, (3, 4)),
    "attention": (library_models.NnxBlock, (2, 3, 4)),
    "CNN": (library_models.NnxCnn, (2, 4, 4, 2)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module_in_place(name):
    module_type, shape = MODULES[name]
    module, x = module_type(nnx.Rngs(0)), data(*shape)
    graph, state = nnx.split(module)

    def fn(state, x):
        return nnx.merge(graph, state)(x)

    groups = jp.find_groups(fn, state, x)
    chosen = random_masks(groups)
    if name == "attention":
        # Divisors follow the new sizes: LayerNorm's by its width, attention's by its head_dim.
        chosen = {group.name: chosen[group.name] for group in groups if group.size in (3, 10)}
    plan = plan_units(groups, chosen)
    expected = plan.compact(fn)(plan.shrink(state), x)
    shrink_module(plan, module)
    assert difference(module(x), expected) < 1e-6
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Linear):
            assert (part.in_features, part.out_features) == part.kernel.shape
