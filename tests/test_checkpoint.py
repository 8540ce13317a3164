import gc
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune import checkpoint


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


def data(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def everything():
    return {
        "float": jnp.array([1.5, jnp.nan, -0.0]),
        "half": jnp.array([1.0, 2.0], jnp.bfloat16),
        "masks": {"kernel": jnp.array([[True, False]]), "bias": True},
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), (2, 3)),
        "numpy": np.arange(3.0),
        "empty": jnp.zeros((0, 4), jnp.int8),
        "none": None,
        "list": [Pair(jnp.uint32(3), jnp.zeros((), jnp.int32)), ()],
        "numbers": (3, 0.5),
        "a/b": {"c.d": jnp.ones(1)},
    }


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array):
            assert a.dtype == b.dtype
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.shape(a) == np.shape(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path / "new" / "folder", everything())
    same(checkpoint.restore(tmp_path / "new" / "folder", like=everything()), everything())


@pytest.mark.slow
def test_a_train_state_with_masks_comes_back_from_its_abstract_form(tmp_path):
    params = {"w": jnp.ones((2, 3))}
    tx = jp.masked(optax.chain(optax.clip(1.0), optax.adam(1e-3)), {"w": jnp.eye(2, 3) > 0})
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", like=jax.eval_shape(lambda: state))
    assert isinstance(restored, TrainState) and int(restored.step) == 0
    assert restored.step.dtype == jnp.int32
    same(restored.replace(step=0), state)
    after = state.apply_gradients(grads=params)
    checkpoint.save(tmp_path / "after", after)
    assert checkpoint.restore(tmp_path / "after", like=state).step == 1


def test_keys_come_back_from_their_abstract_form(tmp_path):
    keys = {"fry": jax.random.key(3), "rbg": jax.random.split(jax.random.key(3, impl="rbg"), 2)}
    checkpoint.save(tmp_path / "keys", keys)
    same(checkpoint.restore(tmp_path / "keys", like=jax.eval_shape(lambda: keys)), keys)


@pytest.mark.slow
def test_nnx_state_comes_back(tmp_path):
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    checkpoint.save(tmp_path / "nnx", state)
    same(checkpoint.restore(tmp_path / "nnx", like=state), state)


def test_shardings_are_taken_from_like(tmp_path):
    mesh = jax.make_mesh((8,), ("x",))
    sharded = jax.device_put(jnp.arange(16.0), jax.NamedSharding(mesh, jax.P("x")))
    checkpoint.save(tmp_path / "one", {"w": jnp.arange(16.0)})
    restored = checkpoint.restore(tmp_path / "one", like={"w": sharded})["w"]
    assert restored.sharding == sharded.sharding
    np.testing.assert_array_equal(restored, sharded)


@pytest.mark.parametrize("abstract", [False, True])
def test_what_was_on_no_device_in_particular_restores_beside_sharded_parameters(tmp_path, abstract):
    """Moments and counts that `TrainState.create` makes outside `jit` are uncommitted, the parameters are sharded."""
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    place = {
        "w": jax.device_put(jnp.arange(16.0), sharding),
        "key": jax.device_put(jax.random.key(1), jax.NamedSharding(mesh, jax.P())),
    }
    free = {"count": jnp.int32(3), "key": jax.random.key(7), "mask": jnp.ones(16, bool)}
    checkpoint.save(tmp_path / "one", {"place": place, "free": free})
    like = {"place": place, "free": jax.eval_shape(lambda: free) if abstract else free}
    restored = checkpoint.restore(tmp_path / "one", like=like)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.map(data, restored),
        jax.tree.map(data, {"place": place, "free": free}),
    )

    @jax.jit
    def step(place, free):  # an error if arrays of different devices meet
        noise = jax.random.normal(free["key"], (16,)) + jax.random.normal(place["key"], (16,))
        return place["w"] * free["count"] * free["mask"] + 0 * noise

    np.testing.assert_array_equal(step(**restored), 3 * jnp.arange(16.0))


def test_the_latest_is_the_highest_number_among_complete_checkpoints(tmp_path):
    assert checkpoint.latest(tmp_path / "missing") is None and checkpoint.latest(tmp_path) is None
    for step in (9, 10):
        checkpoint.save(tmp_path / f"step_{step}", {"w": jnp.ones(2)})
    # What a process leaves that is killed while Orbax writes, and what is no checkpoint.
    shutil.copytree(tmp_path / "step_10", tmp_path / "step_11.orbax-checkpoint-tmp")
    (tmp_path / "step_12").mkdir()
    (tmp_path / "log_13").write_text("13")
    assert checkpoint.latest(str(tmp_path)) == tmp_path / "step_10"
    checkpoint.save(tmp_path / "best", {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"end in a number.*best"):
        checkpoint.latest(tmp_path)


def test_an_existing_folder_is_left_alone(tmp_path):
    checkpoint.save(tmp_path / "c", {"w": jnp.ones(1)})
    with pytest.raises(FileExistsError, match="`path` must be new"):
        checkpoint.save(tmp_path / "c", {"w": jnp.zeros(1)})
    assert checkpoint.restore(tmp_path / "c", like={"w": jnp.zeros(1)})["w"] == 1


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.ones((2, 3)), "k": 1}, r"lacks 'k', which `like` has \(there are: 'key', 'w'; 2 in all"),
        ({"w": jnp.ones((2, 3))}, "has 'key', which `like` lacks"),
        ({"w": jnp.ones((3, 2)), "key": jax.random.key(0)}, r"has shape \(2, 3\) at 'w', but .* \(3, 2\)"),
        ({"w": jnp.ones((2, 3), jnp.int32), "key": jax.random.key(0)}, "dtype float32 at 'w', but .* int32"),
        ({"w": jnp.ones((2, 3)), "key": jax.random.key(0, impl="rbg")}, "dtype key<fry> at 'key', but .*rbg"),
        ({"w": jnp.ones((2, 3)), "key": jnp.zeros(2, jnp.uint32)}, "at 'key'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, like, message):
    checkpoint.save(tmp_path / "c", {"w": jnp.ones((2, 3)), "key": jax.random.key(0)})
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "c", like=like)


