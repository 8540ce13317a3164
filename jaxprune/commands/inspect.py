"""`jaxprune inspect`: its options, and what it prints."""

from __future__ import annotations

import dataclasses
import json

import tyro

from jaxprune.commands.quiet import Output


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Show what can be removed from a model of your own, and what can't and why, on one screen.

    The model is what a function of a file returns: a jaxprune.Model(fn, params, inputs), in any framework.
    """

    model: tyro.conf.Positional[str]
    """my_file.py:build or package.module:build; the function is `build` if none is named."""

    all: bool = False
    """Show all rows and all axes, however many there are."""

    json: bool = False
    """Print one JSON object, with nothing left out."""

    def check(self) -> None:
        """All values are valid."""


def run(options: InspectOptions) -> None:
    """Prints the overview.

    Raises:
      ValueError: if the model can't be made or traced; the message is one line.
    """
    from jaxprune.own_model.loading import file_of, load_model

    with Output(options.json) as output:
        model = load_model(options.model)
        from jaxprune.own_model.checking import checked
        from jaxprune.own_model.overview import overview, overview_text

        found = overview(checked(model, file_of(options.model)), options.model)
        output.show(json.dumps(found) if options.json else overview_text(found, options.all))
