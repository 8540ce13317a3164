"""Formulas as MathML, which browsers show without a script: the site needs no network."""

from __future__ import annotations

from typing import Any


def inline(translator: Any, node: Any) -> None:
    """Sphinx's renderer of a formula within a line."""
    _append(translator, node.astext(), block=False)


def block(translator: Any, node: Any) -> None:
    """Sphinx's renderer of a formula of its own."""
    _append(translator, node.astext(), block=True)


def mathml(tex: str, block: bool = False) -> str:
    """A formula of TeX in MathML.

    >>> import pytest; docutils = pytest.importorskip("docutils")
    >>> mathml("w^2")
    '<math xmlns="http://www.w3.org/1998/Math/MathML"> <msup> <mi>w</mi> <mn>2</mn> </msup> </math>'
    """
    from docutils.utils.math.latex2mathml import tex2mathml

    return " ".join(tex2mathml(tex, as_block=block).split())


def _append(translator: Any, tex: str, block: bool) -> None:
    from docutils.nodes import SkipNode

    tag = "div" if block else "span"
    translator.body.append(f'<{tag} class="math">{mathml(tex, block)}</{tag}>')
    raise SkipNode
