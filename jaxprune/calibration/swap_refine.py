"""Better masks for a model that is already pruned, whatever pruned it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.layerwise import Layers, Refinement
from jaxprune.calibration.model import RowWeights, open_model
from jaxprune.calibration.reconstruct import OnLayer, send_through
from jaxprune.calibration.swaps import Swaps
from jaxprune.params import PyTree, aligned, flatten_with_paths, is_kept_whole, mask_leaves
from jaxprune.structures import Structure, Unstructured


def swap_refine(
    fn: Callable[..., Any],
    params: PyTree,
    pruned: PyTree,
    masks: PyTree,
    batches: Iterable[Any],
    structure: Structure = Unstructured(),
    swaps: Refinement = Swaps(),
    *,
    row_weights: RowWeights | None = None,
    on_layer: OnLayer | None = None,
    progress: bool = False,
) -> tuple[PyTree, PyTree]:
    """Swaps kept and pruned weights of each output while its layer's error falls: see `Swaps`.

    Each layer is refined on the inputs that the refined layers before it give; each output keeps its count
    of weights, N:M stays N:M.

    Args:
      fn: function of (params, *inputs).
      params: the dense parameters: what the layers should give.
      pruned: the pruned parameters.
      masks: their masks; leaves that are the scalar True are left alone.
      batches: iterable of batches of one shape: each a tuple of inputs, or one input.
      structure: `Unstructured()`, or the `NM(n, m)` that the masks have.
      swaps: `Swaps(...)`, or another refinement such as `LeastSquares()`.
      row_weights: function of the inputs of a batch that weighs rows, such as the padding mask.
      on_layer: is called with a `LayerResult` for each weight.
      progress: whether to show a progress bar.

    Returns:
      (params, masks), as `reconstruct` returns them.

    Raises:
      ValueError: trees that don't match; masks that aren't of the structure; what `reconstruct` raises.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> fn = lambda params, x: x @ params["w"]
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
      >>> pruned = jp.apply_masks(params, masks)
      >>> x = jax.random.normal(jax.random.key(1), (32, 8)) * jnp.arange(8)
      >>> better, _ = jp.swap_refine(fn, params, pruned, masks, [x])
      >>> error = lambda p: float(jnp.sum((fn(p, x) - fn(params, x)) ** 2))
      >>> error(better) < error(pruned)
      True

    References:
      Zimmer et al., SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, 2025, arXiv:2512.10922.
    """
    paths, leaves, treedef = flatten_with_paths(params)
    by_path = dict(
        zip(
            paths,
            zip(leaves, aligned(params, pruned, "pruned"), mask_leaves(params, masks), strict=True),
            strict=True,
        )
    )
    chosen = [not is_kept_whole(mask) for _, _, mask in by_path.values()]
    where = jax.tree.unflatten(treedef, chosen)
    model = open_model(fn, params, batches, where, row_weights)
    layers = Layers(model, structure)

    def start(use, w0, gram, shared):
        del w0, gram, shared
        _, w, mask = by_path[model.paths[use.leaf]]
        mask = np.broadcast_to(np.asarray(mask), w.shape)
        mask = jnp.asarray(use.matrix.of(np.ascontiguousarray(mask)))
        return jnp.asarray(use.matrix.of(np.array(w)), jnp.float32), mask

    send_through(layers, start, (swaps,), on_layer=on_layer, progress=progress)
    return layers.result(params)
