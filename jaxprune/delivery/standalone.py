"""Runs the exported model of this folder on its example: `python load.py [onnx | stablehlo | weights]`.

It needs NumPy, and to run the model onnxruntime (for model.onnx) or JAX and flatbuffers (for model.stablehlo).
"""

import importlib.util
import json
import math
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
DTYPES = {"BOOL": "?", "BF16": "<u2", "C64": "<c8", **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)}}
DTYPES.update({f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)})


def read(path):
    """The arrays of a safetensors file, packed or not; bfloat16 becomes float32, which holds it exactly."""
    raw = pathlib.Path(path).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, arrays = json.loads(raw[8:start]), {}
    packed = json.loads(header.pop("__metadata__", {}).get("packed", "{}"))
    for name, x in header.items():
        place = start + x["data_offsets"][0]
        array = np.frombuffer(raw, DTYPES[x["dtype"]], math.prod(x["shape"]), place).reshape(x["shape"])
        is_bf16 = x["dtype"] == "BF16"
        arrays[name] = (array.astype("<u4") << 16).view("<f4") if is_bf16 else array
    for name, (shape, axis, n, m) in packed.items():
        values, bits = (
            arrays.pop(name + ".values"),
            np.unpackbits(arrays.pop(name + ".where"), bitorder="little"),
        )
        kept, width = np.zeros((math.prod(shape) // (m or 1), m or 1), bool), max(m - 1, 0).bit_length()
        if m:  # n of every m entries along the axis: the place of each in its group
            places = bits[: len(kept) * n * width].reshape(-1, n, width) @ (1 << np.arange(width))
            np.put_along_axis(kept, places, True, axis=1)
        else:
            kept[:, 0] = bits[: len(kept)]
        flat = np.zeros(kept.size, values.dtype)
        flat[kept.ravel()] = values
        shape.append(shape.pop(axis))
        arrays[name] = np.moveaxis(flat.reshape(shape), -1, axis)
    return arrays


def onnx(names, inputs):
    """The outputs of model.onnx."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    used = {x.name for x in session.get_inputs()}
    return session.run(None, {name: x for name, x in zip(names, inputs, strict=True) if name in used})


def stablehlo(names, inputs):
    """The outputs of model.stablehlo; the weights, by their names, come before the inputs unless they are in it."""
    import jax
    import jax.export

    model = jax.export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
    weights = []
    if len(model.in_avals) > len(inputs):
        weights = [x for _, x in sorted(read(HERE / "weights.safetensors").items())]
    arrays = zip([*weights, *inputs], model.in_avals, strict=True)
    return model.call(*(jax.numpy.asarray(x, aval.dtype) for x, aval in arrays))


def choose():
    """The first way for which a file and a package are here."""
    for name, package in (("onnx", "onnxruntime"), ("stablehlo", "jax")):
        if (HERE / f"model.{name}").exists() and importlib.util.find_spec(package):
            return name
    return "weights"


def main(way=None):
    way = way or choose()
    if way == "weights":
        for name, x in read(HERE / "weights.safetensors").items():
            print(f"{name}: {x.dtype} {x.shape}, {np.count_nonzero(x)} of {x.size} not zero")
        return
    report, example = json.loads((HERE / "report.json").read_text()), read(HERE / "example.safetensors")
    names = [x["name"] for x in report["inputs"]]
    try:
        outputs = {"onnx": onnx, "stablehlo": stablehlo}[way](names, [example[name] for name in names])
    except ModuleNotFoundError as error:
        sys.exit(f"model.{way} needs the package {error.name}: pip install {error.name}")
    for x, found in zip(report["outputs"], outputs, strict=True):
        found, wanted = np.asarray(found), example[x["name"]]
        error = np.abs(found.astype("c16") - wanted.astype("c16")).max(initial=0)
        print(f"{way}, {x['name']}: {found.dtype} {found.shape}, largest error {error:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
