"Models and losses that edit what they are given, inputs as the model's own pass has them, and losses that are not finite"
import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from common import Half, ce, equal, fit, learner, net, state, tensors
from fastai.basics import SGD, Callback, CrossEntropyLossFlat, DataLoaders, Learner, TensorImage, TfmdDL, set_seed
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from torch import nn

from metarisk_nb.callback import BatchRisk, MetaRisk, RiskMetric
from metarisk_nb.curriculum import Curriculum


def reduced(l, reduction): return l if reduction == "none" else getattr(l, reduction)()


# --- Models that edit their input

class Normalising(nn.Module):
    "The usual two lines, in place; `clean` has the same without"
    clean = False
    def __init__(self): super().__init__(); self.body = nn.Linear(6, 3)
    def forward(self, x):
        x = x.clone() if self.clean else x
        return self.body(self.edit(x))
    def edit(self, x): return x.sub_(.5).div_(.25)


class Rectified(Normalising):
    def edit(self, x): return F.relu(x.mul_(2), inplace=True)


class Noisy(Normalising):
    def edit(self, x): return x.add_(1).mul_(.5)[:, :6]


MODELS = [Normalising, Rectified, Noisy]
CBS = {"mean of the batch": BatchRisk("expected"), "cvar": BatchRisk("cvar:.5"), "every step": MetaRisk.first_edition(every=1), "three inner steps": MetaRisk.first_edition(every=2, n_inner=3),
       "fresh": MetaRisk.first_edition(every=1, n_inner=2, fresh=True), "draws": MetaRisk.first_edition(every=1, meta_bs=25), "differences": MetaRisk.first_edition(every=1, method="finite_difference", n_inner=2)}


def pair(make, cb, **kwargs):
    "The same run with the model that edits its input and with the one that does not"
    learns = []
    for clean in False, True:
        set_seed(0)
        model = make()
        model.clean = clean
        learns.append(fit(learner(deepcopy(cb), model=model, **kwargs), 3))
    return learns


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", CBS)
def test_a_model_that_edits_its_input_learns_what_one_that_copies_it_learns(make, name):
    a, b = pair(make, CBS[name], metrics=[RiskMetric("cvar:.2")])
    assert equal(state(a), state(b)) and a.recorder.values[-1][:3] == b.recorder.values[-1][:3]
    if isinstance(CBS[name], MetaRisk): assert torch.equal(a.meta_risk.weights, b.meta_risk.weights) and not a.meta_risk.uniform and a.meta_risk.skipped == 0


@pytest.mark.parametrize("make", MODELS)
def test_meta_lr_0_is_plain_training_of_a_model_that_edits_its_input(make):
    set_seed(0)
    model = make()
    plain, other = [fit(learner(cb, model=deepcopy(model))) for cb in ([], [MetaRisk.first_edition(every=1, meta_lr=0., n_inner=2)])]
    assert equal(state(plain), state(other)) and plain.recorder.losses == other.recorder.losses


class Seen(nn.Module):
    "Writes down what it is given, where meta-steps do not take it back"
    rows = []
    def __init__(self): super().__init__(); self.body = nn.Linear(6, 3); self.rows.clear()
    def forward(self, x):
        self.rows.append((self.training, type(x), x.dtype, x.stride(), x.detach().as_subclass(torch.Tensor).clone()))
        return self.body(x.as_subclass(torch.Tensor).float())


class Turn(Callback):
    "A batch of another class, precision and layout, after fastai has made it plain tensors"
    order = 20
    def before_batch(self): self.learn.xb = tuple(x.double().t().contiguous().t().as_subclass(TensorImage) for x in self.xb)


