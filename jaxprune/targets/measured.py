"""What was measured on the way to a plan."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jaxprune.tables import table_text


class Measurement(NamedTuple):
    """A network that was run.

    Attributes:
      what: how it was made small.
      latency: its latency over that of the dense network, None where it was not timed.
      error: mean squared difference of its outputs from the dense ones, over the variance of these; None where they
        were not compared.
    """

    what: str
    latency: float | None
    error: float | None


class Measured(NamedTuple):
    """How a plan of `plan_to` meets its target.

    Attributes:
      target: "latency", "flops", "params" or "bytes".
      asked, reached: the share of the dense model's.
      dense, small: the amounts: seconds, FLOPs, parameters or bytes.
      where: the runtime and the batch of a latency.
      compilations: of networks; one whose latency and whose outputs are needed may take two.
      table: the networks that were run, in order.
    """

    target: str
    asked: float
    reached: float
    dense: float
    small: float
    where: str
    compilations: int
    table: tuple[Measurement, ...]

    def __str__(self) -> str:
        unit, scale = ("ms", 1e3) if self.target == "latency" else ("", 1)
        amounts = " against ".join(
            f"{x * scale:.3f} {unit}".strip() if unit else f"{x:,.0f}" for x in (self.small, self.dense)
        )
        where = f" in {self.where}" if self.where else ""
        line = f"{self.target}{where}: {self.reached:.3f} of the dense model's ({amounts}; asked: {self.asked:g})"
        if self.compilations:
            line += f", {self.compilations} compilations"
        if self.reached < 0.95 * self.asked:
            line += (
                "; no plan in between, since units are removed together and widths are multiples (`round_to`)"
            )
        if not self.table:
            return line
        rows = [
            (
                row.what,
                *(
                    "-" if x is None else f"{x:{how}}"
                    for x, how in ((row.latency, ".3f"), (row.error, ".2e"))
                ),
            )
            for row in self.table
        ]
        return f"{line}\n\n{table_text(('network', 'latency', 'error'), rows, numbers=('latency', 'error'))}"

    __repr__ = __str__


def with_measured(plan: Any, measured: Measured) -> Any:
    """The plan, which tells what was measured."""
    return dataclasses.replace(plan, measured=measured)
