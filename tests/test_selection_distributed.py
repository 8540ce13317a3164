"""Two processes of four CPU devices each choose the same masks as one device."""

import pathlib
import sys

import numpy as np
import pytest
from two_at_once import outputs_of_two

SHAPES = ((16, 24), (8,), (3, 3, 4, 8), (5, 3))


def leaves():
    rng = np.random.default_rng(0)
    return [np.round(rng.standard_normal(shape), 1).astype(np.float32) for shape in SHAPES]


def run_process(address: str, process: int, folder: str) -> None:
    """Selects on arrays that span both processes, and saves the shards that this one holds."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxprune.selection import nm_keep, select

    jax.distributed.initialize(address, num_processes=2, process_id=process)
    assert jax.device_count() == 8 and jax.local_device_count() == 4
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P("data"), P("data"), P(None, None, None, "data"), P())
    scores = [
        jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec), leaf.__getitem__)
        for leaf, spec in zip(leaves(), specs, strict=True)
    ]
    keeps = {f"{k}": select(scores, k) for k in (1, 300, 650)}
    keeps["nm"] = [jax.jit(lambda score: nm_keep(score, 1, 2, 0))(scores[0])]
    shards = {}
    for name, masks in keeps.items():
        for i, mask in enumerate(masks):
            for shard in mask.addressable_shards:
                bounds = [s.indices(n)[:2] for s, n in zip(shard.index, mask.shape, strict=True)]
                shards["/".join([name, str(i), *(f"{a}:{b}" for a, b in bounds)])] = np.asarray(shard.data)
    np.savez(pathlib.Path(folder) / f"{process}.npz", **shards)
    jax.distributed.shutdown()


@pytest.mark.slow
def test_two_processes_agree_with_one_device(tmp_path):
    import jax.numpy as jnp

    from jaxprune.selection import nm_keep, select

    outputs_of_two(__file__, lambda i: (i, tmp_path), timeout=180)

    wanted = {f"{k}": select(leaves(), k) for k in (1, 300, 650)}
    wanted["nm"] = [nm_keep(jnp.asarray(leaves()[0]), 1, 2, 0)]
    seen = {
        (name, i): np.zeros(mask.shape, bool)
        for name, masks in wanted.items()
        for i, mask in enumerate(masks)
    }
    for process in range(2):
        for key, shard in np.load(tmp_path / f"{process}.npz").items():
            name, i, *bounds = key.split("/")
            index = tuple(slice(*map(int, bound.split(":"))) for bound in bounds)
            np.testing.assert_array_equal(shard, wanted[name][int(i)][index])
            seen[name, int(i)][index] = True
    assert all(covered.all() for covered in seen.values())


if __name__ == "__main__":
    run_process(sys.argv[1], int(sys.argv[2]), sys.argv[3])
