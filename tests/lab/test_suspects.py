"Who finds wrong labels: what is measured, and the finders"
import numpy as np
import pytest
import torch
from fastai.torch_core import no_random

from metarisk_nb.data import TensorSet
from metarisk_nb.lab.run import Run
from metarisk_nb.lab.run import finders as names
from metarisk_nb.lab.suspects import Visits, finder_figures, finders
from metarisk_nb.lab.train import learner_of, train_run

RUN = dict(data="digits", noise=.4, steps=100)


@pytest.fixture(scope="module")
def found(): return {m: train_run(Run(method=m, **RUN))["figures"] for m in ("report", "visits", "crossval")}


def test_every_finder_is_a_method(): assert set(finders) == {"report", *names}


@pytest.mark.parametrize("name, method, least", [("report", "report", .97), ("margin", "visits", .97), ("mean_loss", "visits", .97),
                                                 ("last_loss", "visits", .9), ("cleanlab", "crossval", .9)])
def test_wrong_labels_are_found(found, name, method, least):
    assert found[method][f"{name}_auroc"] > least and found[method][f"{name}_precision"] > least - .15


@pytest.mark.parametrize("name, method", [("report", "report"), ("cleanlab", "crossval")])
def test_who_says_how_many(found, name, method):
    o = found[method]
    assert abs(o[f"{name}_share"] - .36) < .12 and o[f"{name}_suggested"] > .7
    assert min(o[f"{name}_{k}"] for k in ("found_precision", "found_recall", "rare_precision", "rare_recall")) > .6


def test_right_labels_have_a_share_alone():
    o = train_run(Run(method="report", **(RUN | dict(noise=0.))))["figures"]
    assert [k for k in o if k.startswith("report_")] == ["report_share"] and o["report_share"] < .05


def test_the_run_with_a_report_is_the_default_run():
    a, b = (train_run(Run(method=m, **RUN))["figures"]["test_acc"] for m in ("report", "presumption"))
    assert a == b


def test_means_over_all_visits():
    run = Run(method="visits", **(RUN | dict(steps=40)))
    with no_random(0):
        learn, _ = learner_of(run)
        learn.add_cb(visits := Visits())
        with learn.no_bar(), learn.no_logging(): finders["visits"](learn, run)
    assert visits.sums[0].sum() == 40 * 100
    margin, loss = visits.means()
    seen = visits.sums[0] > 0
    assert (loss[seen] > 0).all() and np.corrcoef(margin[seen], loss[seen])[0, 1] < -.8


def test_the_rarest_classes_are_those_that_fewest_labels_name():
    y = torch.tensor([0] * 10 + [1] * 8 + [2] * 3 + [3] * 2 + [4])
    clean = y.clone()
    clean[[0, 18, 21]] = 1
    score = torch.zeros(24)
    score[[18, 21, 5]] = 1.
    o = finder_figures("x", TensorSet(torch.zeros(24, 1), y, clean), score, n=3)
    assert o["x_rare_recall"] == 1 and o["x_rare_precision"] == 1 and o["x_found_recall"] == pytest.approx(2 / 3)
