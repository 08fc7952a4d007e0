"MetaRisk, BatchRisk and RiskMetric in a Learner: Algorithm 1 step for step, what is left alone, bad input"
import gc
import io
import warnings
from copy import deepcopy
from functools import partial
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from common import CPU, Half, autocast_closed, autocast_depth, ce, equal, fit, learner, net, state, tensors
from fastai.basics import SGD, Callback, CrossEntropyLossFlat, Learner, OptimWrapper, accuracy, set_seed
from fastai.callback.core import CancelFitException
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import ParamScheduler  # noqa: F401 (adds fit_one_cycle)
from fastai.callback.training import GradientAccumulation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from metarisk_nb.callback import BatchRisk, History, MetaRisk, RiskMetric, sample_losses
from metarisk_nb.data import TensorDL, TensorSet, fashion_mini, mlp
from metarisk_nb.reducer import SortedReducer
from metarisk_nb.risk import CVaR, as_risk

# --- Algorithm 1

def algorithm_1(model, train, val, risk, steps, lr, eta, inner=5, mom=.9):
    "The paper's Algorithm 1 as a plain loop: theta and phi after every step"
    def losses(ps, batch): return ce(functional_call(model, {**ps, **{n: b.clone() for n, b in model.named_buffers()}}, (batch[0],)), batch[1])
    phi = torch.zeros(len(train[0][1]), dtype=torch.float64, requires_grad=True)
    adam, sgd = torch.optim.Adam([phi], eta), torch.optim.SGD(model.parameters(), lr, momentum=mom)
    fresh, main, path = cycle(train), cycle(train), []
    for _ in range(steps):
        ps = dict(model.named_parameters())                                                     # line 2
        for _ in range(inner):                                                                  # line 3
            l = losses(ps, next(fresh)).sort(descending=True).values                            # lines 4 to 6
            grads = torch.autograd.grad(phi.softmax(0) @ l, list(ps.values()), create_graph=True)
            ps = {n: p - lr * g for (n, p), g in zip(ps.items(), grads)}                        # lines 7 and 8
        phi.grad = torch.autograd.grad(risk(losses(ps, val)), phi)[0]                           # lines 10 to 12
        adam.step()                                                                             # line 13
        xb, yb = next(main)                                                                     # line 14
        l = ce(model(xb), yb).sort(descending=True).values                                      # line 15
        sgd.zero_grad()
        (phi.detach().softmax(0) @ l).backward()
        sgd.step()                                                                              # line 16
        path.append(([p.detach().clone() for p in model.parameters()], phi.detach().clone()))
    return path


class Path(Callback):
    order = 100
    def before_fit(self): self.path = []
    def after_batch(self):
        if self.training: self.path.append(([p.detach().clone() for p in self.model.parameters()], self.learn.meta_risk.reducer.logits.detach().clone()))


@pytest.mark.parametrize("risk", ["expected", "cvar:.3", "trimmed"])
def test_paper_is_algorithm_1_step_for_step(risk):
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double()
    meta = MetaRisk.paper(risk)
    meta.curriculum = meta.new_curriculum(20).to(torch.float64)
    learn = learner([meta, Path()], model=deepcopy(model), shuffle=False, dtype=torch.float64, wd=0., opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9))
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(3, .05)
    x, y = tensors(200, 0, torch.float64)
    want = algorithm_1(model, list(zip(x.split(20), y.split(20))), tensors(60, 1, torch.float64), as_risk(risk), 30, .05, 1e-3)
    assert len(learn.path.path) == len(want) == 30 and want[-1][1].abs().max() > .01
    for (theta, phi), (theta2, phi2) in zip(learn.path.path, want):
        assert (phi - phi2).abs().max() < 1e-6
        assert all((a - b).abs().max() < 1e-6 for a, b in zip(theta, theta2))


