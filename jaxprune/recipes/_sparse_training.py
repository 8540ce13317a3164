"""Methods that train sparse from the first step: pruned at initialization, or with masks that move."""

from __future__ import annotations

from jaxprune import scores
from jaxprune.allocation import Scope
from jaxprune.recipes._allocation import Allocation
from jaxprune.recipes._from_the_start import BeforeTraining, Moving
from jaxprune.recipes._recipe import Recipe
from jaxprune.recipes._scoring import Scoring


def magnitude_at_init(sparsity: float, *, scope: Scope = "global", allocation: Allocation = None) -> Recipe:
    """Prunes the smallest initial weights: a control, which loses whole layers if their initial scales differ.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      scope: "global" or "local".
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.magnitude_at_init(0.9).scheduling
      BeforeTraining(rounds=1)

    References:
      Frankle et al., Pruning Neural Networks at Initialization: Why are We Missing the Mark?, 2020,
      arXiv:2009.08576.
    """
    scoring = Scoring(scope=scope, allocation=allocation)
    return Recipe(sparsity, scoring=scoring, scheduling=BeforeTraining(), name="magnitude at initialization")


def static(sparsity: float, *, allocation: Allocation = "erk") -> Recipe:
    """Random masks that never change: the control experiment for every sparse training.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      allocation: a sparsity for each layer, as for `magnitude_at_init`; None for the same sparsity in each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.static(0.9)
      static random, sparsity 0.9
        structure       Unstructured()
        scoring         Scoring(random, allocation='erk')
        scheduling      BeforeTraining(rounds=1)
        initialization  Finetune(schedule='continue')

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
    """
    scoring = Scoring(scores.random, "local", allocation)
    return Recipe(sparsity, scoring=scoring, scheduling=BeforeTraining(), name="static random")


def snip(sparsity: float, *, rounds: int = 1, allocation: Allocation = None) -> Recipe:
    """SNIP: prunes the weights whose removal changes the loss least, to first order.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      rounds: number of prunings, each with new scores; the paper uses 1.
      allocation: a sparsity for each layer, as for `magnitude_at_init`; None for one threshold over all.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.snip(0.9).scoring
      Scoring(snip, scope='global')

    References:
      Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018,
      arXiv:1810.02340.
    """
    scoring = Scoring(scores.snip, allocation=allocation)
    return Recipe(sparsity, scoring=scoring, scheduling=BeforeTraining(rounds), name="SNIP")


def grasp(sparsity: float, *, rounds: int = 1, allocation: Allocation = None) -> Recipe:
    """GraSP: prunes the weights whose removal reduces the gradient flow least.

    Args:
      sparsity, rounds, allocation: as for `snip`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.grasp(0.9).scoring
      Scoring(grasp, scope='global')

    References:
      Wang, Zhang, Grosse, Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020,
      arXiv:2002.07376.
    """
    scoring = Scoring(scores.grasp, allocation=allocation)
    return Recipe(sparsity, scoring=scoring, scheduling=BeforeTraining(rounds), name="GraSP")


def synflow(sparsity: float, *, rounds: int = 100, allocation: Allocation = None) -> Recipe:
    """SynFlow: prunes the weights with the least flow through them; it needs no data.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      rounds: number of prunings, each with new scores; many rounds keep whole layers from being pruned.
      allocation: as for `snip`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.synflow(0.9).scheduling
      BeforeTraining(rounds=100)

    References:
      Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020,
      arXiv:2006.05467.
    """
    scoring = Scoring(scores.synflow, allocation=allocation)
    return Recipe(sparsity, scoring=scoring, scheduling=BeforeTraining(rounds), name="SynFlow")


def rigl(
    sparsity: float,
    *,
    until: float = 0.75,
    updates: int = 20,
    fraction: float = 0.3,
    allocation: Allocation = "erk",
) -> Recipe:
    """RigL: drops the smallest weights and grows those with the largest gradients.

    Args:
      sparsity: fraction of the weights that is pruned throughout the training, in [0, 1).
      until: fraction of the training after which the masks no longer move.
      updates: number of moves until then.
      fraction: fraction of the kept weights that is dropped and regrown at first.
      allocation: a sparsity for each layer: "erk", "uniform", a function (params, sparsity, where=) -> tree, or a
        tree whose total is `sparsity`; None for the same sparsity in each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.rigl(0.95)
      RigL, sparsity 0.95
        structure       Unstructured()
        scoring         Scoring(magnitude, allocation='erk')
        scheduling      Moving(growth='gradient', fraction=0.3, until=0.75, updates=20)
        initialization  Finetune(schedule='continue')

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
    """
    scoring = Scoring(scope="local", allocation=allocation)
    scheduling = Moving("gradient", fraction, until, updates)
    return Recipe(sparsity, scoring=scoring, scheduling=scheduling, name="RigL")


def set(
    sparsity: float,
    *,
    until: float = 0.75,
    updates: int = 20,
    fraction: float = 0.3,
    allocation: Allocation = "erk",
) -> Recipe:
    """SET: drops the smallest weights and grows others at random.

    Args:
      sparsity, until, updates, fraction, allocation: as for `rigl`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.set(0.95).scheduling
      Moving(growth='random', fraction=0.3, until=0.75, updates=20)

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired
      by network science, 2017, arXiv:1707.04780.
    """
    scoring = Scoring(scope="local", allocation=allocation)
    scheduling = Moving("random", fraction, until, updates)
    return Recipe(sparsity, scoring=scoring, scheduling=scheduling, name="SET")
