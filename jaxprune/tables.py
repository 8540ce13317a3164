"""Tables of at most 100 columns, in which layers that are alike have one row."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import rich.box
import rich.console
import rich.table
import rich.text

_WIDTH = 100
_GAP = 3  # columns between two cells
_REPEATS = 3  # two rows are as short as one and a number
_NUMBERED = re.compile(r"(|.*_)(\d+)((?:[\[#].*)?)", re.DOTALL)  # 3, layers_3, 3[1], layers_3[0]#2

_SPACE = re.compile(r"(?<! x) (?!x )")  # none of those in `layers/*/up x 12`


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      paths: paths of parameters, or what begins with one; they may differ in the number of one layer.
      cells: what must be equal in rows that are alike.
      source: a source line with its module scope, which may hold the layer's number too.
    """

    paths: tuple[str, ...]
    cells: tuple[str, ...] = ()
    source: str = ""


def folded(rows: Iterable[Row]) -> list[tuple[Row, int]]:
    """The rows with those of repeated layers folded into one, and how many each stands for.

    Rows are alike where they differ in the number of one segment of their paths only (`layers/3`, `Dense_3`),
    which is the same number in all paths of a row. Three or more of them become one with `*` for the number.

    >>> folded([Row((f"layers/{i}/up",), ("8x32",)) for i in range(12)])
    [(Row(paths=('layers/*/up',), cells=('8x32',), source=''), 12)]
    """
    return [(row, len(places)) for row, places in folded_places(rows)]


def folded_places(rows: Iterable[Row], repeats: int = _REPEATS) -> list[tuple[Row, tuple[int, ...]]]:
    """The rows as `folded` gives them, and the places of those that each stands for.

    Args:
      rows: the rows.
      repeats: as many rows that are alike become one.
    """
    out = [(row, (i,)) for i, row in enumerate(rows)]
    depth = max((path.count("/") + 1 for row, _ in out for path in row.paths), default=0)
    for at in range(depth):
        alike: dict[tuple[Row, int], list[int]] = {}
        for i, (row, places) in enumerate(out):
            starred = _starred(row, at)
            if starred is not None:
                alike.setdefault((starred, len(places)), []).append(i)
        replaced = {members[0]: key for key, members in alike.items() if len(members) >= repeats}
        dropped = {i for first in replaced for i in alike[replaced[first]]}
        out = [
            (replaced[i][0], tuple(place for j in alike[replaced[i]] for place in out[j][1]))
            if i in replaced
            else placed
            for i, placed in enumerate(out)
            if i in replaced or i not in dropped
        ]
    return out


def times(text: str, count: int) -> str:
    """The text of a row, with the number of rows that it stands for."""
    return text if count == 1 else f"{text} x {count}"


def listed(paths: Sequence[str], at_most: int = 8) -> str:
    """Paths one after the other, those of repeated layers once, and how many more there are.

    >>> listed([f"layers/{i}/up[1]" for i in range(12)] + ["embedding[1]"])
    'layers/*/up[1] x 12, embedding[1]'
    """
    found = folded(Row((path,)) for path in paths)
    shown = [times(row.paths[0], count) for row, count in found[:at_most]]
    more = sum(count for _, count in found[at_most:])
    return ", ".join(shown) + (f" and {more} more" if more else "")


def shape_text(shape: Sequence[int]) -> str:
    """A shape as in all tables.

    >>> shape_text((3, 8))
    '3x8'
    """
    return "x".join(map(str, shape)) or "scalar"


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """The rows as a table; what is too wide is broken into lines.

    Args:
      columns: their names.
      rows: the cells of each row.
      numbers: the columns that stand to the right.
    """
    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    while sum(widths) > _WIDTH - _GAP * (len(columns) - 1):
        widths[widths.index(max(widths))] -= 1
    for row in cells:
        broken = (_broken(cell, width) for cell, width in zip(row, widths, strict=True))
        table.add_row(*map(rich.text.Text, broken))  # as they are: no markup, no emoji
    return as_text(table)


def as_text(table: rich.table.Table, width: int = _WIDTH) -> str:
    """The table as plain text of at most this many columns, the same in a terminal, a notebook and a log."""
    file = io.StringIO()
    # In a notebook rich would display the table by itself and write nothing into the file.
    rich.console.Console(file=file, width=width, color_system=None, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")


def _broken(text: str, width: int) -> str:
    """The text in lines of at most this width, broken after spaces, else after slashes, else anywhere."""
    if len(text) <= width:
        return text
    lines = [""]
    for word in filter(None, _SPACE.split(text)):
        while len(word) > width:
            at = word.rfind("/", 0, width) + 1 or width
            lines.append(word[:at])
            word = word[at:]
            lines.append("")
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(filter(None, lines))


def _starred(row: Row, at: int) -> Row | None:
    """The row with `*` for the number of its segments at a depth; None unless that is one number."""
    found = [_segment(path, at) for path in row.paths]
    if len({segment[2] for segment in found if segment}) != 1:
        return None
    paths, source = [], row.source
    for path, segment in zip(row.paths, found, strict=True):
        if segment:
            stem, number, end = segment.groups()
            segments = path.split("/")
            segments[at] = f"{stem}*{end}"
            path = "/".join(segments)
            # The scope of a source line has the segment too: (Model/layers_3/Dense_0).
            source = re.sub(rf"(?<=[/(]){re.escape(stem)}{number}(?=[/)])", lambda _, s=stem: f"{s}*", source)
        paths.append(path)
    return Row(tuple(paths), row.cells, source)


def _segment(path: str, at: int) -> re.Match[str] | None:
    segments = path.split("/")
    return _NUMBERED.fullmatch(segments[at]) if at < len(segments) else None
