"""Combinations of the choices in `jaxprune compare`: which there are, what they are, and a whole run of one."""

import dataclasses
import json
from typing import get_args

import jax
import pytest
from rich.console import Console

import jaxprune as jp
from jaxprune.experiments import data
from jaxprune.experiments.classification import classification
from jaxprune.experiments.compare import experiment, settings
from jaxprune.experiments.compare.combinations import leaves_to_prune, methods
from jaxprune.experiments.compare.programs import curve_steps
from jaxprune.experiments.compare.settings import CompareSettings


@pytest.fixture(scope="module")
def task():
    return classification("lenet", data.digits(), 8)


def test_a_grid_is_the_product_of_its_lists_and_names_tell_what_varies(task):
    asked = CompareSettings(scheduling=("one-shot", "recursive"), initialization=("keep", "rewind"), rounds=3)
    made, left_out = methods(asked, task)
    assert [m.name for m in made] == [
        "dense", "one-shot keep", "one-shot rewind", "recursive keep", "recursive rewind",
    ]  # fmt: skip
    assert left_out == {}
    recipe = made[-1].recipe(0.9)
    assert (recipe.scheduling, recipe.initialization) == (jp.Recursive(3), jp.Rewind(0))
    assert (recipe.structure, recipe.scoring) == (jp.Unstructured(), jp.Scoring())


def test_named_recipes_stand_beside_a_grid_only_if_they_are_asked_for(task):
    assert [m.name for m in methods(CompareSettings(), task)[0]] == [
        "dense", "one-shot", "lamp", "gmp", "rigl", "static", "synflow",
    ]  # fmt: skip
    grid = CompareSettings(scoring=("l1",), recipes=("rigl",))
    assert [m.name for m in methods(grid, task)[0]] == ["dense", "rigl", "one-shot"]


def test_what_has_no_meaning_is_left_out_with_the_reason(task):
    asked = CompareSettings(
        structure=("2:4", "unstructured"), scheduling=("set", "one-shot"), sparsities=(0.5, 0.9)
    )
    made, left_out = methods(asked, task)
    assert {m.name: m.sparsities for m in made} == {
        "dense": (0.0,),
        "2:4 one-shot": (0.5,),
        "unstructured set": (0.5, 0.9),
        "unstructured one-shot": (0.5, 0.9),
    }
    assert sorted(left_out) == ["2:4 one-shot at 90 %", "2:4 set"]
    assert "has no meaning with NM(" in left_out["2:4 set"]
    assert left_out["2:4 one-shot at 90 %"].startswith("`sparsity` must be 0.5 for NM(2, 4)")


def test_moving_masks_without_a_scope_take_erdos_renyi(task):
    made, _ = methods(CompareSettings(scheduling=("rigl",)), task)
    assert made[1].recipe(0.9).scoring == jp.Scoring(scope="local", allocation="erk")


def test_every_combination_is_a_recipe_or_says_why_not(task):
    lists = {
        name: get_args(getattr(settings, name.capitalize()))
        for name in ("structure", "scope", "scheduling", "initialization")
    }
    asked = CompareSettings(**lists, sparsities=(0.5,))
    made, left_out = methods(asked, task)
    whole = 6 * 4 * 9 * 5
    assert len(made) - 1 + len(left_out) == whole
    assert len({str(m.recipe(0.5)) for m in made}) == len(made)
    for why in left_out.values():
        assert "has no meaning" in why or why.startswith("`sparsity` must be") or "scope" in why, why


def test_every_score_has_a_name_of_its_own(task):
    names = get_args(settings.Score)
    made, left_out = methods(CompareSettings(scoring=names), task)
    assert not left_out and [m.name for m in made[1:]] == list(names)
    assert len({m.recipe(0.9).scoring.score for m in made[1:]}) == len(names)


def test_curves_count_steps_through_all_trainings():
    asked = CompareSettings(steps=10, evaluations=5)
    one, several = jp.Recipe(0.5), jp.Recipe(0.5, initialization=jp.Rewind())
    assert curve_steps(asked, one) == (2, 4, 6, 8, 10)
    assert curve_steps(asked, several) == (2, 4, 7, 9)  # 5 + 5
    uneven = dataclasses.replace(several, scheduling=jp.OneShot(at=0.4))
    assert curve_steps(asked, uneven) == (2, 4, -1, 6, 8, 10)  # 4 + 6
    assert curve_steps(asked, dataclasses.replace(uneven, structure=jp.RemoveUnits())) == (4, 10)


def test_two_of_four_leaves_out_what_four_does_not_divide():
    params = {
        "Conv_0": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 8), "float32")},
        "Dense_0": {"kernel": jax.numpy.ones((8, 4))},
    }
    assert leaves_to_prune(jp.NM(2, 4), params) == {"Conv_0": {"kernel": False}, "Dense_0": {"kernel": True}}
    assert leaves_to_prune(jp.Channels(), params) == {
        "Conv_0": {"kernel": True},
        "Dense_0": {"kernel": False},
    }


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["units", "removed"])
def test_units_are_removed_and_timed(tmp_path, structure):
    asked = CompareSettings(
        structure=(structure,), scheduling=("before-training",), sparsities=(0.5, 0.9), steps=4, seeds=1, batch_size=8,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    experiment.run(asked, Console(quiet=True))
    results, times = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("results", "times")
    )
    assert [(r["method"], r["sparsity"]) for r in results["records"]] == [
        ("dense", 0.0), ("before-training", 0.5), ("before-training", 0.9),
    ]  # fmt: skip
    half = results["records"][1]
    assert 0.49 < half["kept_fraction"][0] <= 0.5
    assert half["kept"] == [sum(kept[0] for kept in half["kept_by_layer"].values())]
    assert set(times["before-training 0.5"]["latency"]) == {"1", "64"}
    assert (
        times["before-training 0.5"]["compiling"] == times["before-training 0.9"]["compiling"]
    )  # one program
    assert (tmp_path / "out" / "latency.png").exists()
