"""The laboratory of lottery tickets: connectivity, instability to the noise of SGD, late rewinding, sanity checks."""

from jaxprune.tickets._connectivity import Connectivity, linear_connectivity
from jaxprune.tickets._instability import Instabilities, Instability, instability
from jaxprune.tickets._late_rewinding import LateRewinding, late_rewinding
from jaxprune.tickets._sanity import sanity_checks, ticket_variants

__all__ = [
    "Connectivity",
    "Instabilities",
    "Instability",
    "LateRewinding",
    "instability",
    "late_rewinding",
    "linear_connectivity",
    "sanity_checks",
    "ticket_variants",
]


def __dir__() -> list[str]:
    return sorted(__all__)
