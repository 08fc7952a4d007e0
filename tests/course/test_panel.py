"A Learner with a panel is copied, exported, cancelled and fitted again as one without"
import io
import pickle
from copy import copy, deepcopy

import pytest
import torch
from common import equal, fit, learner, state
from fastai.basics import Callback, CancelBatchException, CancelEpochException, CancelFitException, load_learner
from fastai.callback.progress import ProgressCallback

from metarisk_nb.callback import MetaRisk
from metarisk_nb.widget import MetaRiskPanel


class Named(MetaRiskPanel):
    "Somebody's own panel, with a state of its own"
    def before_fit(self):
        super().before_fit()
        self.fits = getattr(self, "fits", 0) + 1


# Callbacks that show something while a Learner trains
SHOWING = dict(panel=lambda: [MetaRiskPanel()], greedy=lambda: [MetaRiskPanel(share=1)], subclass=lambda: [Named(.5)],
               progress=lambda: [MetaRiskPanel(), ProgressCallback()])


def make(kind="panel", *cbs, **kwargs):
    return learner([MetaRisk(every=2, **kwargs), *SHOWING[kind](), *cbs])


def panel(learn): return next(o for o in learn.cbs if isinstance(o, MetaRiskPanel))


def through_pickle(learn): return pickle.loads(pickle.dumps(learn))


def through_torch(learn):
    f = io.BytesIO()
    torch.save(learn, f)
    f.seek(0)
    return torch.load(f, weights_only=False)


@pytest.mark.parametrize("again", [deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("kind", SHOWING)
def test_a_copy_trains_as_the_original_does_and_shows_a_picture_of_its_own(kind, again):
    learn = fit(make(kind), 1)
    other = again(learn)
    assert panel(learn).picture is not None and panel(other).picture is None
    assert (panel(other).share, panel(other).drawn) == (panel(learn).share, panel(learn).drawn)
    first = panel(learn).picture.value
    torch.manual_seed(1)
    fit(other, 1)
    assert "<img" in panel(other).picture.value and panel(learn).picture.value == first
    torch.manual_seed(1)
    fit(learn, 1)
    assert equal(state(learn), state(other)) and torch.equal(learn.meta_risk.weights, other.meta_risk.weights)


@pytest.mark.parametrize("copied", [copy, deepcopy, through_pickle])
def test_the_callback_alone_is_copied_too(copied):
    learn = fit(make(), 1)
    one = panel(learn)
    one.learn = None
    other = copied(one)
    assert other.picture is None and one.picture is not None and other.share == one.share
    assert "<img" in panel(fit(learner([MetaRisk(), other]), 1)).picture.value


class CopiesItself(Callback):
    "Copies the Learner in the middle of a fit, as those do that keep the best one"
    def after_epoch(self): self.kept = deepcopy(self.learn)


def test_a_copy_from_the_middle_of_a_fit_goes_on():
    learn = fit(make("panel", CopiesItself()), 2)
    kept = learn.copies_itself.kept
    assert panel(kept).picture is None
    assert "<img" in panel(fit(kept, 1)).picture.value


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("kind", SHOWING)
def test_an_exported_learner_predicts_what_it_predicted(kind, fitted, tmp_path):
    learn = make(kind)
    learn.path = tmp_path
    if fitted: fit(learn, 1)
    with learn.no_bar(): want = learn.get_preds(ds_idx=1)[0]
    dl = learn.dls.valid
    learn.export("learner.pkl")
    other = load_learner(tmp_path / "learner.pkl")
    with other.no_bar(): assert torch.equal(other.get_preds(dl=dl)[0], want)
    assert panel(other).picture is None


@pytest.mark.parametrize("kind", SHOWING)
def test_a_second_fit_has_a_new_picture(kind):
    learn = fit(make(kind), 1)
    first, drawn = panel(learn).picture, panel(learn).picture.value
    fit(learn, 1)
    assert panel(learn).picture is not first and first.value == drawn
    assert f"After {learn.meta_risk.n_step} steps" in panel(learn).picture.value and learn.meta_risk.n_step == 20


class Cancels(Callback):
    "Ends a fit, an epoch or a batch at an event, before or after the panel has its turn"
    def __init__(self, event, kind, order): self.event, self.kind, self.order = event, kind, order
    def __call__(self, event_name):
        if event_name == self.event: raise self.kind
        return super().__call__(event_name)


@pytest.mark.parametrize("order", [-100, 100])
@pytest.mark.parametrize("event,kind", [("before_fit", CancelFitException), ("before_epoch", CancelFitException), ("before_batch", CancelFitException), ("before_batch", CancelEpochException),
                                        ("before_batch", CancelBatchException), ("after_pred", CancelFitException)])
def test_a_fit_that_is_cancelled_before_it_learned_anything_ends_quietly(event, kind, order):
    learn = fit(make("panel", cancels := Cancels(event, kind, order)), 1)
    p = panel(learn)
    assert p.picture is None or "<img" not in p.picture.value or learn.meta_risk.history
    learn.remove_cb(cancels)
    assert "<img" in panel(fit(learn, 1)).picture.value


def test_a_fit_of_no_epochs_shows_nothing():
    learn = make()
    with learn.no_bar(), learn.no_logging(): learn.fit(0)
    assert panel(learn).picture.value == ""


def test_lr_find_and_predictions_show_nothing():
    learn = make()
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(show_plot=False, num_it=5)
        learn.get_preds(ds_idx=1)
    assert panel(learn).picture is None


def test_a_panel_needs_metarisk():
    with pytest.raises(RuntimeError, match=r"add MetaRisk\(\) to the callbacks"): fit(learner([MetaRiskPanel()]), 1)


@pytest.mark.parametrize("share", [0, -.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got"): MetaRiskPanel(share)


def test_the_panel_is_where_it_was():
    from metarisk_nb import all, panel, widget
    assert panel.MetaRiskPanel is widget.MetaRiskPanel is all.MetaRiskPanel
