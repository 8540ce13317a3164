"""Calibration that was stopped goes on to the same bits, whatever the options and wherever it was stopped."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from one_weight import draw

import jaxprune as jp
from jaxprune.calibration.engine.fingerprint import text_of
from jaxprune.calibration.engine.journal import Journal

WIDTH, HIDDEN, LAYERS = 4, 8, 2


class Stopped(Exception):
    pass


def residual(params, x, mask):
    """Stacked residual branches, statistics of a BatchNorm, and a matrix that is used twice."""

    def layer(x, p):
        return x + jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"], None

    x = x @ params["tied"]
    x = (x - params["mean"]) * lax.rsqrt(params["var"] + 1e-3)
    return lax.scan(layer, x, params["layers"])[0] @ params["tied"]


def hidden(params, x):
    return jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]


def stacked():
    layers = {
        "up": draw(0, LAYERS, WIDTH, HIDDEN) / 2,
        "bias": jnp.zeros((LAYERS, HIDDEN)),
        "down": draw(1, LAYERS, HIDDEN, WIDTH) / 3,
    }
    statistics = {"mean": draw(6, WIDTH), "var": 1 + jnp.square(draw(7, WIDTH))}
    return {"layers": layers, "tied": draw(2, WIDTH, WIDTH), **statistics}


def of_two():
    return {"up": draw(0, 8, 16), "bias": draw(1, 16), "down": draw(2, 16, 8)}


def padded():
    return [(x, jnp.arange(20)[:, None] < 15 + i) for i, x in enumerate(draw(3, 2, 20, WIDTH))]


def case(name):
    """(function, parameters, batches, options)."""
    refit = jp.Refit(steps=3, learning_rate=0.03)
    if name == "everything":
        options = {
            "refine": (refit,),
            "dense_targets": 0.5,
            "row_weights": lambda x, mask: mask[:, 0],
            "fisher": jax.tree.map(jnp.square, stacked()),
        }
        return residual, stacked(), padded(), options
    if name == "diagonal":
        return residual, stacked(), padded(), {"method": jp.MaskOnly("wanda")}
    if name == "plain":
        return hidden, of_two(), [draw(5, 20, 8)], {}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), of_two())
    batches = list(draw(5, 2, 20, 8).astype(jnp.bfloat16))
    groups = jp.find_groups(hidden, params, batches[0])
    return hidden, params, batches, {"structure": jp.NM(2, 4), "permute": groups}


def bits(tree):
    return [(np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.fixture
def stop_at(monkeypatch):
    """Stops the journal at its n-th write, which leaves half of a file beside it."""
    write = Journal._write

    def arm(n):
        left = iter(range(n))

        def stopping(self, name, record):
            if next(left, None) is None:
                (self.path / f".{name}.0.partial").write_bytes(b"PK half of it")
                raise Stopped
            write(self, name, record)

        monkeypatch.setattr(Journal, "_write", stopping)

    yield arm
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "diagonal", "permuted"])
@pytest.mark.filterwarnings("ignore:`batches` say nothing about weights")
def test_a_run_that_was_stopped_anywhere_has_the_bits_of_one_that_was_not(name, tmp_path, stop_at):
    fn, params, batches, options = case(name)
    log = None if name == "diagonal" else []

    def run(**more):
        rows = None if log is None else []
        on_layer = None if rows is None else rows.append
        return *jp.reconstruct(fn, params, batches, on_layer=on_layer, **options, **more), rows

    *want, rows = run()
    writes = {"everything": 9, "diagonal": 7, "permuted": 3}[name]
    for stop in range(writes):
        folder = tmp_path / str(stop)
        stop_at(stop)
        with pytest.raises(Stopped):
            run(checkpoint=folder)
        stop_at(writes - stop)
        for _ in range(2):  # the second time it is finished
            *found, again = run(checkpoint=folder)
            assert bits(found) == bits(want) and again == rows
            assert sorted(os.listdir(folder)) == ["result.npz", "settings.json"]


def test_a_finished_run_sends_no_batch_through_the_model(tmp_path, monkeypatch):
    fn, params, batches, options = case("permuted")
    want = jp.reconstruct(fn, params, batches, checkpoint=tmp_path / "run", **options)
    monkeypatch.setattr("jaxprune.calibration.engine.model.CalibrationModel.stream", None)
    assert bits(jp.reconstruct(fn, params, batches, checkpoint=tmp_path / "run", **options)) == bits(want)


def test_a_refit_goes_on_where_it_was_stopped(tmp_path, stop_at):
    params, batches = stacked(), padded()
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5)

    def run(**more):
        rows = []
        settings = jp.Refit(steps=3, learning_rate=0.03, dense_targets=0.5)
        return jp.refit(residual, params, masks, batches, settings, on_layer=rows.append, **more), rows

    want, rows = run()
    stop_at(1)
    with pytest.raises(Stopped):
        run(checkpoint=tmp_path / "run")
    stop_at(1000)
    for _ in range(2):
        found, again = run(checkpoint=tmp_path / "run")
        assert bits(found) == bits(want) and again == rows


def test_a_file_that_cannot_be_read_is_computed_again(tmp_path):
    params, x = of_two(), draw(5, 20, 8)
    want = jp.reconstruct(hidden, params, [x], checkpoint=tmp_path / "run")
    (tmp_path / "run" / "result.npz").write_bytes(b"PK half of it")
    assert bits(jp.reconstruct(hidden, params, [x], checkpoint=tmp_path / "run")) == bits(want)


def test_the_folder_of_another_run_is_refused_and_the_message_says_why(tmp_path):
    params, x = of_two(), draw(5, 20, 8)
    run, folder = jp.reconstruct, {"checkpoint": tmp_path / "run"}
    run(hidden, params, [x], 0.5, **folder)
    for what, args, more in (
        ("another `fn`", (lambda p, x: hidden(p, x) * 2, params, [x], 0.5), {}),
        ("another `params`", (hidden, {**params, "bias": params["bias"] + 1}, [x], 0.5), {}),
        ("another `batches`", (hidden, params, [x, x], 0.5), {}),
        ("another `sparsity`", (hidden, params, [x], 0.6), {}),
        ("another `fisher`", (hidden, params, [x], 0.5), {"fisher": jax.tree.map(jnp.square, params)}),
        (r"its `dense_targets` was 0\.0, not 1\.0", (hidden, params, [x], 0.5), {"dense_targets": 1}),
        ("its `method` was SparseGPT", (hidden, params, [x], 0.5), {"method": jp.SparseGPT(damping=0.1)}),
        ("another `row_weights`", (hidden, params, [x], 0.5), {"row_weights": lambda x: x[:, 0] > 0}),
    ):
        with pytest.raises(ValueError, match=f"`checkpoint` .*{what}.*choose another folder"):
            run(*args, **more, **folder)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="has other files"):
        run(hidden, params, [x], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        run(hidden, params, [x], checkpoint=tmp_path / "notes.txt")


def test_settings_of_a_run_without_results_may_change(tmp_path):
    params, x = of_two(), draw(5, 20, 8)
    with pytest.raises(ValueError, match="`fisher`"):
        jp.reconstruct(hidden, params, [x], fisher={"up": params["up"]}, checkpoint=tmp_path / "run")
    jp.reconstruct(hidden, params, [x], checkpoint=tmp_path / "run")


def test_texts_tell_functions_by_what_they_compute():
    def scaled(by):
        return lambda x: x * by

    assert text_of(scaled(2.0)) == text_of(scaled(2.0)) != text_of(scaled(3.0))
    assert text_of(jax.jit(scaled(2.0))) != text_of(jax.jit(scaled(3.0)))
    assert text_of(np.arange(3)) != text_of(np.arange(3.0)) != text_of(np.arange(3.0)[::-1])
    assert text_of(jax.random.key(0)) != text_of(jax.random.key(1))
    assert text_of({"b": 1, "a": {3, 1}}) == text_of({"a": {1, 3}, "b": 1})
    itself = []
    itself.append(itself)
    assert "0x" not in text_of([itself, object(), jax.nn.relu, jp.Refit(optimizer=None)])


KILLED = """
    import os, signal, sys
    sys.path.insert(0, os.path.dirname(sys.argv[2]))
    import numpy as np
    import test_calibration_checkpoint as here
    from jaxprune.calibration.engine import journal
    import jaxprune as jp

    savez, left = np.savez, iter(range(2))

    def killing(out, *arrays, **named):
        if next(left, None) is None:
            out.write(b"PK half of it")
            out.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        savez(out, *arrays, **named)

    np.savez = killing
    fn, params, batches, options = here.case("plain")
    jp.reconstruct(fn, params, batches, checkpoint=sys.argv[1], **options)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_while_it_wrote_is_continued_by_another(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), __file__]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert {"settings.json", "site_00000.npz"} <= set(os.listdir(folder))
    assert any(name.endswith(".partial") for name in os.listdir(folder))
    fn, params, batches, options = case("plain")
    found = jp.reconstruct(fn, params, batches, checkpoint=folder, **options)
    assert bits(found) == bits(jp.reconstruct(fn, params, batches, **options))
