"The rooms behind the callbacks: a curriculum in a plain loop, settings, the random stream, validation batches of every size"
import inspect
import random
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from common import ce, fit, learner, tensors
from fastai.basics import OptimWrapper, set_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metarisk_nb.batches import Drawn, OwnStream, Shuffled, Streamed, Whole, rows, validation_batches
from metarisk_nb.callback import MetaRisk
from metarisk_nb.curriculum import Curriculum, target_share
from metarisk_nb.hypergrad import hypergradient
from metarisk_nb.losses import gce_loss, mae_loss
from metarisk_nb.risk import as_risk

# --- A plain loop

@pytest.mark.parametrize("risk,kw", [("expected", {}), ("expected", dict(knots=None, floor=0)), ("cvar:.3", dict(relax=1, warmup=1)), ("icvar:.5", dict(meta_lr=.3, warmup=0))])
def test_a_plain_loop_with_a_curriculum_learns_what_the_callback_learns(risk, kw):
    model, meta = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), MetaRisk.first_edition(risk, every=2, **kw)
    learn = learner([meta], model=deepcopy(model), shuffle=False, wd=0., opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    with learn.no_bar(), learn.no_logging(): learn.fit(3, .2)

    risk = as_risk(risk)
    c = Curriculum(20, meta_lr=meta.meta_lr, share=target_share(risk), **{k: v for k, v in kw.items() if k != "meta_lr"})
    opt, (x, y), valid = torch.optim.SGD(model.parameters(), .2), tensors(200, 0), tensors(60, 1)
    for step, (xb, yb) in enumerate(zip(3 * x.split(20), 3 * y.split(20))):
        losses = ce(model(xb), yb)
        c.seen(len(xb), of=len(x))
        if step % 2 == 0 and c.willing:
            c.update(*hypergradient(model, c.reducer, risk, ce, [(xb, yb)], valid, .2, meta_loss=mae_loss if risk == as_risk("expected") else None))
        c.record(step)
        opt.zero_grad()
        c.weigh(losses).backward()
        opt.step()
    assert torch.allclose(c.weights, meta.weights, atol=1e-6) and not c.uniform and (c.weights - 1/20).abs().max() > 1e-3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), learn.model.parameters()))
    assert c.history.steps == meta.history.steps and torch.allclose(c.history.weights, meta.history.weights, atol=1e-6) and c.passes == pytest.approx(3)


@pytest.mark.parametrize("n,m", [(20, 20), (20, 7), (5, 12), (8, 1)])
def test_weighing_is_the_sorted_sum_for_any_number_of_losses_and_any_order(n, m):
    c = Curriculum(n, knots=None)
    c.update(0., torch.randn(n))
    losses = torch.randn(m, requires_grad=True)
    w = c.reducer.weights(m).detach()
    assert torch.allclose(c.weigh(losses), w @ losses.sort(descending=True).values) and torch.allclose(c.weigh(losses, scale=3.), 3 * c.weigh(losses))
    order = torch.randperm(m)
    c.weigh(losses, order).backward()
    assert torch.allclose(losses.grad[order], w, atol=1e-6) and torch.equal(c.order(losses), losses.argsort(descending=True, stable=True))


def test_ties_keep_their_order(): assert Curriculum(6).order(torch.tensor([1., 2, 1, 2, 2, 1])).tolist() == [1, 3, 4, 0, 2, 5]


def test_a_state_that_does_not_fit_changes_nothing_and_one_that_fits_goes_on_the_same():
    torch.manual_seed(0)
    grads = torch.randn(6, 12)
    a, b = Curriculum(30), Curriculum(30)
    for i, g in enumerate(grads[:3]): a.seen(5, of=10); a.update(i, g); a.record(i)
    before = a.state_dict()
    for bad in ({}, {**before, "optimizer": {}}, {**before, "logits": torch.zeros(5)}, {**before, "n": 7, "knots": None, "logits": torch.zeros(7)}, {**before, "history": 3}):
        with pytest.raises((ValueError, KeyError, TypeError)): a.load_state_dict(bad)
        assert torch.equal(a.weights, before["history"]["weights"][-1]) and a.passes == 1.5 and len(a.history) == 3
    b.load_state_dict(before)  # and shares nothing with the first
    for o in a, b:
        for i, g in enumerate(grads[3:]): o.seen(5, of=10); o.update(i, g); o.record(3 + i)
    assert torch.equal(a.weights, b.weights) and str(a.optimizer.state_dict()) == str(b.optimizer.state_dict()) and torch.equal(a.history.weights, b.history.weights) and a.passes == b.passes


def test_a_curriculum_without_a_record_can_be_saved():
    c = Curriculum(5)
    c.load_state_dict(Curriculum(5).state_dict())
    assert len(c.history) == 0 and c.uniform


