"""A function of trees as a function of flat arrays with names, and its inputs at other sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class FlatModel:
    """A function of a model's weights and inputs, all of them arrays with names.

    Attributes:
      call: (weights, inputs) -> outputs, all three sequences of arrays.
      weights: name -> array, in the order of their names.
      inputs: example of each input.
      input_names, output_names: `input_0`, or `input_1/mask` where an input is a tree; `output` likewise.
      dims: sizes of each input, a symbol where it may vary.
      specs: the same as abstract arrays.
      batch: the symbol of the batch, if there is one.
      constrained: whether the sizes have constraints, so that other sizes are not to be made up.
    """

    call: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]
    weights: Mapping[str, np.ndarray]
    inputs: tuple[np.ndarray, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dims: tuple[Dims, ...]
    specs: tuple[jax.ShapeDtypeStruct, ...]
    batch: str | None
    constrained: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Symbol -> its size in the example."""
        return {
            dim: size
            for dims, x in zip(self.dims, self.inputs, strict=True)
            for dim, size in zip(dims, x.shape, strict=True)
            if isinstance(dim, str)
        }

    def at(self, **sizes: int) -> tuple[np.ndarray, ...]:
        """The example with other sizes: its entries are repeated, or the last ones left out."""
        found = []
        for dims, x in zip(self.dims, self.inputs, strict=True):
            for axis, dim in enumerate(dims):
                if dim in sizes:
                    x = np.take(x, np.arange(sizes[str(dim)]) % x.shape[axis], axis)
            found.append(x)
        return tuple(found)

    def output_dims(self) -> tuple[Dims, ...]:
        """Sizes of each output, as a text where they follow from sizes that may vary."""
        weights = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in self.weights.values()]
        try:
            outputs = jax.eval_shape(self.call, weights, list(self.specs))
        except Exception:  # a function that no symbolic size goes through; its formats say so
            outputs = jax.eval_shape(self.call, weights, list(self.inputs))
        return tuple(tuple(n if isinstance(n, int) else str(n) for n in x.shape) for x in outputs)

    def elsewhere(self) -> tuple[np.ndarray, ...] | None:
        """The example at other sizes; None if all sizes are fixed."""
        new = {name: size - 1 for name, size in self.sizes.items() if size > 1 and not self.constrained}
        if self.batch is not None:
            new[self.batch] = 3 if self.sizes[self.batch] != 3 else 2
        return self.at(**new) if new else None


