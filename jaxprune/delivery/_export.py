"""A model as a folder of files that run without jaxprune and without the model's code."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.delivery import onnx_model, stablehlo, standalone
from jaxprune.delivery.comparison import Errors, default_tolerance, largest_errors
from jaxprune.delivery.flat_model import FlatModel, flat_model, size_of
from jaxprune.delivery.measuring import latencies
from jaxprune.delivery.report import FORMAT, Exported, as_json, as_page, changed_shapes
from jaxprune.delivery.safetensors_file import write_arrays
from jaxprune.delivery.weights import load_weights, save_weights
from jaxprune.files import check_new_folder, write_whole_folder
from jaxprune.jaxprs import is_array_leaf
from jaxprune.jaxprs.flops import total_flops
from jaxprune.masking import sparsity
from jaxprune.params import PyTree, flatten_with_paths, is_kept_whole, mask_leaves
from jaxprune.surgery import ComposedPlan, LayerPlan

FORMATS = ("stablehlo", "onnx", "safetensors")


def export(
    folder: str | os.PathLike[str],
    fn: Callable,
    params: PyTree,
    *inputs: Any,
    batch: str | None = "b",
    formats: Sequence[str] = FORMATS,
    masks: PyTree = None,
    plan: Any = None,
    packed: bool = False,
    reference: tuple[Callable, PyTree] | None = None,
    shapes: Sequence[str] | None = None,
    constraints: Sequence[str] = (),
    constants: bool = False,
    platforms: Sequence[str] | None = None,
    tolerance: float | None = None,
    latency_batches: Sequence[int] = (1, 32),
) -> Exported:
    """Writes a model as files that run elsewhere, and checks them against the function.

    The folder has `weights.safetensors` (named by canonical paths), `model.stablehlo` (of `jax.export`; it takes the
    weights in the order of their names, then the inputs), `model.onnx`, `example.safetensors` (the inputs and
    outputs), `load.py` (`python load.py` runs the model with NumPy and either onnxruntime, or JAX and flatbuffers),
    the plan, and `report.json` and `report.md`: parameters, bytes, FLOPs, latencies, the largest error of each
    format, and what was removed. The folder is complete or not there, also if the process is killed.

    Args:
      folder: a new folder, or an empty one.
      fn: function `fn(params, *inputs)` of an array or a tree of arrays.
      params: pytree of arrays. With a plan: the full parameters, for which `fn` is compacted and they are shrunk, or
        already the small ones, of which `fn` is then the small function.
      *inputs: example inputs, pytrees of arrays. In the files a typed PRNG key is its `jax.random.key_data`.
      batch: name of the leading axis of every input, whose size may then vary; None for the sizes of the example.
      formats: some of "stablehlo", "onnx" (both need the extra `jaxprune[export]`) and "safetensors".
      masks: masks of the parameters, for the report. Where they prune, the weights must be zero.
      plan: the `Plan` or `LayerPlan` by which the model was made small.
      packed: whether `weights.safetensors` leaves out zeros, as `save_weights` does.
      reference: (function, parameters) of the dense model, to which size and latency are compared.
      shapes: in place of `batch` on the leading axes, a text for each input array, such as "b, s" or "b, _, ...": a
        symbol for a size that may vary, `_` for that of the example.
      constraints: on these symbols, such as "s <= 512" (see `jax.export.symbolic_args_specs`).
      constants: whether the weights are constants of `model.stablehlo` rather than its first inputs.
      platforms: for `model.stablehlo`, such as ("cpu", "cuda", "tpu"); None for that of this process.
      tolerance: largest error relative to the largest output; None for 1e-4, or 8 roundings of the narrowest float.
      latency_batches: sizes of the batch at which latencies are measured; () for none.

    Returns:
      An `Exported`: printing it shows the report, `report` has the numbers.

    Raises:
      FileExistsError: if the folder exists and is not empty.
      ValueError: if a format can't express the function (the message says why), if its outputs are further from the
        function's than `tolerance`, if a pruned weight is not zero, or if arguments do not fit each other.
      ImportError: if jax2onnx or onnxruntime is missing for "onnx", or flatbuffers for "stablehlo".

    Example:
      >>> import os, tempfile, jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> folder = tempfile.mkdtemp() + "/model"
      >>> done = jp.export(folder, fn, params, jnp.ones((4, 3)), formats=("safetensors",), latency_batches=())
      >>> sorted(os.listdir(folder))
      ['example.safetensors', 'load.py', 'report.json', 'report.md', 'weights.safetensors']
      >>> done.report["errors"]["safetensors"]["absolute"]
      0.0
    """
    _check_formats(formats, packed, constants)
    check_new_folder(folder)
    if "onnx" in formats:
        onnx_model.check_installed()
    if "stablehlo" in formats:
        stablehlo.check_installed()
    if plan is not None and _is_full(plan, params):
        reference = reference or (fn, params)
        fn, params, masks = (
            plan.compact(fn),
            plan.shrink(params),
            None if masks is None else plan.shrink(masks),
        )
    share = None if masks is None else _checked_sparsity(params, masks)
    sizes = (batch, shapes, constraints)
    model = flat_model(fn, params, inputs, *sizes)
    dense = None if reference is None else flat_model(*_pair(reference), inputs, *sizes)
    report: dict[str, Any] = {}

    def write(place: Path) -> None:
        described = _metadata(share, plan)
        files = _Files(place, model, tolerance)
        if "safetensors" in formats:
            files.weights(packed, described)
        if "stablehlo" in formats:
            files.stablehlo(constants, platforms)
        if "onnx" in formats:
            files.onnx()
        files.example()
        shutil.copyfile(standalone.__file__, place / "load.py")
        for i, part in enumerate(_parts(plan)):
            part.save(place / f"plan_{i}.{'json' if isinstance(part, LayerPlan) else 'npz'}")
        onnx = place / "model.onnx" if "onnx" in formats else None
        report.update(
            format=FORMAT,
            versions=_versions(formats),
            machine=f"{platform.system()} {platform.machine()}, {jax.default_backend()}",
            **files.signature(),
            parameters=_of_both(lambda of: size_of(of.weights), model, dense),
            bytes=_of_both(lambda of: sum(w.nbytes for w in of.weights.values()), model, dense),
            flops=_of_both(_flops, model, dense),
            files={file.name: file.stat().st_size for file in sorted(place.iterdir())},
            errors={name: {**e._asdict(), "tolerance": files.tolerance} for name, e in files.errors.items()},
            latency=latencies(model, dense, latency_batches, onnx),
            sparsity=share,
            removed={} if plan is None else changed_shapes(plan),
        )
        report["parameters"]["nonzero"] = sum(int(np.count_nonzero(w)) for w in model.weights.values())
        (place / "report.json").write_text(as_json(report), encoding="utf-8")
        (place / "report.md").write_text(as_page(report), encoding="utf-8")

    write_whole_folder(folder, write)
    return Exported(Path(folder), report)


class _Files:
    """Writes the files of a model one after the other, and compares each with the function."""

    def __init__(self, place: Path, model: FlatModel, tolerance: float | None):
        self.place, self.model = place, model
        self.errors: dict[str, Errors] = {}
        run = jax.jit(model.call)
        weights = [jnp.asarray(w) for w in model.weights.values()]
        other = model.elsewhere()
        self.cases = [(model.inputs, run(weights, model.inputs))]
        if other is not None:
            try:
                self.cases.append((other, run(weights, other)))
            except Exception as error:
                raise ValueError(
                    f"`fn` can't run at inputs of the shapes {[x.shape for x in other]}: "
                    f"{stablehlo.first_lines(error)}.{stablehlo.remedy(model)}"
                ) from error
        arrays = [*model.weights.values(), *model.inputs, *self.cases[0][1]]
        self.tolerance = default_tolerance(arrays) if tolerance is None else tolerance

    def weights(self, packed: bool, described: dict[str, str]) -> None:
        path = self.place / "weights.safetensors"
        save_weights(path, dict(self.model.weights), packed, described)
        found = load_weights(path)
        run = jax.jit(self.model.call)
        self._check("safetensors", lambda *inputs: run([found[name] for name in self.model.weights], inputs))

    def stablehlo(self, constants: bool, platforms: Sequence[str] | None) -> None:
        path = self.place / "model.stablehlo"
        path.write_bytes(stablehlo.to_stablehlo(self.model, constants, platforms))
        if platforms is not None and jax.default_backend() not in platforms:
            raise ValueError(
                f"`platforms` must include {jax.default_backend()!r}, where the file is checked, got {platforms}."
            )
        given = [] if constants else list(self.model.weights.values())
        self._check("stablehlo", stablehlo.from_stablehlo(path.read_bytes(), given))

    def onnx(self) -> None:
        path = self.place / "model.onnx"
        onnx_model.write_onnx(path, self.model)
        names = self.model.input_names

        def run(*inputs: Any) -> Sequence[Any]:
            return session(names, inputs)

        try:
            session = onnx_model.run_onnx(path)
            self._check("onnx", run)
        except ValueError:
            raise
        except Exception as error:  # those of ONNX Runtime have no class in common
            raise ValueError(
                f'ONNX Runtime can\'t run the model: {str(error)[:400]} Leave out "onnx" from `formats`.'
            ) from error

    def example(self) -> None:
        inputs, outputs = self.cases[0]
        named = [*zip(self.model.input_names, inputs, strict=True)]
        named += zip(self.model.output_names, map(np.asarray, outputs), strict=True)
        write_arrays(self.place / "example.safetensors", dict(named), {})

    def signature(self) -> dict[str, Any]:
        model, (inputs, outputs) = self.model, self.cases[0]
        ins = zip(model.input_names, model.dims, inputs, strict=True)
        outs = zip(model.output_names, model.output_dims(), outputs, strict=True)
        return {
            name: [{"name": n, "shape": list(dims), "dtype": str(x.dtype)} for n, dims, x in arrays]
            for name, arrays in (("inputs", ins), ("outputs", outs))
        }

    def _check(self, name: str, run: Callable[..., Sequence[Any]]) -> None:
        errors = Errors(0.0, 0.0)
        for inputs, wanted in self.cases:
            try:
                errors = errors.join(largest_errors(run(*inputs), wanted))
            except ValueError as error:
                raise ValueError(
                    f"the {name!r} file does not compute what `fn` computes: {error}."
                ) from error
        if not errors.relative <= self.tolerance:
            raise ValueError(
                f"the outputs of the {name!r} file differ from those of `fn` by {errors.relative:.1e} of the largest "
                f"output, more than {self.tolerance:.1e}. Leave it out from `formats`, or pass a larger `tolerance`."
                f"{stablehlo.remedy(self.model)}"
            )
        self.errors[name] = errors


def _check_formats(formats: Sequence[str], packed: bool, constants: bool) -> None:
    if isinstance(formats, str) or not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f"`formats` must be some of {FORMATS}, got {formats!r}.")
    if "safetensors" not in formats:
        if packed:
            raise ValueError('packed=True is about weights.safetensors: add "safetensors" to `formats`.')
        if "stablehlo" in formats and not constants:
            raise ValueError(
                'model.stablehlo takes its weights from weights.safetensors: add "safetensors" to `formats`, or pass '
                "constants=True."
            )


def _is_full(plan: Any, params: PyTree) -> bool:
    """Whether these are the parameters that a plan was made for, rather than those that it leaves."""
    paths, leaves, _ = flatten_with_paths(params)
    shapes = {
        path: tuple(np.shape(leaf)) for path, leaf in zip(paths, leaves, strict=True) if is_array_leaf(leaf)
    }
    if shapes == dict(plan.shapes):
        return True
    if shapes == plan.small_shapes:
        return False
    different = sorted(shapes.items() ^ dict(plan.shapes).items())
    raise ValueError(
        "`params` are neither those that `plan` was made for nor those that it leaves: they differ from the former "
        f"at {different[0][0]!r}."
    )


def _checked_sparsity(params: PyTree, masks: PyTree) -> float:
    """The sparsity of masks; raises ValueError if a pruned weight is not zero."""
    paths, leaves, _ = flatten_with_paths(params)
    for path, w, mask in zip(paths, leaves, mask_leaves(params, masks), strict=True):
        if is_kept_whole(mask):
            continue
        wrong = int(np.count_nonzero(np.asarray(w)[~np.broadcast_to(np.asarray(mask), np.shape(w))]))
        if wrong:
            raise ValueError(
                f"`masks` prune {wrong} weights of {path!r} that are not zero: pass `jp.apply_masks(params, masks)`."
            )
    return float(sparsity(params, masks))


def _pair(reference: Any) -> tuple[Callable, PyTree]:
    if not (isinstance(reference, tuple) and len(reference) == 2 and callable(reference[0])):
        raise ValueError("`reference` must be a pair (function, parameters) of the dense model.")
    return reference


def _parts(plan: Any) -> list[Any]:
    """The plans that a plan is composed of."""
    if isinstance(plan, ComposedPlan):
        return [*_parts(plan.first), *_parts(plan.later)]
    return [] if plan is None else [plan]


def _metadata(share: float | None, plan: Any) -> dict[str, str]:
    texts = {"jaxprune": metadata.version("jaxprune") if _is_installed() else "", "jax": jax.__version__}
    if share is not None:
        texts["sparsity"] = f"{share:.6g}"
    if plan is not None:
        texts["plan"] = json.dumps(changed_shapes(plan), separators=(",", ":"))
    return texts


def _is_installed() -> bool:
    try:
        metadata.version("jaxprune")
    except metadata.PackageNotFoundError:
        return False
    return True


def _versions(formats: Sequence[str]) -> dict[str, str]:
    names = ["jax", "jaxlib", *(("jax2onnx", "onnxruntime") if "onnx" in formats else ())]
    return {
        **({"jaxprune": metadata.version("jaxprune")} if _is_installed() else {}),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def _of_both(count: Callable[[FlatModel], int], model: FlatModel, dense: FlatModel | None) -> dict[str, int]:
    return {"exported": count(model), **({} if dense is None else {"dense": count(dense)})}


def _flops(model: FlatModel) -> int:
    specs = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in model.weights.values()]
    return total_flops(jax.make_jaxpr(model.call)(specs, list(model.inputs)).jaxpr)
