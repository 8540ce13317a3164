"""Random functions and random plans: never wrong, whatever is coupled or frozen."""

import pytest
from checks import random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model

import jaxprune as jp


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), copies=st.booleans())
def test_small_function_equals_masked_and_zeroed_functions(seed, copies):
    fn, params, inputs = random_model(seed, copies)
    groups = jp.find_groups(fn, params, *inputs)
    report = random_plan(groups, seed).verify(fn, params, *inputs)
    assert report.masked < 1e-4, str(report)
    assert report.zeroed < 1e-4, str(report)
