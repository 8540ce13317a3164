"""Tables: rows of repeated layers are folded, and nothing is wider than 100 columns."""

import pytest

from jaxprune.tables import Row, folded, listed, shape_text, table_text, times


def names(paths):
    return [times(row.paths[0], count) for row, count in folded(Row((path,)) for path in paths)]


def test_repeated_layers_have_one_row_at_the_place_of_the_first():
    paths = ["embedding", *(f"layers/{i}/mlp/{w}" for i in range(12) for w in ("up", "down")), "head"]
    assert names(paths) == ["embedding", "layers/*/mlp/up x 12", "layers/*/mlp/down x 12", "head"]


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        ("layers/{}/up[1]", "layers/*/up[1] x 3"),
        ("layers_{}/Dense_0/kernel", "layers_*/Dense_0/kernel x 3"),
        ("{}[0]", "*[0] x 3"),
        ("w/{}[1: [2] x 8]#2", "w/*[1: [2] x 8]#2 x 3"),
    ],
)
def test_numbers_of_flax_and_of_lists_are_layers(pattern, shown):
    assert names([pattern.format(i) for i in range(3)]) == [shown]


def test_numbers_that_are_part_of_a_name_are_kept():
    assert names(["conv1", "conv2", "conv3"]) == ["conv1", "conv2", "conv3"]
    assert names(["q4bit/w[1]", "q8bit/w[1]", "q16bit/w[1]"]) == ["q4bit/w[1]", "q8bit/w[1]", "q16bit/w[1]"]


def test_two_rows_are_kept_as_they_are():
    assert names(["layers/0/up", "layers/1/up"]) == ["layers/0/up", "layers/1/up"]


def test_layers_within_layers_are_multiplied():
    paths = [f"layers/{i}/experts/{j}/up" for i in range(3) for j in range(4)]
    assert names(paths) == ["layers/*/experts/*/up x 12"]


def test_rows_that_differ_in_a_cell_are_not_alike():
    rows = [Row((f"layers/{i}/up",), ("8" if i != 2 else "16",)) for i in range(5)]
    assert [(row.paths[0], row.cells, count) for row, count in folded(rows)] == [
        ("layers/*/up", ("8",), 4),
        ("layers/2/up", ("16",), 1),
    ]


def test_rows_that_tie_two_layers_are_not_folded():
    rows = [Row((f"Dense_{i}/bias", f"Dense_{i + 1}/kernel")) for i in range(5)]
    assert folded(rows) == [(row, 1) for row in rows]


def test_the_scope_of_a_source_line_follows_the_layer_but_its_line_does_not():
    rows = [Row((f"layers_{i}/up",), ("8",), f"model.py:3 (Model/layers_{i}/Dense_0)") for i in range(4)]
    assert folded(rows) == [(Row(("layers_*/up",), ("8",), "model.py:3 (Model/layers_*/Dense_0)"), 4)]
    lines = [Row((f"layers_{i}/up",), ("8",), f"model.py:{i}") for i in range(4)]
    assert len(folded(lines)) == 4


def test_lists_tell_how_many_more_there_are():
    paths = [f"{name}[0]" for name in "abcdefghij"] + [f"k/{i}[1]" for i in range(5)]
    assert listed(paths) == "a[0], b[0], c[0], d[0], e[0], f[0], g[0], h[0] and 7 more"
    assert listed(["a[0]"]) == "a[0]"


def test_long_cells_are_broken_and_shown_as_they_are():
    text = table_text(("path", "why"), [("a/" * 70, "[bold] :smile: " * 12)], numbers=())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert text.count("a/") == 70 and text.count("[bold]") == text.count(":smile:") == 12


def test_paths_are_broken_after_slashes():
    path = "/".join(["a_rather_long_name_of_a_module"] * 4) + "/kernel[0]"
    lines = table_text(("path", "also"), [(path, path)]).splitlines()[2:]
    assert all(line.split()[0].endswith("/") for line in lines[:-1])
    assert "".join(line.split()[0] for line in lines) == path


def test_a_number_of_rows_is_not_broken_off_its_path():
    text = table_text(("members",), [(", ".join(f"{name}/w[0] x 12" for name in "abcdefghijklmnopqr"),)])
    lines = text.splitlines()[2:]
    assert len(lines) > 1 and all(line.removesuffix(",").endswith("x 12") for line in lines)


def test_a_table_is_text_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert table_text(("a", "b"), [("1", "2")]).splitlines()[-1] == "1   2"


def test_shapes_read_alike_in_all_tables():
    assert [shape_text(s) for s in ((3, 8), (4,), ())] == ["3x8", "4", "scalar"]
