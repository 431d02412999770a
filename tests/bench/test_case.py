# SPDX-License-Identifier: Apache-2.0
"""The measures of an error: what a wrong result is off by, and that what is not a number is never near."""

import numpy as np
import pytest

from earnest.bench.case import largest_difference, largest_error, share_off

RIGHT = [np.array([3.0, -4.0, 0.0]), np.array([[1.0, 0.0]])]
MEASURES = (largest_error, largest_difference, share_off)


@pytest.mark.parametrize(
    ("measure", "off"), [(largest_error, 0.5), (largest_difference, 2.0), (share_off, 0.4)]
)
def test_an_error_is_in_units_of_its_measure(measure, off):
    assert measure(RIGHT, RIGHT) == 0.0
    assert measure([RIGHT[0] + np.array([0.0, 2.0, 0.0]), RIGHT[1]], RIGHT) == pytest.approx(off)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("array", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong_in_any_array(measure, array, value):
    got = [x.copy() for x in RIGHT]
    got[array].flat[-1] = value
    got[1 - array].flat[0] += 0.5  # a plain error beside it does not hide it
    assert measure(got, RIGHT) == np.inf


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("got", [RIGHT[:1], [], [RIGHT[0], RIGHT[1][0]], [RIGHT[0][:2], RIGHT[1]]])
def test_missing_arrays_and_other_shapes_are_infinitely_wrong(measure, got):
    assert measure(got, RIGHT) == np.inf


@pytest.mark.parametrize("measure", MEASURES)
def test_a_reference_of_zeros_is_its_own_unit(measure):
    assert measure([np.array([0.0, 0.25])], [np.zeros(2)]) == 0.25
