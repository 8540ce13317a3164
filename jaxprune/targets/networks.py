"""Networks that are run: their latency beside the dense one's, and how far their outputs are from the dense ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.delivery.flat_model import flat_model
from jaxprune.delivery.latency import relative_time
from jaxprune.delivery.onnx_model import check_installed, run_onnx, write_onnx
from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.targets.measured import Measurement
from jaxprune.tree_nodes import split_leaves

Network = tuple[Callable, PyTree]  # a function and its parameters
Clock = Callable[[Callable, PyTree, tuple[Any, ...]], float]


class _Runs(NamedTuple):
    outputs: Callable[[], Any] | None
    timed: Callable[[], Any]


class Networks:
    """Runs networks: how long they take beside the dense one, and how far their outputs are from its outputs.

    Args:
      dense: the dense network.
      inputs: on which errors are measured.
      runtime: "jax", "onnx", or a function (fn, params, inputs) -> seconds; None to measure no time.
      batch: size of the leading axis of the inputs when timed; None for that of `inputs`.
      seconds: for which each network is timed.
      with_errors: whether errors are needed; if not, they are measured where that costs no compilation.

    Attributes:
      table: all that was measured.
      dense_seconds: the shortest latency of the dense network.
      compilations: of networks.
    """

    def __init__(
        self,
        dense: Network,
        inputs: tuple[Any, ...],
        runtime: str | Clock | None,
        batch: int | None = None,
        seconds: float = 0.4,
        with_errors: bool = True,
    ):
        if runtime == "onnx":
            check_installed()
        self.dense, self.inputs = dense, inputs
        self.runtime, self.seconds = runtime, seconds
        self.with_errors = with_errors
        self.table: list[Measurement] = []
        self.dense_seconds = 0.0
        self.compilations = 0
        self._timed_inputs = inputs if batch is None else at_batch(inputs, batch)
        self._dense: _Runs | None = None
        self._outputs: list[np.ndarray] = []

    @property
    def where(self) -> str:
        """The runtime and the batch."""
        runtime = {"jax": f"JAX ({jax.default_backend()})", "onnx": "ONNX Runtime"}.get(
            str(self.runtime), getattr(self.runtime, "__name__", "the given runtime")
        )
        sizes = {x.shape[0] for x in jax.tree.leaves(self._timed_inputs) if is_array_leaf(x) and x.ndim}
        return f"{runtime}, batch {min(sizes)}" if len(sizes) == 1 else runtime

    def measure(self, networks: Mapping[str, Network]) -> dict[str, Measurement]:
        """Runs networks, each in turns with the dense one."""
        if self._dense is None:
            self._dense = self._made(self.dense)
            self._outputs = _floats(self._dense.outputs()) if self._dense.outputs else []
        made = {name: self._made(network) for name, network in networks.items()}
        errors = {name: self._error(runs) for name, runs in made.items()}
        ratios: dict[str, float] = {}
        if callable(self.runtime):
            self.dense_seconds = _checked(self.runtime(*self.dense, self._timed_inputs))
            for name, network in networks.items():
                ratios[name] = _checked(self.runtime(*network, self._timed_inputs)) / self.dense_seconds
        elif self.runtime:
            for name, runs in made.items():
                ratios[name], seconds = relative_time(runs.timed, self._dense.timed, self.seconds)
                self.dense_seconds = min(seconds, self.dense_seconds or seconds)
        found = {name: Measurement(name, ratios.get(name), error) for name, error in errors.items()}
        self.table.extend(found.values())
        return found

    def _error(self, runs: _Runs) -> float | None:
        if runs.outputs is None:
            return None
        errors = []
        for dense, small in zip(self._outputs, _floats(runs.outputs()), strict=True):
            spread = float(np.var(dense)) or float(np.mean(dense**2))
            error = float(np.mean((dense - small) ** 2))
            errors.append(error / spread if spread else error)
        mean = float(np.mean(errors)) if errors else 0.0
        return mean if np.isfinite(mean) else float("inf")

    def _made(self, network: Network) -> _Runs:
        """The compiled network."""
        fn, params = network
        is_jax = self.runtime == "jax"
        outputs: Callable[[], Any] | None = None
        timed: Callable[[], Any] = _nothing
        if self.with_errors or (is_jax and self._timed_inputs is self.inputs):
            self.compilations += 1
            outputs = timed = _compiled(fn, params, self.inputs)
        if is_jax and self._timed_inputs is not self.inputs:
            self.compilations += 1
            timed = _compiled(fn, params, self._timed_inputs)
        if self.runtime != "onnx":
            return _Runs(outputs, timed)
        self.compilations += 1
        model = flat_model(fn, params, self._timed_inputs, None, None, ())
        with tempfile.TemporaryDirectory() as folder:
            write_onnx(Path(folder) / "model.onnx", model)
            session = run_onnx(Path(folder) / "model.onnx")
        return _Runs(outputs, lambda: session(model.input_names, model.inputs))


def _nothing() -> None:
    """What is not timed."""


def _floats(outputs: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in outputs if jnp.issubdtype(x.dtype, jnp.floating) and x.size]


def at_batch(inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """The inputs with a leading axis of this size: their entries are repeated, or the last ones left out."""

    def resized(x: Any) -> Any:
        return jnp.take(x, np.arange(batch) % x.shape[0], 0) if is_array_leaf(x) and x.ndim else x

    return jax.tree.map(resized, inputs)


def check_concrete(params: PyTree, inputs: tuple[Any, ...]) -> None:
    """Raises ValueError if a parameter or an input has no values."""
    for what, tree in (("params", params), ("inputs", inputs)):
        for path, leaf in zip(*flatten_with_paths(tree)[:2], strict=True):
            if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
                raise ValueError(
                    f"`{what}` must be arrays with values, since networks are run with them, got "
                    f"{type(leaf).__name__} at {path!r}. Plan outside of jit."
                )


def _compiled(fn: Callable, params: PyTree, inputs: tuple[Any, ...]) -> Callable[[], list[jax.Array]]:
    """Runs a network on its inputs; leaves that are no arrays stay what they are."""
    found, join = split_leaves((params, inputs), is_array_leaf)
    arrays = [jnp.asarray(x) for x in found]

    @jax.jit
    def run(arrays: Sequence[Any]) -> Any:
        params, inputs = join(arrays)
        return [x for x in jax.tree.leaves(fn(params, *inputs)) if is_array_leaf(x)]

    return lambda: jax.block_until_ready(run(arrays))


def _checked(seconds: Any) -> float:
    value = float(seconds)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"`runtime` must give seconds above 0, got {seconds!r}.")
    return value