def flat_model(
    fn: Callable,
    params: PyTree,
    inputs: tuple[Any, ...],
    batch: str | None,
    shapes: Sequence[str] | None,
    constraints: Sequence[str],
) -> FlatModel:
    """Flattens a function and names its arrays.

    Raises:
      ValueError: if names or sizes do not fit the inputs.
      TypeError: if a weight is a typed PRNG key.
    """
    leaves, treedef = jax.tree.flatten((params, inputs))
    paths, of_params, _ = flatten_with_paths(params)
    named = [
        (path, i)
        for i, (path, leaf) in enumerate(zip(paths, of_params, strict=True))
        if hasattr(leaf, "dtype")
    ]
    _check_weights(named, of_params)
    named = sorted(named)
    places = [i for i in range(len(of_params), len(leaves)) if is_array_leaf(leaves[i])]
    names = _input_names(inputs)

    def call(weights: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
        full = list(leaves)
        for (_, i), array in zip(named, weights, strict=True):
            full[i] = jnp.asarray(array)  # a NumPy array can't be indexed by a traced one
        for i, array in zip(places, arrays, strict=True):
            full[i] = _as_key(array, leaves[i]) if _is_key(leaves[i]) else array
        params, inputs = jax.tree.unflatten(treedef, full)
        return tuple(jax.tree.leaves(fn(params, *inputs)))

    examples = tuple(_as_array(leaves[i]) for i in places)
    outs = (
        jax.eval_shape(lambda p, x: fn(p, *x), params, inputs)
        if not places
        else _outputs(fn, leaves, treedef, places)
    )
    out_paths, _, _ = flatten_with_paths(outs)
    dims = _dims(names, examples, [np.ndim(leaves[i]) > 0 for i in places], batch, shapes)
    specs = _specs(examples, dims, constraints)
    return FlatModel(
        call,
        {path: np.asarray(of_params[i]) for path, i in named},
        examples,
        tuple(names),
        tuple(f"output/{path}" if path else "output" for path in out_paths),
        dims,
        specs,
        batch if any(batch in of for of in dims) else None,
        bool(constraints),
    )


def _outputs(fn: Callable, leaves: list[Any], treedef: Any, places: list[int]) -> Any:
    def run(arrays: list[Any]) -> Any:
        full = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            full[i] = array
        params, inputs = jax.tree.unflatten(treedef, full)
        return fn(params, *inputs)

    return jax.eval_shape(run, [leaves[i] for i in places])


def _check_weights(named: list[tuple[str, int]], leaves: list[Any]) -> None:
    seen = set()
    for path, i in named:
        if _is_key(leaves[i]):
            raise TypeError(
                f"`params` has a typed PRNG key at {path!r}, which no file holds: leave it out (an NNX model: "
                "`nnx.split(model, nnx.Param, ...)`)."
            )
        if path in seen:
            raise ValueError(f"`params` has two leaves of the same name {path!r}: rename one.")
        seen.add(path)
    if not named:
        raise ValueError("`params` has no arrays: there is nothing to export.")


def _input_names(inputs: tuple[Any, ...]) -> list[str]:
    names = []
    for i, tree in enumerate(inputs):
        for path, leaf in zip(*flatten_with_paths(tree)[:2], strict=True):
            if is_array_leaf(leaf):
                names.append(f"input_{i}/{path}" if path else f"input_{i}")
    return names


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _as_array(leaf: Any) -> np.ndarray:
    """An input as an array that a file can hold: of a typed PRNG key its data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf))


def _as_key(data: Any, key: Any) -> Any:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def _dims(
    names: list[str],
    examples: tuple[np.ndarray, ...],
    has_batch: list[bool],
    batch: str | None,
    shapes: Sequence[str] | None,
) -> tuple[Dims, ...]:
    if batch is not None and not re.fullmatch(r"[A-Za-z_]\w*", batch):
        raise ValueError(
            f"`batch` must be a name such as 'b', or None for the size of the example, got {batch!r}."
        )
    if shapes is None:
        dims = tuple(
            (batch or x.shape[0], *x.shape[1:]) if has else x.shape
            for x, has in zip(examples, has_batch, strict=True)
        )
    else:
        if isinstance(shapes, str) or len(shapes) != len(examples):
            raise ValueError(
                f"`shapes` must have a text such as 'b, s, ...' for each of the {len(examples)} inputs "
                f"({', '.join(names)}), got {shapes!r}."
            )
        dims = tuple(_parsed(*entry) for entry in zip(names, shapes, examples, strict=True))
    sizes: dict[str, tuple[int, str]] = {}
    for name, of, x in zip(names, dims, examples, strict=True):
        for dim, size in zip(of, x.shape, strict=True):
            if isinstance(dim, str) and sizes.setdefault(dim, (size, name))[0] != size:
                remedy = "Pass `shapes=`, with a text such as 'b, ...' for each input, or batch=None."
                raise ValueError(
                    f"{dim!r} is {sizes[dim][0]} in {sizes[dim][1]!r} and {size} in {name!r}: it must be one size. "
                    f"{remedy}"
                )
            if isinstance(dim, str) and size == 0:
                raise ValueError(f"{dim!r} is 0 in {name!r}: pass an example that is not empty.")
    return dims


def _parsed(name: str, text: str, example: np.ndarray) -> Dims:
    parts = [part.strip() for part in text.strip(" ()").split(",") if part.strip()]
    if "..." in parts:
        at = parts.index("...")
        rest = len(parts) - at - 1
        middle = example.shape[at : example.ndim - rest] if example.ndim >= at + rest else ()
        parts = [*parts[:at], *map(str, middle), *parts[at + 1 :]]
    fits = len(parts) == example.ndim and all(
        part == "_" or part == str(n) or re.fullmatch(r"[A-Za-z]\w*", part)
        for part, n in zip(parts, example.shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"`shapes` has {text!r} for {name!r}, whose shape is {example.shape}: write a symbol, the size or '_' for "
            "each axis, or '...' for several."
        )
    return tuple(n if part in ("_", str(n)) else part for part, n in zip(parts, example.shape, strict=True))


def _specs(
    examples: tuple[np.ndarray, ...], dims: tuple[Dims, ...], constraints: Sequence[str]
) -> tuple[jax.ShapeDtypeStruct, ...]:
    texts = tuple(", ".join(map(str, of)) for of in dims)
    try:
        return tuple(export.symbolic_args_specs(examples, texts, constraints=tuple(constraints)))
    except Exception as error:
        raise ValueError(f"`constraints` {tuple(constraints)} can't be used: {error}") from error


def size_of(arrays: Mapping[str, Any]) -> int:
    """Number of entries of all arrays."""
    return sum(math.prod(array.shape) for array in arrays.values())