def test_defaults_of_paper_and_of_adam():
    m = MetaRisk.paper("cvar")
    assert (m.n_inner, m.every, m.meta_lr, m.meta_bs, m.knots, m.meta_loss, m.fresh, m.floor, m.warmup, m.inner_lr) == (5, 1, 1e-3, 2000, None, "own", True, 0, 0, None)
    learn = fit(learner(MetaRisk.first_edition(every=2)))
    group = learn.meta_risk.opt_phi.param_groups[0]
    assert type(learn.meta_risk.opt_phi) is torch.optim.Adam and (group["betas"], group["eps"], group["weight_decay"]) == ((.9, .999), 1e-8, 0)
    assert group["lr"] == pytest.approx(.038) and [(m.every, pytest.approx(m.meta_lr)) for m in (MetaRisk.first_edition(), MetaRisk.first_edition("cvar"), MetaRisk.first_edition(every=1000))] == [(20, .4), (10, .1 / .1**.5), (1000, .4)]


class Rates(Callback):
    "Adam's rate in each meta-step"
    order, run_valid = 1, False
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.learn.meta_risk.last_step is not None: self.seen.append(self.learn.meta_risk.opt_phi.param_groups[0]["lr"])


@pytest.mark.parametrize("warmup, want", [(2, [min(1., (i + 1) / 20) for i in range(30)]), (.5, [min(1., (i + 1) / 5) for i in range(30)]), (0, [1.] * 30)])
def test_the_rate_grows_over_the_first_passes(warmup, want):
    learn = learner([MetaRisk.first_edition(every=1, meta_lr=.4, warmup=warmup), Rates()])
    learn = fit(learn, 3)
    assert len(learn.dls.train) == 10 and learn.rates.seen == pytest.approx([.4 * w for w in want])


def test_without_a_known_length_epochs_count_as_passes():
    learn = learner([MetaRisk.first_edition(every=1, meta_lr=.4), Rates()])
    class Unsized:
        def __init__(self, data): self.data, self.x = data, data.x
        def __getitem__(self, i): return self.data[i]
    learn.dls.train.dataset = Unsized(learn.dls.train.dataset)
    assert fit(learn, 3).rates.seen == pytest.approx([.4 * min(1., i / 20) for i in range(1, 31)])


def test_passes_are_counted_in_samples_not_in_steps():
    learn = fit(learner([MetaRisk.first_edition(every=1), GradientAccumulation(60)]), 3)
    assert learn.meta_risk.n_step == 10 and learn.meta_risk.passes == pytest.approx(3)
    learn.dls = learner(bs=40).dls
    assert fit(learn, 2).meta_risk.passes == pytest.approx(5)


@pytest.mark.parametrize("relax, want", [(4, [.6 * (1 - i / 40) for i in range(1, 41)] + [0] * 10), (0, [0] * 50)])
def test_the_floor_falls_over_passes_and_goes_on_in_the_next_fit(relax, want):
    learn, seen = learner(MetaRisk.first_edition(every=1, relax=relax)), []
    fit(learn, 1)
    keep = learn.meta_risk.reducer.keep_ess
    learn.meta_risk.reducer.keep_ess = lambda share: (seen.append(share), keep(share))
    fit(learn, 4)
    assert seen == pytest.approx(want[10:], abs=1e-9)


