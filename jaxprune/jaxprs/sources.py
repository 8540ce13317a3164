"""Source lines: the line of the user's files that an equation comes from."""

from __future__ import annotations

import os

from jax.extend.core import JaxprEqn

from jaxprune.jax_compat import user_frames

_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Source:
    """The source line of an equation, looked up only when it is printed.

    Equations inside JAX's own jitted functions have no such line: they get the line of the call.
    """

    __slots__ = ("_caller", "_eqn")

    def __init__(self, eqn: JaxprEqn, caller: Source | None = None):
        self._eqn = eqn
        self._caller = caller

    def __str__(self) -> str:
        return source_of(self._eqn) or str(self._caller or "")


def source_of(eqn: JaxprEqn) -> str:
    """`file.py:line` of an equation, in the user's own file if there is one, with its module scope."""
    frames = [f for f in user_frames(eqn) if not f.file_name.startswith(_OURS)]
    own = [f for f in frames if not any(library in f.file_name for library in _LIBRARIES)]
    scope = str(eqn.source_info.name_stack)
    place = next((f"{os.path.basename(f.file_name)}:{f.start_line}" for f in own or frames), "")
    return f"{place} ({scope})" if scope and place else place or scope