def test_other_bad_input_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        checkpoint.restore(tmp_path / "nothing", like={"w": 1})
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="is not a checkpoint that"):
        checkpoint.restore(tmp_path / "other", like={"w": 1})
    with pytest.raises(ValueError, match="no leaves"):
        checkpoint.save(tmp_path / "c", {})
    with pytest.raises(TypeError, match="got str at 'a/0'"):
        checkpoint.save(tmp_path / "c", {"a": ["text"]})
    with pytest.raises(ValueError, match="two leaves of the same name 'a/b'"):
        checkpoint.save(tmp_path / "c", {"a": {"b": 1}, "a/b": 2})
    assert not (tmp_path / "c").exists()


def test_empty_arrays_alone_come_back(tmp_path):
    checkpoint.save(tmp_path / "c", {"w": jnp.zeros((0, 3))})
    assert checkpoint.restore(tmp_path / "c", like={"w": jnp.zeros((0, 3))})["w"].shape == (0, 3)


@pytest.mark.slow
def test_without_orbax_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['orbax'] = sys.modules['orbax.checkpoint'] = None\n"
        "from jaxprune import checkpoint\n"
        "try: checkpoint.save('never', {'w': 1.0})\n"
        "except ImportError as error: assert \"pip install 'jaxprune[checkpoint]'\" in str(error), error\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


NUMBERS = [  # saved, like, whether the wanted dtype holds it
    (300, jnp.int8(0), False),
    (300, np.int8(0), False),
    (300, jnp.int32(0), True),
    (-128, jnp.int8(0), True),
    (-129, jnp.int8(0), False),
    (2**31, jnp.int32(0), False),
    (2**63 - 1, 0, True),
    (np.float64(1e39), 0.0, True),
    (1e39, jnp.float32(0), False),
    (1e-60, jnp.float32(0), False),
    (0.1, jnp.float32(0), True),
    (70_000.0, jnp.float16(0), False),
    (float("-inf"), jnp.float16(0), True),
    (2 + 1e39j, jnp.complex64(0), False),
    (True, jnp.bool_(False), True),
    (jnp.int32(300), 0, True),
    (3, jnp.uint8(0), False),
    (0.5, jnp.int32(0), False),
    (0.5, 0, False),
    (2, False, False),
]


@pytest.mark.slow
def test_a_number_is_restored_only_into_what_holds_it(tmp_path):
    checkpoint.save(tmp_path / "c", [{"step": saved} for saved, _, _ in NUMBERS])
    likes = [{"step": saved} for saved, _, _ in NUMBERS]
    for i, (saved, like, holds) in enumerate(NUMBERS):
        tree = [*likes[:i], {"step": like}, *likes[i + 1 :]]
        if not holds:
            with pytest.raises(
                ValueError, match=rf"the checkpoint {tmp_path}/c has .* at '{i}/step', but `like`"
            ):
                checkpoint.restore(tmp_path / "c", like=tree)
            continue
        found = checkpoint.restore(tmp_path / "c", like=tree)[i]["step"]
        assert isinstance(found, type(like)) and getattr(found, "dtype", None) == getattr(like, "dtype", None)
        assert found == (np.asarray(saved, like.dtype) if hasattr(like, "dtype") else saved)


def test_an_integer_beyond_64_bits_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="integers of at most 64 bits, got 9223372036854775808 at 'n'"):
        checkpoint.save(tmp_path / "c", {"n": 2**63})
    assert not (tmp_path / "c").exists()


# Orbax leaves its other reads behind when one of them fails.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_damage_is_an_error_that_names_the_folder_or_does_no_harm(tmp_path, caplog):
    caplog.set_level("CRITICAL")
    tree = {"w": jax.random.normal(jax.random.key(0), (64, 32)), "n": 3, "m": jnp.arange(5) > 2}
    checkpoint.save(tmp_path / "whole", tree)
    files = [f.relative_to(tmp_path / "whole") for f in (tmp_path / "whole").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: (tmp_path / "whole" / f).stat().st_size)
    found = {}
    for name, damage in [
        ("cut", lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])),
        ("gone", lambda f: f.unlink()),
        ("changed", lambda f: f.write_bytes(f.read_bytes()[:4000] + b"!?" + f.read_bytes()[4002:])),
    ]:
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        damage(tmp_path / name / largest)
        with pytest.raises(ValueError, match=f"the checkpoint {tmp_path}/{name} (cannot be read|is damaged)"):
            checkpoint.restore(tmp_path / name, like=tree)
    for i, file in enumerate(files):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{i}")
        (tmp_path / f"{i}" / file).write_bytes(b"")
        try:
            same(checkpoint.restore(tmp_path / f"{i}", like=tree), tree)
        except ValueError as error:
            found[str(file)] = str(error)
    gc.collect()
    assert found and all(str(tmp_path) in message for message in found.values())
