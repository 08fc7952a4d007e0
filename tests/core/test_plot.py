"Figures: what is drawn, where and in which colour"
import numpy as np
import pytest
import torch
from common import fit, learner
from matplotlib import pyplot as plt

from metarisk_nb.callback import MetaRisk
from metarisk_nb.plot import *
from metarisk_nb.training import recipes

plt.switch_backend("agg")
steps = np.array([0, 10, 20, 30, 400])
w = np.random.default_rng(0).dirichlet(np.ones(20), 5)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def heights(ax): return ax.patches[0].get_data().values


def test_each_method_has_its_own_colour():
    assert set(recipes) <= set(palette) and len({palette[m] for m in recipes}) == len(recipes)
    assert all(len(o) == 3 and 0 <= min(o) <= max(o) <= 1 for o in palette.values())


def test_scores_have_bars_numbers_and_whiskers():
    ax = plot_scores({"learned": 60., "Expected value": 50., "other": 10.}, sd={"learned": 2., "Expected value": 8.})
    assert [o.get_width() for o in ax.patches] == [60, 50, 10] and [o.get_text() for o in ax.texts] == ["60.0", "50.0", "10.0"]
    assert [o.get_facecolor()[:3] for o in ax.patches[:2]] == [palette["learned"], palette["expected"]]
    ends = [o[:, 0].tolist() for c in ax.collections for o in c.get_segments()]
    assert ends == [[58, 62], [42, 58], [10, 10]] and ax.get_xlim()[1] == pytest.approx(62 * 1.15)


def test_scores_begin_where_they_are_told():
    assert plot_scores(dict(a=80.), lo=60).get_xlim() == pytest.approx((60, 83))
    fig, ax = plt.subplots()
    assert plot_scores(dict(a=1.), ax, "title", fmt="{:.2f}") is ax and ax.get_title() == "title" and ax.texts[0].get_text() == "1.00"
    assert not ax.collections  # no whiskers without `sd`


@pytest.mark.parametrize("kind", [list, np.array, lambda o: torch.tensor(o, requires_grad=True)], ids=["list", "array", "tensor"])
def test_weights_are_multiples_of_the_uniform_ones(kind):
    ax = plot_weights(kind([.5, .25, .25, 0.]))
    assert heights(ax).tolist() == [2, 1, 1, 0] and ax.patches[0].get_data().edges.tolist() == [0, 25, 50, 75, 100]


def test_the_axis_says_what_the_batch_is_sorted_by():
    assert plot_weights(w[0]).get_xlabel() == plot_evolution(steps, w).get_xlabel() == "% of the batch, worst … best loss"
    doubt = "% of the batch, most … least doubtful label"
    assert plot_weights(w[0], by="doubt").get_xlabel() == plot_evolution(steps, w, by="doubt").get_xlabel() == doubt
    with pytest.raises(ValueError, match="by must be 'loss' or 'doubt', got 'rank'"): plot_weights(w[0], by="rank")


@pytest.mark.parametrize("setting, by", [({}, "doubt"), ({"rank": "class"}, "doubt"), ({"rank": "loss"}, "loss"), ({"rule": "merit"}, "loss")])
def test_a_callback_says_what_it_sorts_by(setting, by):
    m = fit(learner([MetaRisk(**setting)]), 1).meta_risk
    again = MetaRisk(**setting)
    again.load_state_dict(m.state_dict())
    end = dict(loss="worst … best loss", doubt="most … least doubtful label")[by]
    for o in m, again:
        assert o.sorted_by == by and o.plot_weights().get_xlabel() == f"% of the batch, {end}"
    assert m.plot_evolution().get_xlabel().endswith(end) and m.plot_weights(by="loss").get_xlabel().endswith("worst … best loss")


@pytest.mark.parametrize("target", [None, np.r_[np.ones(2) / 2, np.zeros(18)]], ids=["alone", "with target"])
def test_curriculum_draws_the_target_and_the_weights_over_time(target):
    axs = plot_curriculum(steps, w, target, n=3, title="CVaR")
    shown = [0, 30, 400]  # nearest to 0, 200 and 400
    learned = axs[len(axs) - 3:]
    assert [o.get_title() for o in axs] == (["CVaR"] if target is not None else []) + [f"step {s}" for s in shown]
    for ax, s in zip(learned, shown): assert np.allclose(heights(ax), w[list(steps).index(s)] * 20)
    picked = w[[0, 3, 4]].max() * 20
    assert all(o.get_ylim() == pytest.approx((0, 1.05 * picked)) for o in learned)
    assert axs[0].get_ylabel() == "weight (× uniform)" and not any(o.get_ylabel() for o in axs[1:])
    if target is not None: assert np.allclose(heights(axs[0]), [10, 10] + [0] * 18)
    for ax in learned[1:]: assert not any(o.get_text() for o in ax.get_yticklabels())


def test_curriculum_draws_rows_near_each_other_once():
    assert [o.get_title() for o in plot_curriculum([0, 1, 2], w[:3], n=6)] == ["step 0", "step 1", "step 2"]


def test_curriculum_draws_where_it_is_told():
    fig, axs = plt.subplots(1, 3)
    got = plot_curriculum(steps, torch.tensor(w), w[0], n=2, axs=axs)
    assert got is axs and [o.get_title() for o in axs] == ["target", "step 0", "step 400"] and len(plt.get_fignums()) == 1
