"""What surgery prints, and its mappings: groups and scores of units."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.surgery import UnitScores, Verification, l2_scores, plan_units

PARAMS = weights(a=(3, 8), b=(8, 6), c=(6, 2))


def mlp(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


GROUPS = jp.find_groups(mlp, PARAMS, data(1, 3))


def transformer(layers, width=8, hidden=32):
    """Residual layers under `layers/i`, all alike."""
    params = {
        "embed": weights(w=(3, width))["w"],
        "layers": [{"mlp": weights(seed=i, up=(width, hidden), down=(hidden, width))} for i in range(layers)],
        "head": weights(w=(width, 2))["w"],
    }

    def fn(p, x):
        x = x @ p["embed"]
        for layer in p["layers"]:
            x = x + jnp.tanh(x @ layer["mlp"]["up"]) @ layer["mlp"]["down"]
        return x @ p["head"]

    return fn, params, data(2, 3)


def test_groups_are_a_mapping_from_their_names():
    assert isinstance(GROUPS, Mapping)
    assert list(GROUPS.keys()) == ["a[1]", "b[1]"] == [group.name for group in GROUPS.values()]
    assert dict(GROUPS) == dict(GROUPS.items()) == {name: GROUPS[name] for name in GROUPS.keys()}  # noqa: SIM118
    assert "a[1]" in GROUPS and "a[0]" not in GROUPS and 3 not in GROUPS
    assert GROUPS.get("b[1]") is GROUPS["b[1]"] and GROUPS.get("nope") is None and GROUPS.get("nope", 3) == 3
    assert len(GROUPS) == len(dict(GROUPS)) == 2
    with pytest.raises(KeyError, match=r"no group 'nope'. There are: 'a\[1\]', 'b\[1\]'"):
        GROUPS["nope"]


def test_iterating_groups_gives_groups_that_equal_their_names():
    assert list(GROUPS) == list(GROUPS.keys()) == list(GROUPS.values())
    assert [group.size for group in GROUPS] == [8, 6]
    for group in GROUPS:
        assert group in GROUPS and GROUPS[group] is group and {group.name: 1}[group] == 1
        assert group == group.name and group.name == group and group != "nope" and group != group.size
    assert set(GROUPS) == {"a[1]", "b[1]"}


def test_groups_are_equal_where_their_units_and_members_are():
    again = jp.find_groups(mlp, PARAMS, data(1, 3))
    assert again == GROUPS and hash(again) == hash(GROUPS)
    wider = jp.find_groups(mlp, weights(a=(3, 9), b=(9, 6), c=(6, 2)), data(1, 3))
    assert wider != GROUPS and wider["a[1]"] != GROUPS["a[1]"] and wider["b[1]"] == GROUPS["b[1]"]


def test_a_group_stands_for_its_name_in_plans_and_scores():
    group = GROUPS["a[1]"]
    mask = [True] * 3 + [False] * 5
    assert plan_units(GROUPS, {group: mask}).shapes == plan_units(GROUPS, {"a[1]": mask}).shapes
    np.testing.assert_array_equal(l2_scores(GROUPS, PARAMS)[group], l2_scores(GROUPS, PARAMS)["a[1]"])


def test_unit_scores_are_a_mapping_from_names_to_arrays():
    scores = UnitScores({"a": np.array([1.0, 2.0]), "b": [3.0]})
    assert isinstance(scores, Mapping)
    assert list(scores) == list(scores.keys()) == ["a", "b"] and len(scores) == 2
    assert dict(scores).keys() == {"a", "b"} and list(scores.values())[1] == [3.0]
    assert [name for name, _ in scores.items()] == ["a", "b"]
    assert "a" in scores and "c" not in scores and scores.get("c") is None and scores.get("b") == [3.0]
    with pytest.raises(KeyError, match=r"no scores of group 'c'. There are scores of: 'a', 'b'"):
        scores["c"]


def test_unit_scores_are_compared_by_their_numbers():
    scores = UnitScores({"a": np.array([1.0, 2.0])})
    assert scores == UnitScores({"a": jnp.array([1.0, 2.0])}) and scores == {"a": [1.0, 2.0]}
    for other in ({"a": [1.0, 3.0]}, {"a": [1.0]}, {"b": [1.0, 2.0]}, {}, 3):
        assert scores != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(scores)


def test_unit_scores_print_what_each_group_has():
    scores = UnitScores({"a": np.array([1.0, 2.0, 6.0]), "none": np.zeros(0)})
    assert (
        repr(scores)
        == str(scores)
        == (
            "group   units   lowest   median   highest\n"
            "─────────────────────────────────────────\n"
            "a           3        1        2         6\n"
            "none        0        -        -         -"
        )
    )
    jax.make_jaxpr(lambda x: str(UnitScores({"a": x})) and x)(jnp.ones(3))


def test_groups_print_a_table_in_a_notebook_too():
    text = str(GROUPS)
    assert repr(GROUPS) == text
    first, second = text.split("\n\n")
    assert first.splitlines()[0] == "group   units   members"
    assert first.splitlines()[2].startswith("a[1]        8   a[1], b[0]  (summed at test_surgery_tables.py:")
    assert second.splitlines()[0] == "frozen   because"
    assert second.splitlines()[2:] == ["a[0]     axis 1 of input 0", "c[1]     axis 1 of the output"]


def test_repeated_layers_are_one_row_of_groups_and_plans():
    fn, params, x = transformer(12)
    groups = jp.find_groups(fn, params, x)
    lines = str(groups).splitlines()
    assert len(groups) == 13
    (row,) = [line for line in lines if "layers/*/mlp/down[0] x 12" in line]
    assert row.split()[:4] == ["layers/*/mlp/down[0]", "x", "12", "32"]
    assert not any(f"layers/{i}/" in str(groups) for i in range(12))
    plan = jp.plan_removal(groups, params, 0.5, budget="units")
    rows = [line.split() for line in str(plan).splitlines()]
    assert repr(plan) == str(plan)
    assert ["layers/*/mlp/up", "x", "12", "8x32", "4x16"] in rows
    assert ["embed", "3x8", "3x4"] in rows and len(rows) == 8


@pytest.mark.parametrize("depth", [1, 4])
def test_nothing_is_wider_than_100_columns(depth):
    fn, params, x = transformer(4)
    name = "/".join(["a_rather_long_name_of_a_module"] * depth)
    deep = {name: params}
    groups = jp.find_groups(lambda p, x: fn(p[name], x), deep, x)
    plan = jp.plan_removal(groups, deep, 0.5)
    for text in map(str, (groups, plan, l2_scores(groups, deep))):
        assert max(map(len, text.splitlines())) <= 100, text


def test_a_verification_prints_a_table_and_names_where_zeroing_differs():
    fine = Verification(1e-7, 2e-7, 1e-4, (), 2e-7)
    assert (
        repr(fine)
        == str(fine)
        == (
            "check                             largest difference\n"
            "────────────────────────────────────────────────────\n"
            "small against masked function                1.0e-07\n"
            "small against zeroed parameters              2.0e-07\n"
            "ok                                   tolerance 1e-04"
        )
    )
    named = str(Verification(1e-7, 0.5, 1e-4, ("softmax at model.py:3",), 1e-6))
    assert "the same, masked where named" in named and "NOT EQUAL" not in named
    assert named.splitlines()[-3] == "zeroing is not removal in" and named.endswith("softmax at model.py:3")
    assert "NOT EQUAL" in str(Verification(1.0, 0.5, 1e-4, (), 1.0))
