"""The numbers and sentences of `jaxprune claims`, and a whole run of a small one."""

import dataclasses
import json
import re

import pytest
from rich.console import Console

import jaxprune as jp
from jaxprune import cli
from jaxprune.experiments import data
from jaxprune.experiments.claims import experiment, points, report, trainings
from jaxprune.experiments.claims.points import Comparison, comparisons
from jaxprune.experiments.claims.settings import ClaimsSettings
from jaxprune.experiments.compare import trainings as compare_trainings
from jaxprune.experiments.compare.combinations import Method, dense
from jaxprune.experiments.compare.programs import compile_program

QUIET = Console(quiet=True)


def record(accuracies, **more):
    return {"test_accuracy": accuracies, **more}


def test_a_difference_is_shown_where_all_seeds_agree_and_it_exceeds_two_standard_errors():
    base = record([0.90, 0.91, 0.92])
    mean, spread, sign = report.difference(record([0.93, 0.94, 0.95]), base)
    assert (round(mean, 6), round(spread, 6), sign) == (3, 0, 1)
    # 1, 2 and 6 points: mean 3, standard deviation 2.6458, two standard errors 3.055.
    mean, spread, sign = report.difference(record([0.91, 0.93, 0.98]), base)
    assert (round(mean, 6), round(spread, 4), sign) == (3, 2.6458, 0)
    assert report.difference(base, record([0.93, 0.94, 0.9500001]))[2] == -1
    assert report.difference(record([0.89, 0.94, 0.95]), base)[2] == 0  # one seed is of another mind
    assert report.difference(base, base)[2] == 0
    assert report.difference(record([0.9]), record([0.1]))[2] == 0  # one seed shows nothing


def test_steps_to_the_dense_level_count_from_the_last_pruning():
    made = record(
        [0.9, 0.9, 0.9],
        trainings={"steps": [10, 20], "test_accuracy": [[0.95, 0.9], [0.95, 0.9], [0.95, 0.9]]},
        curve={
            "steps": [10, 15, 20, 30],
            # The level is 94.5 %: half a percent below the dense network.
            "test_accuracy": [[0.95, 0.944, 0.946, 0.9], [0.95, 0.9, 0.9, 0.9], [0.95, 0.9450001, 0.9, 0.9]],
        },
    )
    assert report.steps_to_dense(made) == [10, None, 5]


@pytest.fixture(scope="module")
def all_points():
    return comparisons(ClaimsSettings(steps=20), data.digits())


def test_both_sides_of_a_claim_train_for_the_same_number_of_steps(all_points):
    assert [point.name for point in all_points] == ["scheduling", "scope", "initialization", "structure"]
    for point in all_points:
        totals = {
            sum(method.recipe(s).trainings(point.settings.steps))
            for method in point.methods
            for s in method.sparsities
        }
        assert totals == {point.settings.steps}
        names = [method.name for method in point.methods]
        assert {name for pair in point.pairs for name in pair} <= {*names}


def test_equal_steps_prune_ten_percent_nine_times(all_points):
    recursive = next(m for m in all_points[0].methods if m.name == "recursive, equal steps").recipe(0.9)
    assert recursive.scheduling.after(0.9) == pytest.approx([0.1 * i for i in range(1, 10)])


@pytest.fixture
def small_point(monkeypatch):
    """One comparison of two methods that compile quickly."""

    def made(settings, found):
        task = points.classification("lenet", found, settings.batch_size)
        of = settings.comparison("lenet", 1, (0.5, 0.9), 2)

        def method(name, score):
            scoring = jp.Scoring(score)
            return Method(
                name, lambda s: jp.Recipe(s, scoring=scoring, scheduling=jp.BeforeTraining()), of.sparsities
            )

        methods = [method("smallest", jp.scores.magnitude), method("random", jp.scores.random)]
        pairs = (("smallest", "random"),)
        return [Comparison("scope", "A title", "A claim.", of, task, [dense(), *methods], pairs)]

    monkeypatch.setattr(trainings, "comparisons", made)
    programs = {}

    def compile_once(settings, task, method):
        if method.name not in programs:
            programs[method.name] = compile_program(settings, task, method)
        return programs[method.name]

    monkeypatch.setattr(compare_trainings, "compile_program", compile_once)


@pytest.mark.slow
def test_a_run_leaves_a_page_plots_and_results_and_resumes_to_the_same(
    small_point, tmp_path, monkeypatch, capsys
):
    settings = ClaimsSettings(points=("scope",), steps=20, seeds=2, batch_size=8, out=str(tmp_path / "whole"))
    experiment.run(settings, QUIET)
    whole = tmp_path / "whole"
    assert sorted(p.name for p in whole.iterdir()) == [
        "claims.md", "results.json", "scope.png", "settings.json", "times.json",
    ]  # fmt: skip
    page = (whole / "claims.md").read_text()
    by = {
        (r["method"], r["sparsity"]): r
        for r in json.loads((whole / "results.json").read_text())["parts"]["scope"]["records"]
    }
    mean, *_ = report.difference(by["smallest", 0.9], by["random", 0.9])
    assert re.search(rf"\| 90 % \| {re.escape(f'{mean:+.2f}')} ± ", page)
    assert (
        "## A title\n\nClaim: A claim. lenet, 20 steps in all (1 x 20)." in page
        and "![A title](scope.png)" in page
    )

    class Killed(BaseException):
        pass

    save, left = trainings.RunFolder.save_training, [2]

    def save_training(self, *args):
        if not left[0]:
            raise Killed
        left[0] -= 1
        save(self, *args)

    other = dataclasses.replace(settings, out=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(trainings.RunFolder, "save_training", save_training)
        with pytest.raises(Killed):
            experiment.run(other, QUIET)
    experiment.run(dataclasses.replace(other, resume=True), QUIET)
    assert (tmp_path / "stopped" / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (
        cli.main(
            [
                "claims",
                "--points",
                "scope",
                "--steps=20",
                "--seeds=2",
                "--batch-size=8",
                f"--out={whole}",
                "--resume",
            ]
        )
        == 0
    )
    assert "smallest − random" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points"], "--points must have at least one value."),
        (["--points", "scope", "scope"], "--points must not repeat a value, got scope scope."),
        (["--steps", "19"], "--steps must be at least 20, got 19."),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--data", "mnist"], "--data mnist needs --data-dir"),
        (["--resume", "--out", "nowhere"], "--resume found no run in --out nowhere."),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_no_folder(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []
