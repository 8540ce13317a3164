"""What calibration will compute, keep and take, told from shapes: hand-worked counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from one_weight import draw

import jaxprune as jp
from jaxprune.jaxprs.work import Work, work_of

ROWS, IN, HIDDEN = 10, 8, 16
WANDA = jp.MaskOnly("wanda")


def mlp(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def cost(batches=1, method=WANDA, fn=mlp, **options):
    params = {"up": draw(0, IN, HIDDEN), "down": draw(1, HIDDEN, IN)}
    return jp.calibration_cost(fn, params, [draw(2, ROWS, IN)] * batches, method=method, **options)


@pytest.mark.slow
def test_flops_of_passes_and_moments_are_those_of_the_shapes():
    """The pass ends before the last weight, so it has one product. Wanda needs no other."""
    assert cost(3).flops == 3 * 2 * ROWS * IN * HIDDEN
    squares = 2 * ROWS * (IN**2 + HIDDEN**2)
    per_batch = cost(2, jp.SparseGPT()).flops - cost(1, jp.SparseGPT()).flops
    np.testing.assert_allclose(per_batch, 2 * ROWS * IN * HIDDEN + squares)
    with_targets = [cost(n, jp.SparseGPT(), dense_targets=0.5).flops for n in (1, 2)]
    np.testing.assert_allclose(np.diff(with_targets), 2 * (2 * ROWS * IN * HIDDEN + squares))


def test_a_step_of_refit_is_three_forward_passes_of_its_window():
    window = 2 * 2 * ROWS * IN * HIDDEN
    steps = [cost(1, refine=(jp.Refit(steps=n),), fn=lambda p, x: x + mlp(p, x)).flops for n in (1, 4)]
    assert steps[1] - steps[0] == 3 * 3 * window


def test_refinements_cost_their_steps():
    few, many = (cost(1, jp.SparseGPT(), refine=(jp.LeastSquares(n),)).flops for n in (1, 11))
    assert many - few == 10 * 2 * (IN * IN * HIDDEN + HIDDEN * HIDDEN * IN)


def test_bytes_grow_with_batches_by_inputs_and_what_is_kept():
    one, two, three = (cost(n).bytes for n in (1, 2, 3))
    # Either the input, which the caller holds, and it or the hidden layer, whichever is larger.
    assert two - one == three - two == 4 * ROWS * (IN + HIDDEN)


def test_the_sentence_names_operations_time_and_memory():
    told = str(jp.calibration.CalibrationCost(2.5e12, 3 * 2**30, 600))
    assert told == "2500 GFLOP, about 10 min without compilation, 3.0 GiB of arrays"
    found = cost(method=jp.ADMM(rounds=4, ramp=2))
    assert found.seconds > 0 and found.bytes > 0


@pytest.mark.parametrize("structure", [jp.NM(2, 4), jp.Block((2, 2))], ids=str)
def test_other_structures_and_convolutions_have_a_cost(structure):
    params = {"w": draw(0, 3, 3, 4, 8), "up": draw(1, 8, 8)}
    numbers = ("NHWC", "HWIO", "NHWC")

    def fn(params, x):
        return (
            lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=numbers) @ params["up"]
        )

    found = jp.calibration_cost(
        fn, params, [draw(2, 2, 5, 5, 4)], structure, dense_targets=1, statistics=False
    )
    assert found.flops > 2 * 50 * (36**2 + 36 * 8 + 8**2)


def test_work_counts_loops_by_their_length_and_the_dearest_branch():
    a = jnp.ones((4, 4))
    product = 2 * 4**3

    def loop(a):
        return lax.fori_loop(0, 5, lambda i, x: x @ a, a)

    def branches(a):
        return lax.cond(a[0, 0] > 0, lambda: a, lambda: a @ a @ a)

    def unknown(a):
        return lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ a, a)

    found = [
        work_of(jax.make_jaxpr(fn)(a).jaxpr).flops for fn in (loop, branches, unknown, jnp.linalg.cholesky)
    ]
    np.testing.assert_allclose(found, [5 * product, 2 * product, product, 4**3 / 3])
    assert work_of(jax.make_jaxpr(unknown)(a).jaxpr, trips=7).flops == 7 * product
    assert Work(1, 2) + Work(3, 4).times(2) == (7, 10)


def test_a_method_that_cannot_be_traced_counts_as_nothing():
    class Own:
        moments = "full"

        def check(self, structure):
            pass

        def factorize(self, gram):
            return np.asarray(gram)

    squares = 2 * ROWS * (IN**2 + HIDDEN**2)
    assert cost(1, Own()).flops == 2 * ROWS * IN * HIDDEN + squares


@pytest.mark.slow
def test_the_bar_is_between_what_a_run_will_take_and_what_it_took(capsys):
    params = {"w": draw(0, 4, 4)}
    jp.reconstruct(lambda p, x: x @ p["w"], params, [draw(1, 8, 4)], method=WANDA, progress=True)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("prune:")]
    assert "GFLOP" in lines[0] and "took" in lines[-1] and "the process at most" in lines[-1]
