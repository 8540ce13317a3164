"""Whole comparisons, tiny ones."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxprune import cli
from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments import data
from jaxprune.experiments.classification import classification
from jaxprune.experiments.compare import experiment
from jaxprune.experiments.compare.programs import keys
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.training import round_keys

TINY = CompareSettings(recipes=("imp", "gmp"), sparsities=(0.9, 0.99), steps=10, seeds=2, batch_size=8)
QUIET = Console(quiet=True)
SIZES = {"Dense_0/kernel": 64 * 300, "Dense_1/kernel": 300 * 100, "Dense_2/kernel": 1000}
OPTIONS = [
    "--recipes", "imp", "gmp", "--sparsities", "0.9", "0.99",
    "--steps", "10", "--seeds", "2", "--batch-size", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    experiment.run(dataclasses.replace(TINY, out=str(folder)), QUIET)
    return folder


def assert_same(one, other):
    for name in ("results.json", "results.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
def test_a_run_leaves_its_results_and_nothing_else(finished):
    assert sorted(p.name for p in finished.iterdir()) == [
        "curves.png", "plot.png", "results.csv", "results.json", "settings.json", "times.json",
    ]  # fmt: skip
    for name in ("curves.png", "plot.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_records_have_every_recipe_at_every_sparsity_with_its_exact_count(finished):
    records = json.loads((finished / "results.json").read_text())["records"]
    assert [(r["method"], r["sparsity"]) for r in records] == [
        ("dense", 0.0), ("imp", 0.9), ("imp", 0.99), ("gmp", 0.9), ("gmp", 0.99),
    ]  # fmt: skip
    for r in records:
        assert r["kept"] == [50200 - round(r["sparsity"] * 50200)] * 2
        assert r["kept_fraction"] == [kept / 50200 for kept in r["kept"]]
        layers = np.asarray([r["kept_by_layer"][path] for path in SIZES])
        assert layers.sum(axis=0).tolist() == r["kept"] and layers.min(axis=0).tolist() == r["smallest_layer"]
        assert all(0 < accuracy < 1 for accuracy in r["test_accuracy"])
        assert "scheduling" in r["choices"] or r["method"] == "dense"
        of_imp = r["method"] == "imp"
        assert r["trainings"]["steps"] == ([2] * 5 if of_imp else [10])
        assert np.shape(r["trainings"]["test_accuracy"]) == (2, 5 if of_imp else 1)
        assert r["curve"]["steps"] == list(range(1, 11))  # one evaluation a step
        assert [curve[-1] for curve in r["curve"]["test_loss"]] == r["test_loss"]
    with open(finished / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2
    assert float(rows[7]["test_accuracy"]) == records[3]["test_accuracy"][1]


@pytest.mark.slow
def test_a_record_is_what_a_plain_loop_gives(finished):
    import optax
    from flax.training.train_state import TrainState

    import jaxprune as jp

    task = classification("lenet", data.digits(), TINY.batch_size)
    of_seed = jax.tree.map(lambda streams: streams[1], keys(TINY))
    params = task.init_fn(of_seed.weights)
    inner = optax.adam(optax.cosine_decay_schedule(TINY.learning_rate, TINY.steps))
    tx = jp.recipes.gmp(0.9).transform(inner, params, steps=TINY.steps)
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    step = jax.jit(task.train_step)
    for t in range(TINY.steps):
        state, _ = step(state, task.batch_fn(round_keys(of_seed.training, 0).batches, t))
    masks = jp.get_masks(state.opt_state)
    assert jp.sparsity(state.params, masks) == 0.9
    expected = float(task.evaluate(state)["test_loss"])
    records = json.loads((finished / "results.json").read_text())["records"]
    assert records[3]["test_loss"][1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_seeds_differ_and_do_not_depend_on_how_many_there_are(finished):
    two, three = (keys(dataclasses.replace(TINY, seeds=n)) for n in (2, 3))
    for a, b in zip(two, three, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b)[:2])
    for r in json.loads((finished / "results.json").read_text())["records"]:
        one, other = r["test_loss"]
        assert one != other


class Killed(BaseException):
    """Stands for a signal that nobody catches."""


@pytest.mark.slow
def test_interrupted_between_trainings_and_resumed_it_ends_where_it_would_have(
    finished, tmp_path, monkeypatch
):
    settings = dataclasses.replace(TINY, out=str(tmp_path))
    left = 3
    save = RunFolder.save_training

    def save_training(self, *args):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        save(self, *args)

    monkeypatch.setattr(RunFolder, "save_training", save_training)
    with pytest.raises(Killed):
        experiment.run(settings, QUIET)
    assert len(list((tmp_path / "trainings").iterdir())) == 3
    with pytest.raises(ValueError, match="holds an interrupted run: --resume continues it"):
        experiment.run(settings, QUIET)
    left = -1
    experiment.run(dataclasses.replace(settings, resume=True), QUIET)
    assert_same(finished, tmp_path)


@pytest.mark.slow
def test_killed_in_another_process_nothing_is_half_written_and_it_resumes(finished, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jaxprune.cli", "compare", f"--out={out}", *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("trainings/*imp-0.99*")):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in out.glob("trainings/[a-z]*"):
        json.loads(path.read_text())
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    assert_same(finished, out)


@pytest.mark.slow
def test_resuming_a_finished_run_shows_its_tables(finished, capsys):
    assert cli.main(["compare", f"--out={finished}", "--resume", *OPTIONS]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Kept weights in the smallest layer, the fewest over 2 seeds" in out and "90 %" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsities", "90"], "--sparsities must be between 0 and 1, got 90. It is a fraction: 90 % is 0.9."),
        (["--sparsities", "0.9", "0.9"], "--sparsities must not repeat a value, got 0.9 0.9."),
        (["--sparsities", "nan"], "--sparsities must be between 0 and 1, got nan."),
        (["--sparsities"], "--sparsities must have at least one value."),
        (["--scope", "global", "global"], "--scope must not repeat a value, got global global."),
        (["--rounds", "0"], "--rounds must be at least 1, got 0."),
        (["--evaluations", "0"], "--evaluations must be at least 1, got 0."),
        (["--rewind-step", "3"], "--rewind-step is for --initialization lr or rewind only."),
        (
            ["--scheduling", "gradual", "--initialization", "rewind"],
            "no combination of the choices has a meaning; gradual: Rewind(step=0) has no meaning with Gradual(cubic",
        ),
        (
            ["--scheduling", "recursive", "--initialization", "lr", "--rewind-step", "80"],
            "`rewind` must go back to a step of the round, got RewindLearningRate(step=80) with steps=80",
        ),
        (["--seeds", "1000000000"], "--seeds must be at most 1000"),
        (["--batch-size", "5000"], "--batch-size must be at most 1078"),
        (["--recipes", "gmp", "gmp"], "--recipes must not repeat a value, got gmp gmp."),
        (["--recipes", "imp", "--steps", "4"], "imp at --sparsities 0.9 and --steps 4: `steps` must be at least 5"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--learning-rate", "nan"], "--learning-rate must be a positive number"),
        (["--data-dir", "x"], "--data-dir is for --data mnist only"),
        (["--resume", "--out", "nowhere"], "--resume found no run in --out nowhere."),
    ],
)  # fmt: skip
def test_a_bad_option_is_one_line_and_leaves_no_folder(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_setting_on_resume_is_an_error_that_names_it(finished, capsys):
    assert cli.main(["compare", f"--out={finished}", "--resume", *OPTIONS, "--seed=1"]) == 2
    assert "--seed was 0, now it is 1." in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_does_not_resume_the_run_of_the_other(finished, capsys):
    assert cli.main(["imp", f"--out={finished}", "--resume"]) == 2
    assert "--resume needs the settings of the interrupted run" in capsys.readouterr().err
