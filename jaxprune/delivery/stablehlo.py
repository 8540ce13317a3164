"""A model as serialized StableHLO, by `jax.export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export

from jaxprune.delivery.flat_model import FlatModel


def check_installed() -> None:
    """Raises ImportError, with what to install, if flatbuffers is missing."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'the format "stablehlo" needs flatbuffers, with which JAX writes and reads it: pip install flatbuffers, or '
            "pip install 'jaxprune[export]'."
        ) from error


def to_stablehlo(model: FlatModel, constants: bool, platforms: Sequence[str] | None) -> bytes:
    """Serializes the function of (weights in the order of their names, inputs), or of the inputs alone.

    Args:
      model: the model.
      constants: whether the weights are constants of the program.
      platforms: such as ("cpu", "cuda", "tpu"); None for that of this process.

    Raises:
      ValueError: if the function can't be traced at symbolic sizes, or can't be serialized.
    """
    weights = list(model.weights.values())
    n = 0 if constants else len(weights)

    def flat(*arrays: Any) -> tuple[Any, ...]:
        return model.call(weights if constants else arrays[:n], arrays[n:])

    specs = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights[:n]]
    try:
        exported = export.export(jax.jit(flat), platforms=platforms)(*specs, *model.specs)
        return bytes(exported.serialize())
    except Exception as error:  # JAX raises errors of many kinds, std::bad_cast among them
        raise ValueError(
            f"`fn` can't be exported by jax.export: {first_lines(error)}{remedy(model)}"
        ) from error


def from_stablehlo(serialized: bytes, weights: Sequence[Any]) -> Callable[..., Sequence[Any]]:
    """The function of the inputs of a serialized program."""
    exported = export.deserialize(bytearray(serialized))
    given = weights if len(exported.in_avals) and weights else []
    return lambda *inputs: exported.call(*given, *inputs)


def first_lines(error: Exception) -> str:
    """What an error says, without its help pages."""
    text = " ".join(line.strip() for line in str(error).splitlines()[:4] if line.strip())
    return f"{type(error).__name__}: {text[:400]}"


def remedy(model: FlatModel) -> str:
    """What may help where sizes are symbols."""
    symbols = sorted(model.sizes)
    return f" If it is the sizes {symbols}, pass batch=None for those of the example." if symbols else ""
