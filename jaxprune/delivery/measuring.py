"""Latencies of the exported model and of the dense one, in JAX and in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.delivery.flat_model import FlatModel
from jaxprune.delivery.latency import shortest_times
from jaxprune.delivery.onnx_model import run_onnx, write_onnx


def latencies(
    exported: FlatModel, dense: FlatModel | None, batches: Sequence[int], onnx: Path | None
) -> list[dict[str, Any]]:
    """One entry for each runtime and batch; times in seconds, None where a model has no ONNX form.

    Args:
      exported, dense: the models.
      batches: sizes of the batch; where it is fixed, only that of the example is measured.
      onnx: the ONNX file of the exported model, None to leave out ONNX Runtime.
    """
    if not batches:
        return []
    models = {"exported": exported, **({} if dense is None else {"dense": dense})}
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {} if onnx is None else {"exported": onnx}
        if onnx is not None and dense is not None:
            try:
                write_onnx(Path(folder) / "dense.onnx", dense)
                files["dense"] = Path(folder) / "dense.onnx"
            except ValueError:
                pass  # the dense model is not what is delivered
        sessions = {name: run_onnx(file) for name, file in files.items()}
        for batch in batches if exported.batch is not None else ("of the example",):
            runs: dict[str, Callable[[], Any]] = {}
            for name, model in models.items():
                inputs = model.at(**{model.batch: int(batch)}) if model.batch is not None else model.inputs
                runs[f"JAX {name}"] = _in_jax(model, inputs)
                if name in sessions:
                    runs[f"ONNX Runtime {name}"] = _in_onnx(sessions[name], model, inputs)
            times = shortest_times(runs)
            for runtime in ("JAX", *(("ONNX Runtime",) if onnx is not None else ())):
                found = {name: times.get(f"{runtime} {name}") for name in models}
                entries.append({"runtime": runtime, "batch": batch, **found})
    return entries


def _in_jax(model: FlatModel, inputs: Sequence[Any]) -> Callable[[], Any]:
    weights, arrays = [jnp.asarray(w) for w in model.weights.values()], [jnp.asarray(x) for x in inputs]
    compiled = jax.jit(model.call)
    return lambda: jax.block_until_ready(compiled(weights, arrays))


def _in_onnx(session: Callable, model: FlatModel, inputs: Sequence[Any]) -> Callable[[], Any]:
    return lambda: session(model.input_names, inputs)
