"""A score is a function of the parameters, or of the parameters and a key, whatever the key is called."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune.scores._scorer import call_score

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("score", "want"),
    [
        (lambda params: "alone", "alone"),
        (lambda params, scale=2: scale, 2),
        (lambda params, key: key, KEY),
        (lambda params, rng: rng, KEY),
        (lambda params, k: k, KEY),
        (lambda params, scale=2, *, key: key, KEY),
        (lambda params, rng=None: rng, KEY),
        (lambda *args: len(args), 1),
    ],
)
def test_a_key_is_given_to_those_that_take_one(score, want):
    assert call_score(score, {"w": jnp.ones(2)}, KEY) is want or call_score(score, {}, KEY) == want


def test_what_cannot_be_called_is_said():
    with pytest.raises(ValueError, match="`score` takes a `key`, but none was given"):
        call_score(lambda params, rng: params, {}, None)
    with pytest.raises(TypeError, match=r"`score` must take \(params\) or \(params, key\), got .*loss_fn"):
        call_score(lambda loss_fn, params, batch: params, {}, KEY)
    with pytest.raises(TypeError, match="must be a function"):
        call_score({"w": jnp.ones(2)}, {}, KEY)