def test_precision_can_be_chosen():
    c = Curriculum(20).to(torch.float64)
    c.update(0., torch.randn(12, dtype=torch.float64))
    assert c.weights.dtype == torch.float64 and c.optimizer.state[c.reducer.logits]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("floor,share", [(.6, 1.), (.6, .1), (1., .5)])
def test_the_floor_is_that_of_the_effective_sample_size(floor, share):
    def ess(floor):
        c = Curriculum(100, meta_lr=5., floor=floor, share=share, warmup=0)
        c.update(0., torch.tensor([-1.] + 11 * [1.]))  # all weight to the first knot
        return 1 / (100 * c.weights.square().sum())
    assert ess(0) < floor * share <= 1.001 * ess(floor) < 1


# --- Settings

@pytest.mark.parametrize("m", [MetaRisk.first_edition(), MetaRisk.first_edition("cvar:.2", every=3, knots=None, meta_loss=gce_loss), MetaRisk.paper("trimmed", seed=5), MetaRisk.first_edition(meta_dl=[1], loss_func=ce, inner_lr=.1)], ids=str)
def test_settings_are_all_arguments_with_their_defaults(m):
    names = [o for o in inspect.signature(MetaRisk).parameters if o not in ("risk", "meta_dl", "loss_func")]
    assert list(m.settings) == names and m.settings == {o: getattr(m, o) for o in names} and None not in (m.settings["every"], m.settings["meta_lr"])


def test_settings_changed_between_fits_are_used():
    learn = fit(learner(MetaRisk.first_edition(every=1, warmup=0)), 1)
    learn.meta_risk.meta_lr, learn.meta_risk.floor = 0., .9
    fit(learn, 1)
    assert learn.meta_risk.opt_phi.param_groups[0]["lr"] == 0. == learn.meta_risk.settings["meta_lr"] and learn.meta_risk.curriculum.floor == .9


# --- The random stream

def draw(): return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_the_own_stream_goes_on_restarts_and_leaves_the_runs_alone():
    set_seed(3)
    want, own = draw(), OwnStream()
    set_seed(3)
    with own(0, 7): a = draw()
    with own(0, 8): b = draw()
    assert draw() == want and a != b
    own.restart()
    with own(0, 7): assert draw() == a
    with own(1, 9): assert draw() == b  # it goes on, wherever it began
    own.restart()
    with own(0, 8): assert draw() != a
    with pytest.raises(ZeroDivisionError), own(0, 0): 1 / 0
    set_seed(3)
    assert draw() == want


def test_blocks_may_stand_in_each_other():
    own = OwnStream()
    with own(0, 0):
        a = draw()
        with own(0, 0): pass
        b = draw()
    own.restart()
    with own(0, 0): assert (draw(), draw()) == (a, b)


# --- Validation batches

def read(n, bs, x=torch.float32, **kwargs):
    data = [(torch.full((3,), i).to(x), i) for i in range(n)]
    return validation_batches(torch.utils.data.DataLoader(data, 4, **kwargs), bs, lambda b: ((b[0],), (b[1],)), OwnStream(), 0)


@pytest.mark.parametrize("n,bs,x,kind", [(10, 20, torch.float32, Whole), (10, 10, torch.float32, Whole), (10, 9, torch.float32, Drawn), (10, 20, torch.long, Whole), (10, 5, torch.long, Shuffled)])
def test_how_a_validation_set_is_read(n, bs, x, kind):
    v = read(n, bs, x)
    seen = [v.draw(k)[1][0].tolist() for k in range(4)]
    assert type(v) is kind and all(len(o) == min(n, bs) for o in seen)
    assert (len({*map(tuple, seen)}) > 1) == (kind is not Whole) and {*sum(seen, [])} <= set(range(n))


def test_a_loader_without_a_batch_size_is_a_stream():
    assert type(validation_batches(torch.utils.data.DataLoader([((1,), (2,))] * 3, None), 5, lambda b: b, OwnStream(), 0)) is Streamed


@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 5))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_draws_take_each_sample_once_per_pass_and_depend_on_their_number_alone(n, bs, seed):
    bs = min(bs, n - 1)
    batch = ((torch.arange(n).float()[:, None],), (torch.arange(n),))
    v, w = Drawn(batch, bs, seed), Drawn(batch, bs, seed)
    k = n // bs
    one = torch.cat([v.draw(i)[1][0] for i in range(k)])
    assert len(one.unique()) == k * bs and torch.equal(w.draw(k - 1)[1][0], one[-bs:]) and torch.equal(v.draw(0)[0][0][:, 0].long(), v.draw(0)[1][0])
    assert rows(batch, slice(0, 1))[1][0].tolist() == [0]
