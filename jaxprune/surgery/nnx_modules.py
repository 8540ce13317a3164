"""NNX modules: slices a module's own variables and the sizes that its layers remember."""

from __future__ import annotations

from typing import Any

from flax import nnx

from jaxprune.surgery.plan import Plan


def shrink_module(plan: Plan, module: nnx.Module) -> None:
    """Removes the units of a plan from an NNX module, in place.

    The variables are sliced, and the sizes that flax's own layers keep beside them are set anew. Sizes then
    count anew wherever the layers compute with them: a LayerNorm divides by the new width and attention by
    the root of the new head_dim, where `plan.compact` keeps the old divisors, as the masked model has them.
    So exclude groups that a norm runs over and the head_dims (flax wants those of queries and values equal).
    A module that names sizes in its own `__call__` (a reshape to fixed features) needs `plan.compact`.

    Args:
      plan: a plan for `nnx.state(module)`.
      module: the full module.

    Raises:
      ValueError: the plan was made for other variables.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> graph, state = nnx.split(model)
      >>> groups = jp.find_groups(lambda state, x: nnx.merge(graph, state)(x), state, jnp.ones((1, 3)))
      >>> plan = jp.plan_removal(groups, state, 0.5, budget="units")
      >>> jp.surgery.shrink_module(plan, model)
      >>> model.layers[0].out_features, model(jnp.ones((5, 3))).shape
      (4, (5, 2))
    """
    nnx.update(module, plan.shrink(nnx.state(module)))
    for _, part in nnx.iter_graph(module):
        for name, size in _sizes(part).items():
            if hasattr(part, name):
                setattr(part, name, size)


def _sizes(layer: Any) -> dict[str, Any]:
    """The sizes that a layer of flax keeps, read off its arrays."""
    match layer:
        case nnx.Linear():
            return dict(zip(("in_features", "out_features"), layer.kernel.shape, strict=True))
        case nnx.LinearGeneral():
            inner = len(layer.in_features)
            batch = layer.kernel.ndim - inner - len(layer.out_features)
            shape = tuple(layer.kernel.shape)[batch:]
            return {"in_features": shape[:inner], "out_features": shape[inner:]}
        case nnx.Conv() | nnx.ConvTranspose():
            *_, features_in, features_out = layer.kernel.shape
            groups = getattr(layer, "feature_group_count", 1)
            if groups == 1 or features_in > 1:  # a depthwise kernel has a group for each feature
                return {"in_features": features_in * groups, "out_features": features_out}
            per_group = layer.out_features // groups
            groups = features_out // per_group
            return {"in_features": groups, "out_features": features_out, "feature_group_count": groups}
        case nnx.Embed():
            return dict(zip(("num_embeddings", "features"), layer.embedding.shape, strict=True))
        case nnx.BatchNorm():
            return {"num_features": layer.mean.shape[-1]}
        case nnx.LayerNorm() | nnx.RMSNorm():
            return {} if layer.scale is None else {"num_features": layer.scale.shape[-1]}
        case nnx.MultiHeadAttention():
            features, heads, dim = layer.query.kernel.shape
            return {"in_features": features, "num_heads": heads, "head_dim": dim, "qkv_features": heads * dim}
    return {}
