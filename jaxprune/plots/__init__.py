"""Plots, with matplotlib's object interface: no state, no window, no backend to choose."""

from jaxprune.plots._accuracy import plot_accuracy
from jaxprune.plots._connectivity import plot_connectivity
from jaxprune.plots._curves import plot_curves
from jaxprune.plots._history import history
from jaxprune.plots._instability import plot_instability
from jaxprune.plots._latency import plot_latency
from jaxprune.plots._layer_errors import layer_errors
from jaxprune.plots._rewinding import plot_rewinding
from jaxprune.plots._sanity_checks import plot_sanity_checks
from jaxprune.plots._sensitivity import plot_sensitivity
from jaxprune.plots._tickets import Line, plot_tickets

__all__ = [
    "Line",
    "history",
    "layer_errors",
    "plot_accuracy",
    "plot_connectivity",
    "plot_curves",
    "plot_instability",
    "plot_latency",
    "plot_rewinding",
    "plot_sanity_checks",
    "plot_sensitivity",
    "plot_tickets",
]


def __dir__() -> list[str]:
    return sorted(__all__)
