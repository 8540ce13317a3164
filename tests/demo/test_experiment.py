"""Whole runs, tiny ones."""

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxprune as jp
from jaxprune import checkpoint, cli
from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments import data, experiment, programs, results
from jaxprune.experiments.settings import Settings
from jaxprune.round_history import Round

TINY = Settings(rounds=2, steps=6, every=3, seeds=2, batch_size=8)
QUIET = Console(quiet=True)
SPLITS = ("validation", "test")


def arguments(settings):
    return [
        f"--{name.replace('_', '-')}={value}"
        for name, value in dataclasses.asdict(settings).items()
        if value != getattr(Settings, name)
    ]


def contents(folder):
    """Results and every array of the checkpoint."""
    found = json.loads((folder / "results.json").read_text())
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder.absolute() / "checkpoint")
    return found, {name: np.asarray(array) for name, array in arrays.items()}


def assert_same(one, other):
    (results_one, arrays_one), (results_other, arrays_other) = contents(one), contents(other)
    assert results_one == results_other
    assert (one / "results.csv").read_bytes() == (other / "results.csv").read_bytes()
    assert arrays_one.keys() == arrays_other.keys()
    for name, array in arrays_one.items():
        assert array.tobytes() == arrays_other[name].tobytes(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    experiment.run(dataclasses.replace(TINY, out=str(folder)), QUIET)
    return folder


@pytest.mark.slow
def test_a_run_leaves_its_results_and_nothing_else(finished):
    assert sorted(p.name for p in finished.iterdir()) == [
        "checkpoint", "plot.png", "results.csv", "results.json", "settings.json",
    ]  # fmt: skip
    assert (finished / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_records_have_every_training_of_ticket_and_controls(finished):
    found = json.loads((finished / "results.json").read_text())
    assert [(r["kind"], r["round"]) for r in found["records"]] == [
        ("ticket", 0), ("ticket", 1), ("ticket", 2),
        ("reinitialized", 1), ("reinitialized", 2), ("random", 1), ("random", 2),
    ]  # fmt: skip
    kept = 19200 * 0.64 + 30000 * 0.64 + 1000 * 0.81
    for r in found["records"]:
        if r["round"] == 2:
            assert r["kept"] == [kept] * 2
        curve = np.asarray(r["curve"]["validation_loss"])
        assert curve.shape == (2, 2)
        at = curve.argmin(axis=1)
        assert r["early_stop_step"] == [3 * (i + 1) for i in at]
        assert r["test_accuracy"] == [r["curve"]["test_accuracy"][s][i] for s, i in enumerate(at)]
        assert r["final_test_accuracy"] == [values[-1] for values in r["curve"]["test_accuracy"]]
    with open(finished / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 2
    assert float(rows[0]["test_accuracy"]) == found["records"][0]["test_accuracy"][0]


@pytest.mark.slow
def test_the_checkpoint_holds_masks_of_each_round_and_parameters_under_the_last(finished):
    model_params = jax.eval_shape(
        lambda: {
            "Dense_0": {"bias": jnp.zeros(300), "kernel": jnp.zeros((64, 300))},
            "Dense_1": {"bias": jnp.zeros(100), "kernel": jnp.zeros((300, 100))},
            "Dense_2": {"bias": jnp.zeros(10), "kernel": jnp.zeros((100, 10))},
        }
    )

    def batched(lead, dtype, biases=True):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(lead + (x.shape if x.ndim > 1 or biases else ()), dtype),
            model_params,
        )

    like = {
        "params": batched((2,), jnp.float32),
        "initial": batched((2,), jnp.float32),
        "masks": batched((3, 2), jnp.bool_, biases=False),
    }
    tree = checkpoint.restore(finished / "checkpoint", like)
    for seed in range(2):
        masks = [jax.tree.map(lambda m, r=r, s=seed: m[r, s], tree["masks"]) for r in range(3)]
        params = jax.tree.map(lambda w, s=seed: w[s], tree["params"])
        assert jp.sparsity(params, masks[0]) == 0
        assert round((1 - jp.sparsity(params, masks[2])) * 50200) == 32298
        for w, before, after in zip(*map(jax.tree.leaves, (params, masks[1], masks[2])), strict=True):
            assert not np.any(np.asarray(after) & ~np.asarray(before))
            assert not np.any(np.where(after, 0, w))


@pytest.mark.slow
def test_seeds_differ_and_do_not_depend_on_how_many_there_are(finished):
    two, three = (programs.keys(dataclasses.replace(TINY, seeds=n)) for n in (2, 3))
    for a, b in zip(two, three, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b)[:2])
    assert len({tuple(data) for of in three for data in jax.random.key_data(of).tolist()}) == 3 * 4
    for r in json.loads((finished / "results.json").read_text())["records"]:
        one, other = r["curve"]["validation_loss"]
        assert abs(one[0] - other[0]) > 1e-3


@pytest.mark.slow
def test_controls_keep_what_they_say_and_differ_from_round_to_round(finished):
    of = programs.compile_programs(TINY, data.digits())
    carry, _ = of.round(of.first())
    _, row = of.round(carry)
    for train in (of.reinitialized, of.random):
        one, other = train(row.masks, 1), train(row.masks, 2)
        assert one.kept.tolist() == row.kept.tolist()
        assert np.all(one.metrics["loss"] != other.metrics["loss"])


@pytest.mark.slow
def test_a_finished_folder_is_an_error_without_overwrite(finished, capsys):
    before = (finished / "results.json").stat().st_mtime_ns
    assert cli.main(["imp", f"--out={finished}", *arguments(TINY)]) == 2
    assert "holds a finished run: --overwrite replaces it" in capsys.readouterr().err
    assert (finished / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_resuming_a_finished_run_shows_its_table(finished, capsys):
    before = (finished / "results.json").stat().st_mtime_ns
    assert cli.main(["imp", f"--out={finished}", "--resume", *arguments(TINY)]) == 0
    assert "± standard deviation" in " ".join(capsys.readouterr().out.split())
    assert (finished / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(("option", "was"), [("--rounds=3", 2), ("--learning-rate=1.0", 0.0012)])
def test_another_setting_on_resume_is_an_error_that_names_it(finished, capsys, option, was):
    assert cli.main(["imp", f"--out={finished}", "--resume", *arguments(TINY), option]) == 2
    name, value = option.split("=")
    assert f"{name} was {was}, now it is {value}." in capsys.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def without_a_row(path):
    content = json.loads(path.read_text())
    del content["records"][4]
    path.write_text(json.dumps(content))


def with_one_bit_changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("settings.json", cut),
        ("results.json", cut),
        ("results.json", without_a_row),
        ("results.json", lambda path: path.write_text('{"records": 3}')),
        ("checkpoint/manifest.ocdbt", cut),
        ("checkpoint/d/*", with_one_bit_changed),
        ("checkpoint/_METADATA", Path.unlink),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_result_is_an_error_that_names_the_file(finished, tmp_path, capsys, name, damage):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    path = next(iter(out.glob(name)))
    damage(path)
    assert cli.main(["imp", f"--out={out}", "--resume", *arguments(TINY)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and path.name in err and "is damaged" in err and "--overwrite" in err


@pytest.mark.slow
def test_what_was_taken_away_is_not_said_to_be_there(finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "plot.png").unlink()
    assert cli.main(["imp", f"--out={out}", "--resume", *arguments(TINY)]) == 0
    last = capsys.readouterr().out.split("In ")[-1].split()
    assert last[-3:] == ["results.json,", "results.csv,", "checkpoint"]


@pytest.mark.slow
def test_other_data_on_resume_are_an_error(finished, monkeypatch, capsys):
    monkeypatch.setattr(data.Data, "fingerprint", lambda self: "00000000")
    assert cli.main(["imp", f"--out={finished}", "--resume", *arguments(TINY)]) == 2
    assert "these are other images" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for a signal that nobody catches."""


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [5])
def test_interrupted_between_trainings_and_resumed_it_ends_where_it_would_have(
    finished, tmp_path, monkeypatch, trainings
):
    settings = dataclasses.replace(TINY, out=str(tmp_path))
    left = trainings
    save = RunFolder.save_row

    def save_row(self, *args):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        save(self, *args)

    monkeypatch.setattr(RunFolder, "save_row", save_row)
    with pytest.raises(Killed):
        experiment.run(settings, QUIET)
    with pytest.raises(ValueError, match="holds an interrupted run: --resume continues it"):
        experiment.run(settings, QUIET)
    shutil.copytree(tmp_path, tmp_path.with_name("damaged"))
    cut(next(iter((tmp_path.with_name("damaged") / "rounds" / "ticket-001" / "d").iterdir())))
    with monkeypatch.context() as patched:
        patched.setattr(jax.stages.Lowered, "compile", None)  # told before anything is compiled
        with pytest.raises(ValueError, match=r"rounds/ticket-001 is damaged: its file d/\w+ was changed"):
            experiment.run(
                dataclasses.replace(settings, resume=True, out=str(tmp_path.with_name("damaged"))), QUIET
            )
    left = -1
    experiment.run(dataclasses.replace(settings, resume=True), QUIET)
    assert_same(finished, tmp_path)


@pytest.mark.slow
def test_overwriting_replaces_an_interrupted_run(finished, tmp_path):
    out = tmp_path / "out"
    (out / "rounds").mkdir(parents=True)
    (out / "rounds" / "ticket-000").mkdir()
    (out / "settings.json").write_text("{}")
    experiment.run(dataclasses.replace(TINY, out=str(out), overwrite=True), QUIET)
    assert_same(finished, out)


def whole(folder: Path):
    """Asserts that nothing that is there under its own name is half written."""
    for path in (folder / name for name in ("settings.json", "results.json")):
        if path.exists():
            json.loads(path.read_text())
    if (folder / "results.csv").exists():
        assert len((folder / "results.csv").read_text().splitlines()) == 15
    if (folder / "plot.png").exists():
        assert (folder / "plot.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    carries = sorted((folder / "carry").glob("[0-9]*"))
    saved = [*(folder / "rounds").glob("[a-z]*"), *carries, *folder.glob("checkpoint")]
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        for path in saved:
            if "orbax-checkpoint-tmp" not in path.name:
                assert checkpointer.restore(path.absolute())


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_half_written_and_it_resumes(finished, tmp_path):
    command = [sys.executable, "-m", "jaxprune.cli", "imp", f"--out={tmp_path / 'out'}", *arguments(TINY)]
    moments = ("rounds/*ticket-000*", "carry/*002*", "*results.csv*")
    resume = []
    for moment in moments:
        process = subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((tmp_path / "out").glob(moment)):
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole(tmp_path / "out")
        resume = ["--resume"] if (tmp_path / "out" / "settings.json").exists() else []
    subprocess.run([*command, *resume], check=True, stdout=subprocess.DEVNULL)
    assert_same(finished, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize(
    "changes",
    [
        {"structure": "channels", "rewind": "finetune"},
        {"structure": "blocks", "rewind_step": 2},
        {"structure": "2:4", "rewind": "reinitialize"},
        {"scope": "global", "rewind": "lr", "rewind_step": 2},
    ],
    ids=str,
)
def test_every_choice_fits_every_model(model, changes):
    settings = dataclasses.replace(TINY, model=model, **changes)
    settings.check()
    imp, fresh = programs.experiment(settings, data.digits())
    key = jax.random.key(0)
    _, history = jax.eval_shape(imp.run, key, jax.eval_shape(fresh, key))
    assert history.kept.shape == (TINY.rounds + 1,)
    state = jax.eval_shape(fresh, key)
    jax.eval_shape(imp.train, key, state, jax.eval_shape(imp.init, key, state).masks)


def test_a_training_that_diverged_is_written_as_null_and_shown(tmp_path):
    curve = {f"{split}_{what}": np.full((1, 2), np.nan) for split in SPLITS for what in ("loss", "accuracy")}
    row = Round(0, np.zeros(1), np.array([5]), {}, {"test_accuracy": np.array([np.nan])}, curve, ())
    records = [results.record("ticket", 0, row, (3, 6))]
    assert records[0]["curve"]["validation_loss"] == [[None, None]]
    assert records[0]["early_stop_step"] == [3] and records[0]["test_accuracy"] == [None]
    json.dumps(records, allow_nan=False)
    results.write_csv(tmp_path / "a.csv", records)
    shown = results.table(
        {
            "settings": dataclasses.asdict(dataclasses.replace(TINY, rounds=0)),
            "curve_steps": [3, 6],
            "records": records,
        }
    )
    assert shown.row_count == 1