@pytest.mark.parametrize("kw", [{}, {"n_inner": 2}, {"method": "finite_difference"}], ids=str)
def test_inputs_of_a_meta_step_are_those_of_the_models_own_pass(kw):
    learn = learner([MetaRisk.first_edition(every=1, **kw), Turn()], model=(model := Seen()), n=20, drop_last=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
    own, inner, *rest = [o for o in model.rows if o[0]]
    assert own[1:4] == inner[1:4] == (TensorImage, torch.float64, (1, 20)) and torch.equal(own[4], inner[4]) and {o[1] for o in rest} == {TensorImage}


@pytest.mark.parametrize("kw", [{"meta_bs": 20}, {}, {"n_inner": 3}, {"fresh": True}], ids=str)
@pytest.mark.parametrize("cbs,want", [([], torch.Tensor), ([Turn()], TensorImage)], ids=["as fastai casts them", "as a callback casts them"])
def test_all_inputs_have_the_class_that_the_training_loop_gives_them(kw, cbs, want):
    (x, y), (u, v) = tensors(60, 0), tensors(60, 1)
    dls = DataLoaders(*[TfmdDL([(TensorImage(i), j) for i, j in zip(*s)], bs=20, num_workers=0) for s in ((x, y), (u, v))])
    fit(Learner(dls, (model := Seen()), CrossEntropyLossFlat(), opt_func=SGD, cbs=[MetaRisk.first_edition(every=1, **kw), *deepcopy(cbs)]), 1)
    assert {o[1] for o in model.rows if o[0]} == {want} and len(model.rows) > 9


def test_no_hook_stays_on_the_model():
    learn = fit(learner(MetaRisk.first_edition(every=1)))
    assert not learn.model._forward_pre_hooks
    class Stop(Callback):
        order = 1
        def before_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learn.add_cb(Stop()))
    learn.remove_cb(Stop)
    assert not fit(learn).model._forward_pre_hooks


# --- Losses that edit what they are given

class EditsPred(nn.Module):
    clean, reduction = False, "mean"
    def forward(self, pred, y):
        if self.clean: pred, y = pred.clone(), y.clone()
        return reduced(self.losses(pred, y), self.reduction)
    def losses(self, pred, y): return (pred.sigmoid_() - F.one_hot(y, 3)).square().sum(1)


class EditsTarget(EditsPred):
    "Labels that count from one"
    def losses(self, pred, y): return ce(pred, y.sub_(1) + 1)


class EditsBoth(EditsPred):
    def losses(self, pred, y): return ce(pred.mul_(.5).clamp_(-3, 3), y.add_(1).remainder_(3))


LOSSES = [EditsPred, EditsTarget, EditsBoth]


def losses(make):
    out = []
    for clean in False, True:
        loss = make()
        loss.clean = clean
        out.append(loss)
    return out


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("name", CBS)
@pytest.mark.parametrize("company", [[], [GradientAccumulation(40)], [Half()]], ids=["alone", "accumulated", "bfloat16"])
def test_a_loss_that_edits_what_it_is_given_learns_what_one_that_copies_it_learns(make, name, company):
    a, b = [fit(learner([deepcopy(CBS[name]), *deepcopy(company)], loss=loss), 3) for loss in losses(make)]
    assert equal(state(a), state(b)) and a.recorder.losses == b.recorder.losses
    if isinstance(CBS[name], MetaRisk): assert torch.equal(a.meta_risk.weights, b.meta_risk.weights) and not a.meta_risk.uniform and a.meta_risk.skipped == 0


@pytest.mark.parametrize("make", LOSSES)
def test_meta_lr_0_is_plain_training_with_a_loss_that_edits(make):
    plain, other = [fit(learner(cb, loss=make())) for cb in ([], [MetaRisk.first_edition(every=1, meta_lr=0., meta_loss="own")])]
    assert equal(state(plain), state(other)) and plain.recorder.losses == other.recorder.losses


@pytest.mark.parametrize("make", LOSSES)
def test_a_risk_metric_refuses_a_loss_that_edits_and_takes_one_that_does_not(make):
    bad, good = losses(make)
    with pytest.raises(ValueError, match="edits its predictions or targets in place: let it work on copies"): fit(learner(loss=bad, metrics=[RiskMetric("cvar:.2")]), 1)
    learn = learner(loss=good, metrics=[RiskMetric("expected")])
    loss, risk = learn.validate()
    assert risk == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("cb", ["mean of the batch", "every step"])
def test_one_of_several_outputs_may_be_edited(cb):
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.body = net()
        def forward(self, x): return self.body(x), x
    class Choose(Callback):
        def after_pred(self): self.learn.pred = self.pred[0]
    out = []
    for loss in losses(EditsPred):
        set_seed(0)
        out.append(fit(learner([deepcopy(CBS[cb]), Choose()], model=Two(), loss=loss)))
    assert equal(*map(state, out))


