"""Weights as a safetensors file with the canonical names of the leaves, zeros left out on request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.delivery.packing import Packed, pack, unpack
from jaxprune.delivery.safetensors_file import dtype_name, read_arrays, write_arrays
from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths

FORMAT = "jaxprune weights 1"
VALUES, WHERE = ".values", ".where"


def save_weights(
    path: str | os.PathLike[str],
    params: PyTree,
    packed: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> None:
    r"""Writes weights as a safetensors file, without their zeros.

    The names are the canonical paths, such as `Dense_0/kernel`. An array of \( n \) entries of which \( k \) are not
    zero takes \( k \) values and \( n/8 \) bytes; with n of every m kept along an axis, the values and the places in
    each group (2 bits a value for m = 4) where that takes less. An array that would not become smaller is stored as
    it is. Of a packed array `x`, the file has `x.values` and `x.where`, and under "packed" in its metadata a JSON
    object of `[shape, axis, n, m]`, where n = m = 0 stands for one bit an entry.

    What is left out is every entry whose bits are all zero, so that the array comes back bit for bit: a negative zero
    and a NaN are values. Prune with `apply_masks`, whose zeros are positive.

    Args:
      path: the file. An existing one is replaced once the new one is complete.
      params: pytree of arrays and numbers; other leaves (the functions of an Equinox module) are left out.
      packed: whether to leave out zeros; False writes plain arrays, which any reader of safetensors knows.
      metadata: more texts for the file's metadata.

    Raises:
      ValueError: if two leaves have one name, or no leaf is an array.
      TypeError: if a leaf has a dtype that safetensors lacks, such as a typed PRNG key.

    Example:
      >>> import os, tempfile, numpy as np
      >>> import jaxprune as jp
      >>> kernel = np.where(np.arange(4096) % 10 == 0, 1.5, 0).astype(np.float32).reshape(64, 64)
      >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
      >>> jp.save_weights(path, {"Dense_0": {"kernel": kernel}})
      >>> os.path.getsize(path) < 0.16 * kernel.nbytes
      True
      >>> bool((jp.load_weights(path)["Dense_0/kernel"] == kernel).all())
      True
    """
    stored: dict[str, np.ndarray] = {}
    described: dict[str, list[Any]] = {}
    for name, array in named_arrays(params).items():
        short = pack(array) if packed else None
        parts = {name: array} if short is None else {name + VALUES: short.values, name + WHERE: short.where}
        for part, content in parts.items():
            if part in stored:
                raise ValueError(f"`params` has two leaves that are stored as {part!r}: rename one.")
            stored[part] = content
        if short is not None:
            described[name] = [list(short.shape), short.axis, short.n, short.m]
    texts = {"format": FORMAT, **(metadata or {})}
    if described:
        texts["packed"] = json.dumps(described, separators=(",", ":"))
    write_arrays(path, stored, texts)


def load_weights(path: str | os.PathLike[str], like: PyTree = None) -> PyTree:
    """Reads a safetensors file: one that `save_weights` wrote, packed or not, or any other.

    The file is checked before anything of the size that it claims is allocated: a packed array takes as much memory
    as its bits say, at most 8 entries for each of their bytes (16 for each value in groups).

    Args:
      path: the file.
      like: tree with the structure, shapes and dtypes of what was saved (`jax.ShapeDtypeStruct`s will do); None for
        a dict from names to arrays.

    Returns:
      A dict of NumPy arrays, or a tree like `like`: JAX arrays, except where `like` has NumPy arrays or numbers.

    Raises:
      ValueError: if the file is no safetensors file or is damaged, or if a name, a shape or a dtype differs from
        `like`. The message names the file.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> path = tempfile.mkdtemp() + "/weights.safetensors"
      >>> jp.save_weights(path, {"w": jnp.arange(3.0)})
      >>> jp.load_weights(path, like={"w": jnp.zeros(3)})
      {'w': Array([0., 1., 2.], dtype=float32)}
    """
    try:
        arrays = _read(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{os.fspath(path)!r} can't be read as safetensors: {str(error)[:300]}.") from None
    return arrays if like is None else _as_tree(os.fspath(path), arrays, like)


def named_arrays(params: PyTree) -> dict[str, np.ndarray]:
    """Canonical path -> NumPy array of each array leaf."""
    paths, leaves, _ = flatten_with_paths(params)
    found: dict[str, np.ndarray] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        if not is_array_leaf(leaf):
            continue
        if path in found:
            raise ValueError(f"`params` has two leaves that are stored as {path!r}: rename one.")
        if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            raise TypeError(
                f"a safetensors file has no typed PRNG keys, got one at {path!r}: leave it out, or store its "
                "`jax.random.key_data`."
            )
        array = np.asarray(leaf)
        dtype_name(path, array.dtype)
        found[path] = array
    if not found:
        raise ValueError("`params` has no arrays: there is nothing to save.")
    return found


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    arrays, metadata = read_arrays(path)
    written = metadata.get("format", "")
    if written.startswith(FORMAT[:-1]) and written != FORMAT:
        raise ValueError(f"its format is {written!r}: a newer version of jaxprune wrote it")
    try:
        described = json.loads(metadata.get("packed", "{}"))
    except RecursionError:
        raise ValueError("its list of packed arrays is nested too deeply") from None
    if not isinstance(described, dict):
        raise ValueError("its list of packed arrays is not a JSON object")
    for name, entry in described.items():
        match entry:
            case [list(shape), axis, n, m] if all(type(k) is int and k >= 0 for k in (*shape, axis, n, m)):
                pass
            case _:
                raise ValueError(f"{entry!r} does not describe a packed array, at {name!r}")
        if name + VALUES not in arrays or name + WHERE not in arrays or name in arrays:
            raise ValueError(f"{name!r} must have {name + VALUES!r} and {name + WHERE!r}, and nothing else")
        values, where = arrays.pop(name + VALUES), arrays.pop(name + WHERE)
        try:
            arrays[name] = unpack(Packed(values, where, tuple(shape), axis, n, m))
        except ValueError as error:
            raise ValueError(f"the packed array {name!r} is damaged: {error}") from None
    return arrays


def _as_tree(path: str, arrays: dict[str, np.ndarray], like: PyTree) -> PyTree:
    names, leaves, treedef = flatten_with_paths(like)
    wanted = {name for name, leaf in zip(names, leaves, strict=True) if is_array_leaf(leaf)}
    for name in sorted(wanted ^ arrays.keys()):
        has = ("`like`", "the file") if name in wanted else ("the file", "`like`")
        raise ValueError(
            f"{path!r} is not the file of these parameters: {has[0]} has {name!r}, {has[1]} lacks it."
        )
    return jax.tree.unflatten(
        treedef,
        [
            _like(path, name, arrays[name], leaf) if name in wanted else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ],
    )


def _like(path: str, name: str, array: np.ndarray, leaf: Any) -> Any:
    expected = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if array.shape != tuple(expected.shape) or array.dtype != expected.dtype:
        raise ValueError(
            f"{path!r} has {array.dtype} of shape {array.shape} at {name!r}, but `like` has {expected.dtype} of "
            f"shape {tuple(expected.shape)}."
        )
    if isinstance(leaf, np.ndarray):
        return array
    if isinstance(leaf, np.generic):
        return array[()]
    return array.item() if expected is not leaf else jnp.asarray(array)