@pytest.mark.parametrize("kw, half", [({}, True), ({"n_inner": 2}, False), ({"method": "finite_difference"}, False)], ids=str)
def test_bfloat16_is_used_where_it_keeps_the_gradient_right(kw, half):
    seen, grads = [], []
    def spy(pred, y): seen.append(pred.dtype); return F.cross_entropy(pred, y, reduction="none")
    for cbs in [], [Half()]:
        learn = learner([MetaRisk.first_edition(meta_loss=spy, every=1, **kw), *cbs])
        learn.meta_risk.meta_step = lambda batch, m=learn.meta_risk, step=learn.meta_risk.meta_step: (step(batch), grads.append(m.reducer.logits.grad.clone()))
        fit(learn, 1)
    assert (torch.bfloat16 in seen) == half
    assert F.cosine_similarity(grads[0], grads[len(grads)//2], 0) > .98


@pytest.mark.parametrize("cb", [MetaRisk, lambda: MetaRisk.first_edition(every=2), lambda: BatchRisk("cvar:.5")])
def test_a_fit_in_bfloat16_is_the_same_after_one_that_broke_off(cb):
    "An error between forward pass and loss leaves fastai's autocast open, which then keeps its copies of the parameters from step to step"
    def boom(pred, y): raise RuntimeError("boom")
    want = state(fit(learner([cb(), Half()]), 3))
    with autocast_closed():
        with pytest.raises(RuntimeError, match="boom"): fit(learner(Half(), loss=boom), 1)
        assert autocast_depth() == 1
        assert equal(want, state(fit(learner([cb(), Half()]), 3)))


# --- What is left alone

def test_loss_function_and_recorded_loss_are_the_learners_own():
    learn = learner(MetaRisk.first_edition(every=1))
    before, seen = learn.loss_func, []
    class Look(Callback):
        order = 100
        def after_loss(self):
            if self.training: seen.append((self.loss.item(), self.loss_func(self.pred, *self.yb).item(), self.loss_grad.item()))
    fit(learn.add_cb(Look()))
    assert learn.loss_func is before and before.reduction == "mean"
    assert all(a == b for a, b, _ in seen) and any(abs(a - c) > 1e-4 for a, _, c in seen)


def test_lr_find_and_predictions_leave_the_weights_alone():
    learn = fit(learner(MetaRisk.first_edition(every=2)))
    meta, before = learn.meta_risk, deepcopy(learn.meta_risk.state_dict())
    with learn.no_bar(): learn.lr_find(show_plot=False); learn.validate(); learn.get_preds()
    after = meta.state_dict()
    assert torch.equal(before["logits"], after["logits"]) and before["n_step"] == after["n_step"] and before["history"]["steps"] == after["history"]["steps"]
    assert str(before["optimizer"]) == str(after["optimizer"])


def test_starts_as_ordinary_training():
    learn = fit(learner(MetaRisk.first_edition(every=1000)), 1)
    assert (learn.meta_risk.history.weights[0] * 20 - 1).abs().max() < .2  # one small step from uniform


def test_same_seed_same_result_another_seed_another():
    a, b, c = [fit(learner(MetaRisk.first_edition(every=1, meta_bs=20, seed=s))).meta_risk.weights for s in (0, 0, 1)]
    assert torch.equal(a, b) and not torch.equal(a, c)


# --- Company

def test_progress_bar_and_bf16_on_the_cpu():
    learn = learner([MetaRisk.first_edition(every=2), ProgressCallback()])
    fit(learn)
    half = fit(learner([MetaRisk.first_edition(every=2), Half()]))
    assert half.meta_risk.weights.dtype == torch.float32 and (half.meta_risk.weights - learn.meta_risk.weights).abs().max() < .02


def test_a_saved_learner_holds_no_validation_data(tmp_path):
    plain, learn = fit(learner(n=5000)), fit(learner(MetaRisk.first_edition(every=5, meta_dl=learner(n_valid=5000).dls.valid), n=5000))
    sizes = []
    for o in (plain, learn):
        buffer = io.BytesIO()
        dls, o.dls = o.dls, None
        torch.save(o, buffer)
        o.dls = dls
        sizes.append(buffer.tell())
    assert sizes[1] - sizes[0] < 60_000, sizes


def test_deepcopy_trains_and_goes_its_own_way():
    learn = fit(learner(MetaRisk.first_edition(every=1)))
    before, twin = learn.meta_risk.weights, deepcopy(learn)
    fit(twin)
    assert torch.equal(learn.meta_risk.weights, before) and not torch.equal(twin.meta_risk.weights, before)
    assert twin.meta_risk.opt_phi.param_groups[0]["params"][0] is twin.meta_risk.reducer.logits


def test_state_survives_a_safe_load(tmp_path):
    learn = fit(learner(MetaRisk.first_edition(every=1)))
    torch.save(learn.meta_risk.state_dict(), tmp_path / "phi.pth")
    new = learner(MetaRisk.first_edition(every=1))
    new.meta_risk.load_state_dict(torch.load(tmp_path / "phi.pth", weights_only=True))
    assert torch.equal(new.meta_risk.weights, learn.meta_risk.weights) and new.meta_risk.history.steps == learn.meta_risk.history.steps
    with pytest.raises(ValueError, match="state has logits of shape"): new.meta_risk.load_state_dict({**learn.meta_risk.state_dict(), "n": 7, "knots": None})


def test_memory_stays_bounded():
    def growth(cbs):
        learn, counts = learner(cbs, n=4000), []
        for _ in range(2):
            fit(learn, 2)
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
        return counts[1] - counts[0]
    meta = MetaRisk.first_edition(every=4)
    assert growth(meta) < growth(None) + 20  # the Recorder keeps its losses
    assert meta.n_step == 800 and len(meta.history) <= 256 and not meta.history.weights.requires_grad


@given(st.integers(2, 40), st.integers(1, 2000))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_history_is_bounded_and_evenly_spaced(size, n):
    h = History(size)
    for i in range(n): h.add(i, torch.ones(1))
    assert len(h) <= size and h.steps == list(range(0, n, h.every)) and len(h) >= min(n, size) // 2


# --- A fit that breaks off, a second fit

class Stop(Callback):
    order = 99
    def __init__(self, what=KeyboardInterrupt): self.what = what
    def after_batch(self):
        if self.training and self.iter == 4: raise self.what


def test_a_fit_after_one_that_broke_off_learns_on_the_data_of_today():
    seen = set()
    def spy(pred, y): seen.update(y.tolist()); return ce(pred, y)
    learn = learner([MetaRisk.first_edition(every=1, meta_loss=spy), stop := Stop()])
    with pytest.raises(KeyboardInterrupt): fit(learn)
    learn.remove_cb(stop)
    seen.clear()
    learn.dls.loaders[1] = TensorDL(TensorSet(tensors(60, 1)[0], torch.ones(60).long()), 20, device=CPU)
    fit(learn)
    assert seen == {1}


def test_validation_within_an_epoch():
    class Within(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.iter == 4:
                dl = self.dl
                self.learn.validate()
                self.learn.dl, self.learn.training = dl, True
                self.model.train()
    learn = fit(learner([MetaRisk.first_edition(every=1), Within()]))
    assert learn.meta_risk.n_step == 20 and not learn.meta_risk.uniform


@pytest.mark.parametrize("how", ["second fit", "loaded"])
def test_the_floor_does_not_undo_what_was_learned(how):
    learn = learner(MetaRisk.first_edition(every=1, meta_lr=.5, warmup=0, relax=4))
    fit(learn, 4)
    meta, w = learn.meta_risk, learn.meta_risk.weights
    assert 1 / (20 * w.square().sum()) < .5  # below the floor that a fit begins with
    if how == "loaded":
        learn = learner(MetaRisk.first_edition(every=1, relax=4))
        learn.meta_risk.load_state_dict(meta.state_dict())
    learn.meta_risk.meta_lr = 0.
    fit(learn, 2)
    assert (learn.meta_risk.weights - w).abs().max() < 1e-6


# --- The other two

def test_batch_risk_is_the_gradient_of_the_batch():
    learn = learner(BatchRisk("cvar:.5"), model=nn.Linear(6, 3), wd=0., opt_func=partial(OptimWrapper, opt=torch.optim.SGD), shuffle=False)
    w = learn.model.weight.detach().clone().requires_grad_(); b = learn.model.bias.detach().clone().requires_grad_()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
    x, y = tensors(200, 0)
    for xb, yb in zip(x.split(20), y.split(20)):
        gw, gb = torch.autograd.grad(CVaR(.5)(ce(xb @ w.T + b, yb)), (w, b))
        w, b = (w - .1*gw).detach().requires_grad_(), (b - .1*gb).detach().requires_grad_()
    assert (learn.model.weight - w).abs().max() < 1e-5


def test_batch_risk_lets_an_infinite_loss_of_zero_weight_pass():
    def loss(pred, y): return torch.where(torch.arange(len(y)) == 0, float("inf"), ce(pred, y))
    learn = learner(BatchRisk("icvar:.5", loss_func=loss))
    fit(learn)
    assert all(v.isfinite().all() for v in state(learn))


def test_replay_uses_the_weights_of_each_step():
    h, used = History(), []
    for i in range(20): h.add(i, torch.eye(20)[i])
    class Look(Callback):
        order = 100
        def after_loss(self):
            if self.training: used.append((self.loss_grad.item(), ce(self.pred, *self.yb).sort(descending=True).values[self.learn.iter + 10*self.epoch].item()))
    fit(learner([BatchRisk(h), Look()]))
    assert len(used) == 20 and all(abs(a - b) < 1e-5 for a, b in used)


def test_risk_metric_is_exact_over_uneven_batches():
    learn = learner(metrics=[RiskMetric("cvar:.1")], n_valid=57)
    value = learn.validate()[1]
    _, _, l = learn.get_preds(with_loss=True)
    assert abs(value - CVaR(.1)(l)) < 1e-5 and learn.metrics[0].name == "CVaR(alpha=0.1)"


# --- Bad input

def test_a_small_validation_set_is_used_whole_and_said_once():
    learn = learner(MetaRisk.first_edition(every=1, meta_bs=500))
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit(2, .1)
        learn.fit(1, .1)
    said = [str(o.message) for o in said if "MetaRisk" in str(o.message)]
    assert said == ["MetaRisk: the validation set has 60 samples, fewer than meta_bs=500: it is used whole"]


@pytest.mark.parametrize("drop", ["missing", "empty"])
def test_no_validation_data(drop):
    learn = learner(MetaRisk.first_edition())
    if drop == "missing": learn.dls.loaders = learn.dls.loaders[:1]
    else: learn.dls.loaders[1] = TensorDL(TensorSet(*tensors(0, 1)), 20, device=CPU)
    with pytest.raises(ValueError, match="no valid loader" if drop == "missing" else "is empty"): fit(learn)


@pytest.mark.parametrize("cbs", [MetaRisk.first_edition(), BatchRisk("cvar")], ids=str)
def test_a_loss_without_per_sample_form(cbs):
    with pytest.raises(TypeError, match="has no `reduction`.*pass loss_func="): fit(learner(cbs, loss=lambda p, y: ce(p, y).mean()))
    with pytest.raises(ValueError, match="must give one loss per sample"): fit(learner(type(cbs)("expected", loss_func=F.cross_entropy)))
    fit(learner(type(cbs)("expected", loss_func=ce), loss=lambda p, y: ce(p, y).mean()))


def test_a_meta_gradient_that_is_not_finite_is_skipped_counted_and_said():
    def bad(pred, y): return ce(pred, y) * float("nan")
    learn = learner(MetaRisk.first_edition(every=2, meta_loss=bad))
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match="not finite"): learn.fit(1, .1)
    assert learn.meta_risk.skipped == 5 and torch.equal(learn.meta_risk.weights, SortedReducer(20).weights().detach())
    assert all(v.isfinite().all() for v in state(learn))


def test_a_model_that_can_be_differentiated_once_trains_with_finite_differences_and_says_so():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return x.clone()
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g): return g.clone()
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.body = nn.Linear(6, 3)
        def forward(self, x): return Once.apply(self.body(x))
    set_seed(0)
    learn = learner(MetaRisk.first_edition(every=1), model=Net())
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit(2, .1)
    assert sum("MetaRisk goes on with method='finite_difference'" in str(o.message) for o in said) == 1
    set_seed(0)
    other = learner(MetaRisk.first_edition(every=1, method="finite_difference"), model=nn.Linear(6, 3))
    with other.no_bar(), other.no_logging(): other.fit(2, .1)
    assert torch.equal(learn.meta_risk.weights, other.meta_risk.weights)


def test_parameters_that_the_optimizer_does_not_know_stay_where_they_are():
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.body, self.scale = net(), nn.Parameter(torch.ones(()))
        def forward(self, x): return self.scale * self.body(x)
    learn = learner(MetaRisk.first_edition(every=1), model=Scaled(), splitter=lambda m: [list(m.body.parameters())])
    fit(learn)
    assert learn.meta_risk.rates()["scale"] == 0 and learn.model.scale == 1 and not learn.meta_risk.uniform


def test_an_empty_batch_an_empty_history_and_several_loaders_are_refused():
    with pytest.raises(ValueError, match="the batch is empty"): sample_losses(ce, torch.zeros(0, 3), torch.zeros(0).long())
    with pytest.raises(ValueError, match="the history is empty"): BatchRisk(History())
    with pytest.raises(ValueError, match="the history is empty"): History().weights
    with pytest.raises(TypeError, match="meta_dl must be one loader, such as dls.valid"): MetaRisk.first_edition(meta_dl=learner().dls)


def test_a_loaded_state_makes_its_meta_step_at_the_first_batch():
    learn = fit(learner(MetaRisk.first_edition(every=1)))
    learn.meta_risk.load_state_dict({**learn.meta_risk.state_dict(), "n_step": learn.meta_risk.last_step})
    before = learn.meta_risk.weights
    learn.add_cb(Stop(CancelFitException))
    fit(learn, 1)
    assert len(learn.meta_risk.history) == 20 + 5 and not torch.equal(learn.meta_risk.weights, before)


@pytest.mark.parametrize("kw,says", [({"inner_lr": 0}, "inner_lr must be"), ({"risk": "cvr"}, "risk 'cvr' is unknown"), ({"n_inner": 0}, "n_inner must be"), ({"every": 1.5}, "every must be"),
                                     ({"knots": 1}, "knots must be"), ({"method": "fast"}, "method must be one of"), ({"meta_loss": "ce"}, "meta_loss must be"),
                                     ({"meta_lr": -1}, "meta_lr must be"), ({"floor": 2}, "floor must be"), ({"warmup": -1}, "warmup must be"), ({"relax": -1}, "relax must be"), ({"meta_bs": 0}, "meta_bs must be")])
def test_bad_arguments(kw, says):
    with pytest.raises((TypeError, ValueError), match=says): MetaRisk.first_edition(**kw)


# --- The demo's path on a GPU

def on_cuda(cb, noise):
    cuda = torch.device("cuda")
    set_seed(0)
    return Learner(fashion_mini(noise=noise, device=cuda), mlp().to(cuda), CrossEntropyLossFlat(), metrics=accuracy, opt_func=SGD, cbs=cb)


@pytest.mark.gpu
def test_on_cuda():
    learn = fit(on_cuda(MetaRisk.first_edition(), .5), 3)
    assert learn.meta_risk.weights.device.type == "cuda" and learn.validate(ds_idx=3)[1] > .7


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["to_fp32", "to_fp16", "to_bf16"])
def test_the_default_on_cuda(how, tmp_path):
    learn = on_cuda(MetaRisk(), .5)
    if how != "to_fp32": getattr(learn, how)()
    fit(learn, 10)
    assert learn.meta_risk.weights.device.type == "cuda" and learn.validate(ds_idx=3)[1] > .8
    report, s = learn.meta_risk.label_report(), learn.dls.train_ds
    wrong = (s.y != s.clean).cpu().numpy()[report["index"]]
    assert wrong[:1000].mean() > .95 and wrong[-1000:].mean() < .05 and abs(report.attrs["wrong_share"] - wrong.mean()) < .05
    learn.path = tmp_path
    learn.save("here")
    fit(learn.load("here"), 1)
    assert learn.meta_risk.label_report().seen.max() == 11


@pytest.mark.gpu
def test_right_labels_leave_training_on_cuda_as_it_was():
    plain, learn = fit(on_cuda(None, 0.), 3), fit(on_cuda(MetaRisk(), 0.), 3)
    assert learn.meta_risk.uniform and equal(state(plain), state(learn))
