"""Checkpoints: any pytree of arrays on disk, either complete or not there at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.params import PyTree

__all__ = ["check", "latest", "restore", "save"]


def __dir__() -> list[str]:
    return sorted(__all__)


_KIND = "jaxprune"
_DIGESTS = "digests.json"
# Python's numbers, and how they are stored.
_NUMBERS = {"bool": np.bool_, "int": np.int64, "float": np.float64, "complex": np.complex128}


def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Writes a pytree to a new folder.

    Orbax writes beside `path` and renames at the end: a killed process leaves no folder `path`, and an existing
    folder is complete. A digest of each file is stored too, so that `restore` returns no value that was changed
    on the disk. Plain Orbax can also read the folder, as a dict from leaf names such as `params/Dense_0/kernel`
    to arrays.

    Args:
      path: the folder to make; missing parents are made too.
      tree: pytree of arrays of any dtype, typed PRNG keys and Python numbers.

    Raises:
      FileExistsError: if `path` exists.
      ValueError: if there are no leaves, two leaves have the same name, or a Python int exceeds 64 bits.
      TypeError: if a leaf is neither an array nor a number (the message names it).
      OSError: if the disk is full or can't be written; nothing is left at `path`.
      ImportError: if Orbax is missing.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from jaxprune import checkpoint
      >>> tree = {"params": {"w": jnp.ones((2, 2))}, "masks": {"w": jnp.eye(2) > 0}, "key": jax.random.key(0)}
      >>> path = tempfile.mkdtemp() + "/first"
      >>> checkpoint.save(path, tree)
      >>> checkpoint.restore(path, like=tree)["masks"]["w"]
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"`path` must be new, but {path} exists: remove it or choose another.")
    names, leaves, _ = _named(tree, "tree")
    if not leaves:
        raise ValueError("`tree` has no leaves: there is nothing to save.")
    described = {name: _describe(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
    arrays = {
        name: jax.random.key_data(leaf) if _is_key(leaf) else _array(leaf)
        for name, leaf in zip(names, leaves, strict=True)
        if 0 not in np.shape(leaf)  # Orbax takes no empty arrays; their description says all
    }
    # Orbax takes no empty tree either.
    arrays = arrays or {"": np.zeros(1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = False
    try:
        with _quiet(), _checkpointer() as checkpointer:
            checkpointer.save(path, arrays, custom_metadata={_KIND: json.dumps(described)})
        ours = True  # before that, a folder at `path` would be another's
        _write_digests(path)
    except (ValueError, OSError) as error:
        left = path.parent.glob(f"{glob.escape(path.name)}.orbax-checkpoint-tmp*")
        for folder in (*left, path) if ours else left:
            shutil.rmtree(folder, ignore_errors=True)
        # TensorStore reports the error of the operating system in its own words.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def restore(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads a checkpoint that `save` wrote.

    Args:
      path: the folder.
      like: tree with the structure, shapes and dtypes of the saved one: arrays (values get their shardings),
        `jax.ShapeDtypeStruct`s, typed keys, numbers. `jax.eval_shape` makes one without computing it. Values of
        uncommitted arrays and of structs without a sharding are uncommitted, so that `jit` may place them.

    Returns:
      A tree like `like` with the saved values, bit for bit; NumPy arrays and Python numbers remain such. If one
      side has a Python number and the other an array of its kind, such as TrainState's `step`, the value is
      converted if the wanted dtype holds it (a float is rounded).

    Raises:
      FileNotFoundError: if there is no folder at `path`.
      ValueError: if `save` did not write the folder; if leaves, shapes, dtypes or key types differ, or a number
        does not fit the wanted dtype (the message names the leaf); if a file is damaged or missing (the message
        names it). Nothing is restored then.
      ImportError: if Orbax is missing.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"`path` must be a checkpoint, but there is no folder {path}.")
    names, leaves, treedef = _named(like, "like")
    check(path)
    with _quiet(), _checkpointer() as checkpointer:
        described = _read_description(checkpointer, path)
        _check_same(path, described, {n: _describe(n, leaf) for n, leaf in zip(names, leaves, strict=True)})
        wanted = {
            name: _abstract(leaf, described[name])
            for name, leaf in zip(names, leaves, strict=True)
            if 0 not in described[name]["shape"]
        }
        try:
            found = checkpointer.restore(path, wanted or {"": np.zeros(1)})
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax raises the errors of its parts, down to plain Exception
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise ValueError(
                f"the checkpoint {path} cannot be read: a file in it is damaged or missing "
                f"({type(error).__name__}: {reason})."
            ) from error
    new = [
        _like(path, name, leaf, found[name]) if name in wanted else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, new)


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint in a folder with the highest number at the end of its name, or None.

    What a killed process left half-written beside the checkpoints is passed over.

    Args:
      folder: the folder that holds checkpoints under names such as `step 500`; it need not exist.

    Raises:
      ValueError: if the name of a checkpoint ends in no number.

    Example:
      >>> import os, tempfile, jax.numpy as jnp
      >>> from jaxprune import checkpoint
      >>> folder = tempfile.mkdtemp()
      >>> checkpoint.latest(folder)      # nothing to resume from
      >>> for step in (5, 10):
      ...     checkpoint.save(os.path.join(folder, f"step {step}"), {"w": jnp.ones(2)})
      >>> path = checkpoint.latest(folder)
      >>> path.name, int(path.name.split()[-1])
      ('step 10', 10)
    """
    numbered = {}
    for path in Path(folder).glob("*"):
        if ".orbax-checkpoint-tmp" in path.name or not (path / "_CHECKPOINT_METADATA").is_file():
            continue
        number = re.search(r"\d+$", path.name)
        if number is None:
            raise ValueError(
                f"`folder` must hold checkpoints whose names end in a number, such as 'step 500', got {str(path)!r}."
            )
        numbered[int(number[0]), path.name] = path
    return numbered[max(numbered)] if numbered else None


