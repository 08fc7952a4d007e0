"Losses with weights, buffers or a memory: trained or updated once per training batch, by the training pass alone"
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from common import ce, equal, fit, learner, net, state
from fastai.basics import Callback, CrossEntropyLossFlat, params
from torch import nn

from metarisk_nb.callback import BatchRisk, MetaRisk, RiskMetric, per_sample


def reduced(l, reduction): return l if reduction == "none" else getattr(l, reduction)()


class ArcFace(nn.Module):
    "Class centres on the sphere, with a margin (Deng et al., 2019)"
    def __init__(self, reduction="mean"): super().__init__(); self.centres, self.reduction = nn.Parameter(torch.eye(3)), reduction
    def forward(self, emb, y):
        cos = F.normalize(emb) @ F.normalize(self.centres).T
        return F.cross_entropy(4 * (cos - .1 * F.one_hot(y, 3)), y, reduction=self.reduction)


class Centre(ArcFace):
    "Cross entropy and the distance to a centre per class (Wen et al., 2016)"
    def forward(self, pred, y): return reduced(ce(pred, y) + .1 * (pred - self.centres[y]).square().sum(1), self.reduction)


class Temperature(ArcFace):
    "A learned temperature"
    def __init__(self): super().__init__(); self.centres = nn.Parameter(torch.tensor([.5]))
    def forward(self, pred, y): return F.cross_entropy(self.centres.exp() * pred, y, reduction=self.reduction)


TRAINED = [ArcFace, Centre, Temperature]


def both(loss): return lambda m: [params(m), list(loss.parameters())]


def trained(cbs, make, own=True, **kwargs):
    loss = make()
    learn = learner(cbs, loss=loss, **({"splitter": both(loss)} if own else {}), **kwargs)
    return fit(learn)


@pytest.mark.parametrize("make", TRAINED)
def test_batch_risk_expected_moves_the_weights_of_a_loss_as_plain_training_does(make):
    plain, other = trained([], make), trained(BatchRisk("expected"), make)
    moved = plain.loss_func.centres - make().centres
    assert moved.abs().max() > 1e-3 and torch.allclose(plain.loss_func.centres, other.loss_func.centres, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(state(plain), state(other)))


@pytest.mark.parametrize("make", TRAINED)
@pytest.mark.parametrize("kw", [dict(every=1), dict(every=1, n_inner=2, fresh=True), dict(every=2, method="finite_difference")], ids=str)
def test_meta_lr_0_is_plain_training_to_the_last_bit(make, kw):
    plain, other = trained([], make), trained(MetaRisk.first_edition(meta_lr=0., **kw), make)
    assert equal(state(plain), state(other)) and equal(plain.loss_func.parameters(), other.loss_func.parameters())
    assert plain.recorder.losses == other.recorder.losses


@pytest.mark.parametrize("make", TRAINED)
def test_meta_steps_move_the_weights_of_a_loss_along(make):
    "The hypergradient is that of the network and the loss as one model"
    learn = learner(MetaRisk.first_edition(every=1, warmup=0, floor=0, meta_loss="own"), model=nn.Linear(6, 3), loss=(loss := make()), splitter=both(loss), wd=0.)
    grads, batch = [], []
    class Look(Callback):
        order = -6
        def after_loss(self):
            if self.training and not batch: batch[:] = [deepcopy(self.model), deepcopy(loss), self.xb[0].clone(), self.yb[0].clone(), dict(self.learn.opt.hypers[0])["lr"], self.learn.meta_risk]
        def after_batch(self):
            if self.training and not grads: grads.append(self.learn.meta_risk.reducer.logits.grad.clone())
    fit(learn.add_cb(Look()), 1)
    model, loss, x, y, lr, m = batch
    from metarisk_nb.reducer import SortedReducer
    g, ps = SortedReducer(20, 12), [*model.parameters(), *loss.parameters()]
    f = per_sample(loss)
    inner = torch.autograd.grad(g(f(model(x), y)), ps, create_graph=True)
    new = [p - lr * d for p, d in zip(ps, inner)]
    xv, yv = learn.dls.valid.dataset.x, learn.dls.valid.dataset.y
    named = dict(zip(["weight", "bias"], new)), {"centres": new[2]}
    loss.reduction = "none"
    value = torch.func.functional_call(loss, named[1], (torch.func.functional_call(model, named[0], (xv,)), yv)).mean()
    want = torch.autograd.grad(value, g.logits)[0]
    assert torch.allclose(grads[0], want, rtol=1e-3, atol=1e-7) and want.abs().max() > 1e-6
    assert m.skipped == 0 and not m.uniform


