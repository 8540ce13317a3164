"""Methods that prune a network while or after it is trained."""

from __future__ import annotations

from jaxprune import scores
from jaxprune.allocation import Scope
from jaxprune.recipes._allocation import Allocation
from jaxprune.recipes._in_rounds import Recursive
from jaxprune.recipes._recipe import Recipe
from jaxprune.recipes._scoring import OfMeanKept, Scoring
from jaxprune.recipes._while_training import Alternating, Gradual, OneShot
from jaxprune.rewind import Initialization, Rewind
from jaxprune.structures import Channels, Structure, Unstructured


def imp(
    sparsity: float,
    *,
    rounds: int = 4,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    rewind: Initialization = Rewind(),
    allocation: Allocation = None,
) -> Recipe:
    """Iterative magnitude pruning: train, prune the smallest of the remaining weights, rewind, repeat.

    Args:
      sparsity: sparsity after the last round, in [0, 1).
      rounds: number of prunings; there are `rounds + 1` trainings.
      scope, structure, rewind: as for `jp.imp`.
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.imp(0.9375)
      IMP, sparsity 0.9375
        structure       Unstructured()
        scoring         Scoring(magnitude, scope='global')
        scheduling      Recursive(rounds=4, spacing='geometric')
        initialization  Rewind(step=0)

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635.
    """
    scoring = Scoring(scope=scope, allocation=allocation)
    return Recipe(sparsity, structure, scoring, Recursive(rounds), rewind, "IMP")


def one_shot(
    sparsity: float,
    *,
    at: float = 0.5,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    allocation: Allocation = None,
) -> Recipe:
    """Train, prune the smallest weights at once, fine-tune the remaining ones.

    Args:
      sparsity: final sparsity, in [0, 1).
      at: fraction of the training before the pruning, in [0, 1).
      scope, structure, allocation: as for `imp`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.one_shot(0.9)
      one-shot, sparsity 0.9
        structure       Unstructured()
        scoring         Scoring(magnitude, scope='global')
        scheduling      OneShot(at=0.5)
        initialization  Finetune(schedule='continue')

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv:1506.02626.
    """
    scoring = Scoring(scope=scope, allocation=allocation)
    return Recipe(sparsity, structure, scoring, OneShot(at), name="one-shot")


def lamp(sparsity: float, *, at: float = 0.5) -> Recipe:
    """Layer-adaptive magnitude: one threshold over all layers, on scores that keep every layer from being emptied.

    Args:
      sparsity, at: as for `one_shot`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.lamp(0.9).scoring
      Scoring(lamp, scope='global')

    References:
      Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2020, arXiv:2010.07611.
    """
    return Recipe(sparsity, scoring=Scoring(scores.lamp), scheduling=OneShot(at), name="LAMP")


def minimum_keep(sparsity: float, *, at: float = 0.5, share: float = 0.5) -> Recipe:
    """`one_shot`, but every layer keeps some of its largest weights, whatever the threshold over all layers.

    Args:
      sparsity, at: as for `one_shot`.
      share: the minimum that a layer keeps: a fraction in [0, 1] of the mean number of kept weights per layer.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.minimum_keep(0.9).scoring
      Scoring(magnitude, scope='global', minimum=OfMeanKept(share=0.5))
    """
    scoring = Scoring(minimum=OfMeanKept(share))
    return Recipe(sparsity, scoring=scoring, scheduling=OneShot(at), name="minimum keep")


def gmp(
    sparsity: float,
    *,
    until: float = 0.75,
    updates: int = 50,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    allocation: Allocation = None,
) -> Recipe:
    """Gradual magnitude pruning: prunes more and more of the smallest weights during training.

    Args:
      sparsity: final sparsity, in [0, 1).
      until: fraction of the training after which nothing more is pruned.
      updates: number of updates of the masks until then.
      scope, structure, allocation: as for `imp`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.gmp(0.9).scheduling
      Gradual(cubic, begin=0.0, until=0.75, updates=50)

    References:
      Zhu, Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """
    scoring = Scoring(scope=scope, allocation=allocation)
    return Recipe(sparsity, structure, scoring, Gradual(until=until, updates=updates), name="GMP")


def ac_dc(
    sparsity: float,
    *,
    begin: float = 0.1,
    until: float = 0.7,
    phases: int = 6,
    scope: Scope = "global",
    allocation: Allocation = None,
) -> Recipe:
    """AC/DC: sparse and dense phases of training alternate; the last phase is sparse.

    Args:
      sparsity: fraction of the weights that is pruned in the sparse phases, in [0, 1).
      begin: fraction of the training before the first sparse phase.
      until: fraction of the training after which all of it is sparse.
      phases: number of sparse and dense phases between the two.
      scope, allocation: as for `imp`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.ac_dc(0.9).scheduling
      Alternating(begin=0.1, until=0.7, phases=6)

    References:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks, 2021,
      arXiv:2106.12379.
    """
    scoring = Scoring(scope=scope, allocation=allocation)
    return Recipe(sparsity, scoring=scoring, scheduling=Alternating(begin, until, phases), name="AC/DC")


def group_lasso(
    sparsity: float, *, strength: float = 1e-4, at: float = 0.5, allocation: Allocation = None
) -> Recipe:
    """Structured sparsity learning: a group lasso makes output channels small; the smallest are pruned at once.

    The pruned channels are those of the smallest L2 norm in each layer; the others are trained on. Leave the output
    layer out of `where`: its channels are the outputs of the network. Network slimming, which penalises and ranks
    the scales of norm layers, is `jp.sparse_training.slimming` with `jp.scores.batch_norm_scale`.

    Args:
      sparsity: fraction of the channels of each layer to prune, in [0, 1).
      strength: factor of the penalty `sum_g sqrt(n_g) ||w_g||`, whose gradient is added to that of the loss.
      at: fraction of the training before the pruning, in [0, 1).
      allocation: a sparsity for each layer, as for `imp`; None for the same sparsity in each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.group_lasso(0.5)
      group lasso, sparsity 0.5
        structure       Channels(axis=-1)
        scoring         Scoring(l2_norm, scope='local', group_lasso=0.0001)
        scheduling      OneShot(at=0.5)
        initialization  Finetune(schedule='continue')

    References:
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv:1608.03665.
    """
    scoring = Scoring(scores.l2_norm, "local", allocation, group_lasso=strength)
    return Recipe(sparsity, Channels(), scoring, OneShot(at), name="group lasso")
