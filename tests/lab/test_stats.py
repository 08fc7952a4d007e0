"What a few paired differences allow one to say, against scipy and against counting"
import numpy as np
import pytest
from scipy import stats

from metarisk_nb.lab.stats import *


def test_the_interval_is_students():
    mean, lo, hi = student([1., 2., 4., 5.])
    assert mean == 3 and hi - mean == pytest.approx(mean - lo) == pytest.approx(3.1824 * np.std([1, 2, 4, 5], ddof=1) / 2, abs=1e-3)
    assert np.isnan(student([1.])[1])


@pytest.mark.parametrize("n", [2, 5, 12])
def test_interval_and_test_agree(n):
    "The 95% interval ends at 0 exactly where p is .05"
    d = np.random.default_rng(n).normal(size=n)
    shifted = d - student(d)[1]
    assert p_value(shifted) == pytest.approx(.05) and p_value(d) == pytest.approx(stats.ttest_rel(d, np.zeros(n)).pvalue)


def test_holm_keeps_the_chance_of_one_false_verdict_at_five_percent():
    g = np.random.default_rng(0)
    false = [(holm([p_value(d) for d in g.normal(size=(8, 5))]) < .05).any() for _ in range(400)]
    single = [any(p_value(d) < .05 for d in g.normal(size=(8, 5))) for _ in range(400)]
    assert np.mean(false) < .08 and np.mean(single) > .25


def test_holm_by_its_definition():
    ps = np.random.default_rng(1).uniform(size=7)
    want, order = np.empty(7), ps.argsort()
    for i, k in enumerate(order): want[k] = max(min(1, (7 - j) * ps[order[j]]) for j in range(i + 1))
    assert holm(ps) == pytest.approx(want)
    assert np.isnan(holm([np.nan, .01])[0]) and holm([np.nan, .01])[1] == .01


def test_equal_where_the_90_percent_interval_lies_within_the_margin():
    g = np.random.default_rng(2)
    for _ in range(50):
        d = g.normal(g.uniform(-1, 1), .5, 6)
        lo, hi = stats.t.interval(.9, 5, d.mean(), stats.sem(d))
        assert (equal_within(d, 1.) < .05) == (-1 < lo and hi < 1)
    assert equal_within([0.] * 5, .1) == 0 and equal_within([.2] * 5, .1) == 1 and np.isnan(equal_within([0.], 1))


@pytest.mark.parametrize("d,lower,says", [([1.] * 4, False, "too few seeds"), ([1.] * 5, False, "better"), ([1.] * 5, True, "worse"),
                                          ([0.] * 5, False, "equal"), ([3, -3, 2, -2, 0], False, "no difference seen")], ids=str)
def test_words(d, lower, says): assert stands(np.array(d, float), p_value(d), equal_within(d, 1.), lower) == says


def test_nothing_is_called_equal_without_a_test(): assert stands(np.zeros(5), 1.) == "no difference seen"


def test_a_row_of_a_table():
    d = [1., 2., 3., 2., 2.]
    assert interval(d) == dict(zip(("diff", "lo", "hi"), student(d)), n=5, p=p_value(d))
    assert interval(d[:4])["n"] == 4 and all(np.isnan(interval(d[:4])[k]) for k in ("lo", "hi", "p"))


# --- The bootstrap, for comparison

def test_bootstrap_by_hand():
    assert bootstrap([3.]) == (3, 3) and bootstrap([0, 1]) == (0, 1)  # of the means 0, 1/2, 1 the outer ones have a quarter each
    assert bootstrap([0] * 7 + [1]) == pytest.approx((0, .375))  # ones among 8 draws: none in 34%, over 3 in 1%, over 2 in 7%
    d = np.arange(5.)
    assert bootstrap(d + 10) == pytest.approx(np.add(bootstrap(d), 10)) and bootstrap(d, seed=0) == bootstrap(d)
    assert bootstrap(d, n=1, seed=1)[0] == d[np.random.default_rng(1).integers(5, size=5)].mean()


@pytest.mark.parametrize("n", [3, 5, 20])
def test_bootstrap_is_that_of_scipy(n):
    d = np.random.default_rng(n).normal(size=n)
    want = stats.bootstrap((d,), np.mean, n_resamples=100_000, method="percentile", rng=0).confidence_interval
    assert bootstrap(d, n=100_000) == pytest.approx(want, abs=.02 * np.ptp(d))


@pytest.mark.parametrize("d", [[], np.array([])])
def test_an_interval_needs_a_difference(d):
    with pytest.raises(ValueError, match="d must hold at least one difference, got none"): bootstrap(d)
