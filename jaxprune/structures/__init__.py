"""Structure: what is removed together. Each structure cuts a parameter into units that live or die as one."""

from jaxprune.structures.block import Block
from jaxprune.structures.channels import Channels
from jaxprune.structures.layers import Layers
from jaxprune.structures.nm import NM
from jaxprune.structures.structure import LeafStructure, Structure
from jaxprune.structures.unstructured import Unstructured

__all__ = ["NM", "Block", "Channels", "Layers", "LeafStructure", "Structure", "Unstructured"]


def __dir__() -> list[str]:
    return sorted(__all__)
