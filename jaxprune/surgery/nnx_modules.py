"""NNX modules: the variables of a module are sliced, and the sizes that its layers store are updated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.jaxprs import as_abstract, is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.evaluation.compact import compact
from jaxprune.surgery.evaluation.watching import QUICK_COMPILATION, largest_difference
from jaxprune.surgery.nnx_sizes import sizes_of
from jaxprune.surgery.planning.plan import Plan
from jaxprune.surgery.slicing import shrink_leaf

# Both functions run the same equations, mostly to the last bit. A larger difference means that a size differs.
_TOLERANCE = 1e-5


def shrink_module(
    plan: Plan, module: nnx.Module, *inputs: Any, call: Callable[..., Any] | None = None
) -> None:
    """Removes the units of a plan from an NNX module, in place. If an error is raised, the module is unchanged.

    The variables are sliced, and the sizes that Flax's own layers store beside them are updated. The module then
    computes with the new sizes: a LayerNorm divides by the new width and attention by the root of the new
    head_dim, whereas `plan.compact` divides by the old sizes, as the masked model does. The small module is
    therefore first run on random parameters and inputs, and compared with `plan.compact`. A group that a norm runs
    over, or a head_dim, must be excluded from the plan. A module whose `__call__` contains fixed sizes (a reshape
    to fixed features) needs `plan.compact`.

    Args:
      plan: a plan for `nnx.state(module)`, or for a part of it (`nnx.state(module, nnx.Param)`).
      module: the full module.
      *inputs: example inputs of the module, arrays or `jax.ShapeDtypeStruct`s. By default the inputs that
        `find_groups` was given; a plan that was read from a file does not have them.
      call: how the module is called, `(module, *inputs) -> outputs`. By default `module(*inputs)`.

    Raises:
      ValueError: if the plan was made for other variables, if the inputs are not known, or if the small module
        can't be called or does not compute what `plan.compact` computes.

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
    graph, state = nnx.split(module)
    small_state = _shrunk(plan, state)
    # A module shares its variables with its state, but the copy needs variables of its own.
    copy = nnx.merge(graph, jax.tree.map(lambda x: x, small_state))
    changes = _new_sizes(plan, module, copy)
    _set(copy, changes)
    if not inputs and plan.inputs is None:
        raise ValueError(
            "`inputs` are needed to check the small module, and this plan has none, since it was read from a "
            "file or made by hand. Pass example inputs: shrink_module(plan, module, x)."
        )
    _check(plan, call or _called, (graph, state), nnx.split(copy), inputs or plan.inputs or ())
    nnx.update(module, small_state)
    _set(module, changes)


def _called(module: Any, *inputs: Any) -> Any:
    return module(*inputs)


def _shrunk(plan: Plan, state: PyTree) -> PyTree:
    """The state, in which the parameters of the plan are sliced."""
    paths, leaves, treedef = flatten_with_paths(state)
    missing = sorted(plan.shapes.keys() - set(paths))
    if missing:
        raise ValueError(f"`module` is not the module that the plan was made for: it lacks {missing[0]!r}.")
    for path, leaf in zip(paths, leaves, strict=True):
        if path in plan.shapes and np.shape(leaf) != plan.shapes[path]:
            raise ValueError(
                f"`module` must be the full module: {path!r} has shape {np.shape(leaf)}, but shape "
                f"{plan.shapes[path]} in the plan."
            )
    return jax.tree.unflatten(
        treedef,
        [
            shrink_leaf(path, leaf, plan.shapes[path], plan.kept[path]) if path in plan.shapes else leaf
            for path, leaf in zip(paths, leaves, strict=True)
        ],
    )


class _Variables:
    """The variables of a part of a module, full or small."""

    def __init__(self, part: Any, kept: Callable[[str], np.ndarray | None]):
        self.part, self.kept = part, kept

    def shape(self, name: str) -> tuple[int, ...]:
        found = self.part
        for step in name.split("."):
            found = getattr(found, step)
        return tuple(found.shape)

    def groups(self, name: str, number: int) -> int:
        mask = self.kept(name)
        return number if mask is None else int(mask.reshape(number, -1).any(axis=1).sum())


def _new_sizes(plan: Plan, module: Any, small: Any) -> list[dict[str, Any]]:
    """For each part of the module the sizes that change; a size that the full part does not have is left unchanged."""
    changes = []
    for (path, part), (_, small_part) in zip(_parts(module), _parts(small), strict=True):

        def kept(name: str, path: tuple[Any, ...] = path) -> np.ndarray | None:
            masks = plan.kept.get("/".join(map(str, (*path, name))))
            return masks[-1] if masks else None

        before = sizes_of(part, _Variables(part, lambda name: None))
        after = sizes_of(part, _Variables(small_part, kept))
        changes.append(
            {name: size for name, size in after.items() if before.get(name) == getattr(part, name)}
        )
    return changes