def test_weights_of_a_loss_that_the_optimizer_does_not_know_stay():
    learn = trained(MetaRisk.first_edition(every=1), Centre, own=False)
    assert torch.equal(learn.loss_func.centres, torch.eye(3)) and learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform


def test_mae_is_not_taken_of_what_the_loss_makes_logits_of():
    "Embeddings of two numbers, three classes: there is no probability of class 2 among them"
    class Two(ArcFace):
        def __init__(self): super().__init__(); self.centres = nn.Parameter(torch.randn(3, 2))
    learn = trained(MetaRisk.first_edition(every=1), Two, model=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    assert learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform


# --- A memory

class Memory(nn.Module):
    "What a loss remembers, and how often it was asked"
    def __init__(self): super().__init__(); self.reduction, self.calls = "mean", 0
    def forward(self, pred, y):
        self.calls += 1
        return reduced(self.losses(pred, y), self.reduction)


class ELRInPlace(Memory):
    "Targets by class that follow the predictions (after Liu et al., 2020), edited in place"
    def __init__(self): super().__init__(); self.t = torch.full((3, 3), 1/3)
    def losses(self, pred, y):
        p = pred.softmax(1)
        for i in range(len(y)): self.t[y[i]] = .9 * self.t[y[i]] + .1 * p[i].detach()
        return ce(pred, y) + (1 - (self.t[y].clone() * p).sum(1)).log()


class ELRRebound(ELRInPlace):
    "The same, with a new tensor each time"
    def losses(self, pred, y):
        p = pred.softmax(1)
        self.t = self.t + .1 * (F.one_hot(y, 3).float().T @ (p.detach() - self.t[y])) / len(y)
        return ce(pred, y) + (1 - (self.t[y] * p).sum(1)).log()


class Average(Memory):
    "A moving average in a buffer, edited in place"
    def __init__(self): super().__init__(); self.register_buffer("t", torch.zeros(()))
    def losses(self, pred, y):
        l = ce(pred, y)
        self.t.mul_(.9).add_(.1 * l.detach().mean())
        return l / (1 + self.t.clone())


class Listed(Memory):
    "The last means, in a list"
    def __init__(self): super().__init__(); self.t, self.last = torch.zeros(1), []
    def losses(self, pred, y):
        l = ce(pred, y)
        self.last.append(l.detach().mean())
        self.t = torch.stack(self.last[-5:])
        return l * (1 + .1 * self.t.mean())


class Plain:
    "A loss that is no module, with a memory"
    def __init__(self): self.reduction, self.calls, self.t = "mean", 0, torch.zeros(3)
    def __call__(self, pred, y):
        self.calls += 1
        self.t.mul_(.9).add_(.1 * pred.detach().mean(0))
        return F.cross_entropy(pred - self.t.clone(), y, reduction=self.reduction)


MEMORIES = [ELRInPlace, ELRRebound, Average, Listed, Plain]


@pytest.mark.parametrize("make", MEMORIES)
@pytest.mark.parametrize("cb", [BatchRisk("expected"), MetaRisk.first_edition(every=1, meta_lr=0.), MetaRisk.first_edition(every=1, meta_lr=0., n_inner=2, meta_loss="own", meta_bs=30),
                                MetaRisk.first_edition(every=3, meta_lr=0., meta_loss="own", method="finite_difference")], ids=str)
def test_a_memory_is_updated_by_the_training_pass_alone(make, cb):
    plain, other = fit(learner(loss=make())), fit(learner(deepcopy(cb), loss=make(), metrics=[RiskMetric("cvar:.2")]))
    exact = isinstance(cb, MetaRisk)
    same = torch.equal if exact else lambda a, b: torch.allclose(a, b, atol=1e-4)
    assert same(plain.loss_func.t, other.loss_func.t) and plain.loss_func.calls == other.loss_func.calls == 2 * (10 + 3)
    assert all(map(same, state(plain), state(other))) and other.loss_func.reduction == "mean"


@pytest.mark.parametrize("make", MEMORIES)
def test_the_losses_of_a_batch_are_those_that_the_learners_loss_has_averaged(make):
    seen = []
    class Look(Callback):
        order = 100
        def after_loss(self):
            if self.training: seen.append((self.loss.item(), self.loss_grad.item()))
    fit(learner([BatchRisk("expected"), Look()], loss=make()))
    assert len(seen) == 20 and all(a == pytest.approx(b, rel=1e-5) for a, b in seen)


@pytest.mark.parametrize("make", MEMORIES)
def test_meta_steps_learn_on_a_loss_with_a_memory(make):
    learn = fit(learner(MetaRisk.first_edition(every=1, n_inner=2, meta_loss="own"), loss=make()))
    assert learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform and learn.loss_func.calls == 2 * (10 + 3)


def test_exact_and_finite_differences_agree_on_a_loss_with_a_memory():
    "Each pass of a hypergradient starts from the same memory"
    class Counting(Average):
        def losses(self, pred, y): self.t.add_(1); return ce(pred, y) * (1 + self.t.clone() / 10)
    grads, model = [], nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    for method in "exact", "finite_difference":
        learn = learner(MetaRisk.first_edition(every=1, meta_loss="own", method=method, meta_lr=0.), model=deepcopy(model), loss=Counting())
        fit(learn, 1)
        grads.append(learn.meta_risk.reducer.logits.grad)
    assert F.cosine_similarity(*grads, 0) > .999 and torch.allclose(*grads, rtol=.05, atol=1e-6)


def test_a_method_as_loss_and_a_loss_func_of_the_callback_have_their_memory_respected():
    def run(cbs):
        o = Plain()
        def own(pred, y, reduction="mean"): return F.cross_entropy(pred, y, reduction=reduction)
        def mine(pred, y): o.reduction = "none"; return o(pred, y)
        return fit(learner(cbs(mine), loss=own)), o
    (learn, o), _ = run(lambda f: BatchRisk("expected", loss_func=f)), run(lambda f: MetaRisk.first_edition(every=1, loss_func=f, meta_lr=0.))
    assert o.calls == 20 and learn.recorder.losses  # the only one to update it
    class Method(Plain):
        def loss(self, pred, y, reduction="mean"): self.reduction = reduction; return self(pred, y)
    a, b = Method(), Method()
    plain, other = fit(learner(loss=a.loss)), fit(learner(MetaRisk.first_edition(every=1, meta_lr=0., meta_loss="own"), loss=b.loss))
    assert torch.equal(a.t, b.t) and a.calls == b.calls and equal(state(plain), state(other))


def test_a_class_weight_is_neither_changed_nor_copied():
    loss = CrossEntropyLossFlat(weight=torch.tensor([.2, 1., 3.]))
    w = loss.func.weight
    fit(learner([MetaRisk.first_edition(every=1)], loss=loss, metrics=[RiskMetric("cvar:.2")]))
    assert loss.func.weight is w and torch.equal(w, torch.tensor([.2, 1., 3.])) and loss.reduction == "mean"
    w.mul_(2)  # a schedule of weights is seen
    assert torch.equal(per_sample(loss)(torch.zeros(3, 3), torch.arange(3)), w * torch.log(torch.tensor(3.)))


def test_an_error_in_the_loss_leaves_its_reduction():
    def bad(*_): raise RuntimeError("no")
    loss = nn.CrossEntropyLoss()
    loss.forward = bad
    with pytest.raises(RuntimeError, match="no"): per_sample(loss)(net(), 1)
    assert loss.reduction == "mean"