def test_the_cached_validation_set_does_not_decay():
    values = []
    def spy(pred, y): values.append(y.clone()); return ce(pred, y.sub_(1) + 1)
    fit(learner(MetaRisk.first_edition(every=1, meta_loss=spy)), 2)
    assert len(values) == 20 and all(torch.equal(o, values[0]) for o in values)


def test_mixed_targets_of_a_model_that_edits_its_input():
    out = []
    for clean in False, True:
        set_seed(0)
        model = Normalising()
        model.clean = clean
        out.append(fit(learner([MetaRisk.first_edition(every=1), MixUp()], model=model)))
    assert equal(*map(state, out)) and torch.equal(*[o.meta_risk.weights for o in out])


# --- Losses that are not finite, at places without a weight

def spoil(how):
    "The first sample of each batch has a loss that is not finite; its derivative is not finite either"
    first = lambda y: torch.arange(len(y)) == 0
    if how == "nan": return lambda pred, y: ce(pred, y) * torch.where(first(y), float("nan"), 1.)
    if how == "inf": return lambda pred, y: ce(pred, y) * torch.where(first(y), float("inf"), 1.)
    if how == "log": return lambda pred, y: ce(pred, y) + (torch.where(first(y), -1., 1.) * pred[:, 0].square().add(1)).log()  # log of a negative number
    return lambda pred, y: ce(pred, y) - torch.where(first(y), pred[:, 0] * 0, 1.).log()  # minus the log of zero


@pytest.mark.parametrize("how", ["nan", "inf", "log", "zero"])
def test_batch_risk_counts_and_passes_over_what_is_not_finite_and_has_no_weight(how):
    learn = learner(BatchRisk("icvar:.5", loss_func=spoil(how)))
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit(2, .1)
    assert all(v.isfinite().all() for v in state(learn)) and learn.batch_risk.ignored == 20
    assert [str(o.message) for o in said if "not finite" in str(o.message)] == ["batch_risk: the losses of 10 samples were not finite; having no weight, they add nothing (see .ignored)"]


@pytest.mark.parametrize("how", ["nan", "inf", "log", "zero"])
def test_what_is_passed_over_changes_nothing_for_the_others(how):
    "The gradient is that of a batch in which the bad sample has some loss that is as large but finite"
    model = nn.Linear(6, 3)
    large = lambda pred, y: ce(pred, y) + torch.where(torch.arange(len(y)) == 0, 1e3, 0.)
    if how in ("log", "zero"):
        extra = (lambda p: p[:, 0].square().add(1).log()) if how == "log" else (lambda p: 0.)
        large = lambda pred, y: ce(pred, y) + torch.where(torch.arange(len(y)) == 0, 1e3, extra(pred))
    a, b = [fit(learner(BatchRisk("icvar:.5", loss_func=f), model=deepcopy(model)), 1) for f in (spoil(how), large)]
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(state(a), state(b)))


def test_a_batch_without_such_samples_counts_none():
    learn = fit(learner(BatchRisk("icvar:.5")))
    assert learn.batch_risk.ignored == 0
    learn = fit(learner(BatchRisk("cvar:.5", loss_func=lambda p, y: ce(p, y) - torch.where(torch.arange(len(y)) < 3, 9., 0.))))
    assert learn.batch_risk.ignored == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_curriculum_passes_over_what_is_not_finite_and_has_no_weight(bad):
    c = Curriculum(4, knots=None)
    with torch.no_grad(): c.reducer.logits.copy_(torch.tensor([-300., 0, 0, 0]))
    c.to(torch.device("cpu"))
    losses = torch.tensor([1., bad, 2., 3.], requires_grad=True)
    value = c.weigh(losses)
    value.backward()
    assert value.item() == pytest.approx(2) and torch.allclose(losses.grad, torch.tensor([1/3, 0, 1/3, 1/3]))


@pytest.mark.parametrize("how", ["nan", "inf", "log"])
def test_meta_risk_counts_them_too(how):
    meta = MetaRisk.first_edition(every=1000, knots=None, loss_func=spoil(how), meta_loss="own", floor=0)
    c = meta.new_curriculum(20)
    with torch.no_grad(): c.reducer.logits[0] = -300.
    meta.curriculum = c.to(torch.device("cpu"))
    meta.n_step = 1
    learn = fit(learner(meta, loss=lambda p, y: ce(p, y).mean()))
    assert meta.ignored == 20 and all(v.isfinite().all() for v in state(learn))