def _set(module: Any, changes: list[dict[str, Any]]) -> None:
    for (_, part), sizes in zip(_parts(module), changes, strict=True):
        for name, size in sizes.items():
            setattr(part, name, size)


def _parts(module: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The modules inside a module, each of them once."""
    return ((path, part) for path, part in nnx.iter_graph(module) if isinstance(part, nnx.Module))


def _check(plan: Plan, call: Callable, full: Any, small: Any, inputs: tuple[Any, ...]) -> None:
    """Raises a ValueError unless the small module computes what the small function computes."""
    (graph, state), (small_graph, small_state) = full, small
    paths, leaves, treedef = flatten_with_paths(state)
    _, small_leaves, small_treedef = flatten_with_paths(small_state)
    known = [i for i, path in enumerate(paths) if path in plan.shapes and is_array_leaf(leaves[i])]

    def function(graph: Any, treedef: Any, leaves: list[Any]) -> Callable:
        def of(params: dict[str, Any], *inputs: Any) -> Any:
            values = list(leaves)
            for i in known:
                values[i] = params[paths[i]]
            module = nnx.merge(graph, jax.tree.unflatten(treedef, values))
            if isinstance(module, nnx.Module):  # a smaller module draws other noise for dropout
                module.set_attributes(deterministic=True, raise_if_not_found=False)
            return call(module, *inputs)

        return of

    wanted = compact(function(graph, treedef, leaves), plan.shapes, plan.kept)
    got = function(small_graph, small_treedef, small_leaves)
    numbers = np.random.default_rng(0)
    own = {paths[i]: small_leaves[i] for i in known}
    drawn = {path: _random(leaf, numbers, is_input=False) for path, leaf in own.items()}
    inputs = jax.tree.map(lambda x: _random(x, numbers, is_input=True) if is_array_leaf(x) else x, inputs)

    def outputs(params: dict[str, Any]) -> list[list[Any]]:
        return [list(filter(is_array_leaf, jax.tree.leaves(f(params, *inputs)))) for f in (wanted, got)]

    compiled = jax.jit(outputs, compiler_options=QUICK_COMPILATION)
    # The module's own parameters may hide a difference (a last layer of zeros), random ones may be out of range.
    for params in (drawn, own):
        try:
            with jax.default_matmul_precision("highest"):
                expected, found = compiled(params)
        except Exception as error:  # the module's own code may raise anything
            raise ValueError(
                "the module can't be shrunk in place: the full or the small module can't be called with "
                f"{_described(inputs)} ({type(error).__name__}: {error}). If the module takes other inputs "
                "than the function that was analysed, pass example inputs, or call=. If its code contains fixed "
                "sizes, use plan.compact. If it is in training mode, call .eval() before find_groups, or pass "
                "state= to find_groups."
            ) from error
        _compare(expected, found)
        if not any(bool(jnp.isnan(x).any()) for x in expected if jnp.issubdtype(x.dtype, jnp.inexact)):
            return
    raise ValueError(
        "the module can't be shrunk in place: its outputs are NaN, so they can't be compared with plan.compact."
    )


def _compare(expected: list[Any], found: list[Any]) -> None:
    same_shapes = [x.shape for x in expected] == [x.shape for x in found]
    difference = float(largest_difference(found, expected)) if same_shapes else float("inf")
    roundings = [float(jnp.finfo(x.dtype).eps) for x in expected if jnp.issubdtype(x.dtype, jnp.floating)]
    if not difference <= max([_TOLERANCE, *roundings]):
        raise ValueError(
            f"the module can't be shrunk in place: its outputs would differ by {difference:.1e} from those of "
            "plan.compact. The module computes with a size that changes: the width of a norm, a head_dim, or the "
            "number of units in a mean. Exclude these groups from the plan, or use plan.compact."
        )


def _random(leaf: Any, numbers: np.random.Generator, is_input: bool) -> Any:
    """An array like the leaf: parameters without special values, inputs of small numbers."""
    if is_input and not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    aval = as_abstract(leaf)
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), int(np.prod(aval.shape)))
        return leaf if isinstance(leaf, jax.Array) else keys.reshape(aval.shape)
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        if is_input:
            return jnp.asarray(numbers.integers(0, 2, aval.shape), aval.dtype)
        return jnp.zeros(aval.shape, aval.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    if len(aval.shape) < 2 and not is_input:  # scales, biases and variances
        return jnp.asarray(numbers.uniform(0.5, 1.5, aval.shape), aval.dtype)
    spread = 1.0 if is_input else max(aval.shape[-2], 1) ** -0.5
    return jnp.asarray(spread * numbers.standard_normal(aval.shape), aval.dtype)


def _described(inputs: tuple[Any, ...]) -> str:
    leaves = [as_abstract(x) for x in jax.tree.leaves(inputs) if is_array_leaf(x)]
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves) or "no inputs"
