"""Docstrings, as they are written in this project, in the language that Sphinx reads.

They have sections (Args, Returns, Raises, Example, References), code in single backticks and formulas between dollars
or in `\\(...\\)`. All other characters mean themselves: `*`, `|` and a trailing `_` are no markup.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example", "Examples", "References", "Note")
_SPAN = re.compile(
    r"(?P<code>``.+?``|`[^`]+`)|\$\$(?P<display>.+?)\$\$|\$(?P<math>[^$\n]+?)\$|\\\((?P<paren>.+?)\\\)",
    re.DOTALL,
)

_ARXIV = re.compile(r"(arXiv:(\d{4}\.\d{4,5}))")


def on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event: replaces the lines of a docstring."""
    del app, what, name, options
    lines[:] = [] if _is_of_dataclass(obj, lines) else converted(lines)


def on_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Sphinx's event: names of types as the code has them, where Sphinx shows how it keeps them."""
    del app, what, name, obj, options
    signature, returns = (text and _readable(text) for text in (signature, returns))
    return signature, returns


def _readable(signature: str) -> str:
    """A signature in which types have their names and functions too.

    >>> _readable("(where: TypeAliasForwardRef('PyTree') | None, score=<function magnitude>)")
    '(where: PyTree | None, score=magnitude)'
    >>> _readable("(a=<function by.<locals>.compact>, b=<factory>)")
    '(a=compact, b=...)'
    """
    signature = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature)
    signature = re.sub(r"<function (?:[\w.<>]+\.)?(\w+)>", r"\1", signature)
    return signature.replace("<factory>", "...")  # a new dict, made by each call


def on_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Sphinx's event: fields of tuples and dataclasses are described in the docstring of their class."""
    del app, what, options
    text = (inspect.getdoc(obj) or "") if not isinstance(obj, str | int | float | bool | tuple) else ""
    if name.startswith("_") or not text or text.startswith("Alias for field number"):
        return True
    return skip


def _is_of_dataclass(obj: Any, lines: list[str]) -> bool:
    """Whether the docstring is the signature that `dataclasses` writes where there is none."""
    return inspect.isclass(obj) and " ".join(lines).startswith(f"{obj.__name__}(")


def converted(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText.

    >>> converted(["Norm of |w|: `sum |w|`.", "", "Args:", "  w: the *weights*."])[1:]
    ['', ':Arguments:', '  * **w** – the \\\\*weights\\\\*.', '']
    """
    out: list[str] = []
    for title, body in _sections(lines):
        if title in ("Args", "Attributes", "Raises"):
            out += ["", f":{title.replace('Args', 'Arguments')}:"]
            out += [
                "  " + line if line else "" for name, text in _entries(body) for line in _entry(name, text)
            ]
        elif title == "Returns":
            out += ["", *_hanging(":Returns: ", _text(body))]
        elif title == "References":
            out += ["", ".. rubric:: References", "", *(f"* {reference}" for reference in _references(body))]
        elif title:
            out += ["", f".. rubric:: {title}", "", *_text(body)]
        else:
            out += ["", *_text(body)]
    return [*out[1:], ""]


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    title, body = "", []
    for line in lines:
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            yield title, _stripped(body)
            title, body = line[:-1], []
        elif title and line.strip() and not line.startswith(" "):  # the section before it has ended
            yield title, _stripped(body)
            title, body = "", [line]
        else:
            body.append(line)
    yield title, _stripped(body)


def _stripped(lines: list[str]) -> list[str]:
    """The lines without common indentation and without blank lines around them."""
    text = inspect.cleandoc("\n" + "\n".join(lines)).strip("\n")
    return text.split("\n") if text else []


def _entries(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """`name: text` and the indented lines below it, for each name."""
    name, text = "", []
    for line in lines:
        if line and not line.startswith(" "):
            if name:
                yield name, _stripped(text)
            name, _, first = line.partition(":")
            text = ["  " + first.strip()]
        else:
            text.append(line)
    if name:
        yield name, _stripped(text)


def _references(lines: list[str]) -> list[str]:
    """One line each. A reference ends with its arXiv number and a full stop, or with a paragraph."""
    text = "\n".join(line.strip() or "\n" for line in lines)
    found = re.split(r"\n\n+|(?<=\.)\s+(?=[A-Z])(?<=\d\.\s)", text)
    return [
        _ARXIV.sub(r"`\1 <https://arxiv.org/abs/\2>`__", _marked(" ".join(r.split())))
        for r in found
        if r.strip()
    ]


def _entry(names: str, text: list[str]) -> list[str]:
    """A bullet: the names that one description is about, and the description."""
    return _hanging(f"* **{', '.join(_plain(name) for name in names.split(', '))}** – ", _text(text))


def _hanging(start: str, lines: list[str]) -> list[str]:
    first, *rest = lines or [""]
    return [start + first, *("  " + line if line else "" for line in rest)]


def _text(lines: list[str]) -> list[str]:
    """Paragraphs, with their code, formulas and plain characters; examples stay as they are."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        is_example = blocks[-1][:1] and blocks[-1][0].lstrip().startswith(">>> ")
        if not line.strip() or (line.lstrip().startswith(">>> ") and not is_example):
            blocks.append([])
        if line.strip():
            blocks[-1].append(line)
    out: list[str] = []
    for block in filter(None, blocks):
        is_example = block[0].lstrip().startswith(">>> ")
        out += ["", *(block if is_example else _marked("\n".join(block)).split("\n"))]
    return out[1:]


def _marked(text: str) -> str:
    out, end = [], 0
    for span in _SPAN.finditer(text):
        out.append(_plain(text[end : span.start()]))
        kind, inside = next((k, v) for k, v in span.groupdict().items() if v)
        inside = " ".join(inside.split())
        out.append(_code(inside.strip("`")) if kind == "code" else f":math:`{inside}`")
        after = text[span.end() : span.end() + 1]
        if after and (after.isalnum() or after in "_("):
            out.append("\\ ")
        end = span.end()
    return "".join([*out, _plain(text[end:])])


def _code(text: str) -> str:
    """Code; the name of something that has a page leads to it."""
    name = with_pages().get(text)
    return f":py:obj:`{text} <{name}>`" if name else f"``{text}``"


@functools.cache
def with_pages() -> dict[str, str]:
    """How docstrings write the names in the reference's tables -> their full names."""
    text = "\n".join(page.read_text() for page in sorted((Path(__file__).parent / "api").glob("*.md")))
    names = re.findall(r"^   jaxprune\.([\w.]+)$", text, re.MULTILINE)
    found = {f"{start}.{name}": f"jaxprune.{name}" for name in names for start in ("jp", "jaxprune")}
    found["jp.imp"] = found["jp.IMP"]  # one class with two names
    last = [name.rpartition(".")[2] for name in names]
    for name, short in zip(names, last, strict=True):
        # A short name may be that of an argument or of a word, unless it has two parts.
        if last.count(short) == 1 and re.search(r"[a-z](_|[A-Z])", short):
            found[short] = f"jaxprune.{name}"
    return found


def _plain(text: str) -> str:
    """Characters that would be markup, escaped; bullets at the start of a line stay."""
    text = text.replace("\\", "\\\\")
    text = re.sub(r"(?m)(?<!^)(?<!^ )(?<!^  )([*|])", r"\\\1", text)
    text = re.sub(r"(?m)^( *)([*|])(?! )", r"\1\\\2", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