def check(path: str | os.PathLike[str]) -> None:
    """Raises ValueError, naming the file, unless every file of a checkpoint is as `save` left it.

    Args:
      path: the folder. A folder without digests, as Orbax itself writes it, passes.
    """
    path = Path(path)
    listed = path / _DIGESTS
    if not listed.is_file():
        return
    try:
        digests = dict(json.loads(listed.read_bytes()))
    except (ValueError, TypeError):
        raise ValueError(f"the checkpoint {path} is damaged: its file {_DIGESTS} can't be read.") from None
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise ValueError(f"the checkpoint {path} is damaged: its file {name} is missing.")
        if _digest(path / name) != digest:
            raise ValueError(f"the checkpoint {path} is damaged: its file {name} was changed or cut off.")


def check_installed() -> None:
    """Raises ImportError, with what to install, if Orbax is missing."""
    _checkpointer().close()


def _write_digests(path: Path) -> None:
    if jax.process_index() == 0:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        digests = {file.relative_to(path).as_posix(): _digest(file) for file in files}
        partial = path / f".{_DIGESTS}.partial"
        partial.write_text(json.dumps(digests))
        os.replace(partial, path / _DIGESTS)


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logs of Orbax: failures are raised as errors."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _checkpointer() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need Orbax: pip install 'jaxprune[checkpoint]'.") from error
    return ocp.StandardCheckpointer()


