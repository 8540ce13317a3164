"""One's own model on the command line: what a file's `build` returns, and what the commands do with it."""

from jaxprune.own_model._model import Model

__all__ = ["Model"]
