"""The output of a command on a model: results on stdout, all that the model's own code prints on stderr."""

from __future__ import annotations

import contextlib
import sys
import types
import warnings
from typing import Any


class Output:
    """While it is entered, whatever is printed goes to stderr; `show` prints on stdout when it ends.

    Args:
      json: whether only one JSON object may stand on stdout.
    """

    def __init__(self, json: bool):
        self._json = json
        self._shown: str | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Output:
        if self._json:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = self._warn
        return self

    def say(self, step: str) -> None:
        """Tells on stderr what is done next."""
        print(f"jaxprune: {step}", file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        """The result, which is printed once all is done."""
        self._shown = text

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None and self._shown is not None:
            print(self._shown)

    def _warn(self, message: Any, *_: Any, **__: Any) -> None:
        self.say(f"warning: {' '.join(str(message).split())}")