def _named(tree: PyTree, argument: str) -> tuple[list[str], list[Any], jax.tree_util.PyTreeDef]:
    found, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`{argument}` has two leaves of the same name {name!r}: rename one.")
    return names, [leaf for _, leaf in found], treedef


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _impl(key: Any) -> Any:
    """The implementation of a key, which may be abstract: public functions tell it for traced keys only."""
    found = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
            raise ValueError(f"a checkpoint holds integers of at most 64 bits, got {leaf} at {name!r}.")
        return {"shape": [], "dtype": type(leaf).__name__}
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(f"a checkpoint holds only arrays and numbers, got {type(leaf).__name__} at {name!r}.")
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _read_description(checkpointer: Any, path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(checkpointer.metadata(path).custom_metadata[_KIND])
    except (TypeError, KeyError, AttributeError, ValueError, OSError):
        raise ValueError(f"{path} is not a checkpoint that `jaxprune.checkpoint.save` wrote.") from None


def _check_same(path: Path, saved: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    for name in wanted:
        if name not in saved:
            raise ValueError(f"the checkpoint {path} lacks {name!r}, which `like` has ({_some(saved)}).")
    for name in saved:
        if name not in wanted:
            raise ValueError(f"the checkpoint {path} has {name!r}, which `like` lacks ({_some(wanted)}).")
    for name, of in wanted.items():
        for what in ("shape", "dtype"):
            if saved[name][what] != of[what] and not _same_number(saved[name], of):
                had, got = (str(d[name][what]).replace("[", "(").replace("]", ")") for d in (saved, wanted))
                raise ValueError(
                    f"the checkpoint {path} has {what} {had} at {name!r}, but `like` has {got} there."
                )


def _same_number(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the two differ only in that one is a Python number, such as TrainState's first `step`."""
    dtypes = [str(d["dtype"]).rstrip("0123456789") for d in (one, other)]
    is_python = one["dtype"] in _NUMBERS or other["dtype"] in _NUMBERS
    return is_python and dtypes[0] == dtypes[1] and one["shape"] == other["shape"] == []


def _some(names: dict[str, Any]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:5]) + (", ..." if len(names) > 5 else "")
    return f"there are: {shown}; {len(names)} in all"


def _abstract(leaf: Any, described: dict[str, Any]) -> Any:
    if described["dtype"] in _NUMBERS:
        return np.zeros((), _NUMBERS[described["dtype"]])
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        # The abstract form of a key array is that of its data; keys are small and need no sharding.
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(
            data.shape, data.dtype, sharding=None if _is_key(leaf) else _sharding(leaf)
        )
    return np.zeros(described["shape"], described["dtype"])


def _sharding(leaf: Any) -> Any:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _like(path: Path, name: str, leaf: Any, value: Any) -> Any:
    """The value as an array or number of the kind of `leaf`."""
    if _is_key(leaf):
        key = jax.random.wrap_key_data(_uncommitted(value), impl=_impl(leaf))
        committed = isinstance(leaf, jax.Array) and leaf.committed and leaf.is_fully_addressable
        return jax.device_put(key, leaf.sharding) if committed else key
    if isinstance(leaf, np.generic):
        return _in_dtype(path, name, value, leaf.dtype)[()]
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(value.item())
    value = _in_dtype(path, name, value, leaf.dtype)
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return value
    # A count that `init` made outside `jit` belongs to no device. Were the restored one committed to the first
    # device, `jit` would refuse it beside parameters that lie on a mesh.
    if not (leaf.committed if isinstance(leaf, jax.Array) else leaf.sharding):
        return _uncommitted(value)
    return value if isinstance(value, jax.Array) else jax.device_put(value, leaf.sharding)


def _uncommitted(value: Any) -> Any:
    """The value as an array that `jit` may place with its other arguments."""
    spans_processes = isinstance(value, jax.Array) and not value.is_fully_addressable
    return value if spans_processes else jax.device_put(np.asarray(value))


def _in_dtype(path: Path, name: str, value: Any, dtype: Any) -> Any:
    """The value in the wanted dtype; raises ValueError if the dtype does not hold it."""
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore", under="ignore"):
        cast = value.astype(dtype)
    is_exact = not np.issubdtype(value.dtype, np.inexact)
    # Floats are rounded, but neither to infinity nor to zero.
    holds = cast == value if is_exact else _parts(cast) == _parts(value)
    if not holds:
        raise ValueError(
            f"the checkpoint {path} has {value.item()} at {name!r}, but `like` has {np.dtype(dtype)} there, "
            "which does not hold it."
        )
    return cast


def _parts(number: Any) -> list[tuple[bool, bool]]:
    """Whether the real and the imaginary part are finite and not zero."""
    return [(bool(np.isfinite(x)), bool(x != 0)) for x in (number.real, number.imag)]
