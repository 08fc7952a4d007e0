"Rivals against their published rules, worked out here in another way"
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.torch_core import no_random

from metarisk_nb.data import RandomCropFlip
from metarisk_nb.lab.methods import recipes
from metarisk_nb.lab.robust import *
from metarisk_nb.lab.robust import kept
from metarisk_nb.lab.run import Run, constants
from metarisk_nb.lab.scales import settings
from metarisk_nb.lab.train import learner_of


def fit(run, *cbs):
    "A Learner that was trained as a run says, with callbacks beside it"
    with no_random(run.seed):
        learn = learner_of(run)[0]
        for cb in cbs: learn.add_cb(cb)
        with learn.no_bar(), learn.no_logging(): recipes[run.method](learn, run)
    return learn


def run(method, steps=6, **kwargs): return Run(method=method, noise=.4, steps=steps, **kwargs)


class Parameters(Callback):
    "A copy of all parameters and the batch before each step"
    order = 90
    def __init__(self): self.rows = []
    def before_batch(self):
        self.rows.append(dict(params=[p.detach().clone() for p in self.model.parameters()], x=self.x.clone(), y=self.y.clone(),
                              lr=self.opt.hypers[-1]["lr"]))


# --- Losses

@pytest.mark.parametrize("t", [1.2, 1.5, 2., 4.])
def test_tempered_probabilities_sum_to_one_and_agree_with_their_definition(t):
    a = 4 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = tempered_softmax(a, t)
    assert torch.allclose(p.sum(1), torch.ones(50).double(), atol=1e-6)
    lows = a.max(1, keepdim=True).values  # the definition, by bisection
    lo, hi = lows, lows + 1e4
    for _ in range(200):
        mid = (lo + hi) / 2
        total = ((1 + (1 - t) * (a - mid)).clamp(min=0) ** (1 / (1 - t))).sum(1, keepdim=True)
        lo, hi = torch.where(total > 1, mid, lo), torch.where(total > 1, hi, mid)
    assert torch.allclose(p, (1 + (1 - t) * (a - lo)) ** (1 / (1 - t)), atol=1e-5)


@pytest.mark.parametrize("shift", [-3., 50.])
def test_the_bi_tempered_loss_ignores_a_constant_in_the_logits(shift):
    a, y = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 5
    assert torch.allclose(bi_tempered_loss(a, y, .5, 1.5), bi_tempered_loss(a + shift, y, .5, 1.5), atol=1e-4)
    assert bi_tempered_loss(100 * a, y, .5, 1.5).max() <= 1 / .5 + 1e-5  # bounded, as cross entropy is not


def test_published_values_along_the_temperatures():
    "Google's test of dynamic temperatures: labels .2, .5, .3"
    a, q = torch.tensor([[-.5, .1, 2.]]), torch.tensor([[.2, .5, .3]])
    for t1, t2, value in ((.9, 1.1, .45677936), (.8, 1.2, .34298314), (.7, 1.3, .26295574)):
        assert bi_tempered_loss(a, q, t1, t2).item() == pytest.approx(value, abs=2e-5)


# --- Every rival has three settings, and they differ

def test_each_rival_has_three_settings_that_a_run_allows():
    assert set(settings) == set(constants)
    for method, metas in settings.items():
        assert len(metas) == 3 and len({Run(method=method, meta=o).key for o in metas}) == 3, method


@pytest.mark.parametrize("method", settings)
def test_each_setting_trains_another_network(method):
    shift = "balance" if method in ("class_weights", "logit_adjustment") else "none"
    steps = 40 if method == "mixture" else 12  # it begins after two passes or more
    ends = [fit(run(method, steps, meta=o, shift=shift)).model.state_dict() for o in (settings[method][0], settings[method][2])]
    assert all(torch.isfinite(v).all() for o in ends for v in o.values())
    assert not all(torch.equal(v, ends[1][k]) for k, v in ends[0].items()), method


# --- Callbacks against their rules

def test_averaged_weights_are_the_published_recursion():
    after = []
    class Look(Callback):
        def after_step(self): after.append({k: v.clone() for k, v in self.model.state_dict().items()})
    learn = fit(run("ema", 9, meta=dict(decay=.8)), Look())
    mean = after[0]
    for o in after[1:]: mean = {k: .8 * v + .2 * o[k] for k, v in mean.items()}
    got = learn.model.state_dict()
    assert all(torch.allclose(got[k].double(), v.double(), atol=1e-5) for k, v in mean.items() if got[k].is_floating_point())
    assert not all(torch.allclose(got[k], after[-1][k]) for k in mean)


def test_each_network_trains_on_what_the_other_one_takes_for_easy():
    rows = []
    class Look(Callback):
        order = 60
        def after_loss(self):
            c = self.learn.co_teaching
            own, twins = (F.cross_entropy(z, self.y, reduction="none").detach() for z in (self.pred, c.twin(self.x)))
            rows.append((self.learn.pct_train, own, twins, self.learn.loss_grad.item(), c.twin_loss.item()))
    fit(run("two_networks", 40, meta=dict(rate=.45)), Look())
    for pct, own, twins, loss, twin_loss in rows:
        n = round(100 * (1 - .45 * min(1, 5 * pct)))
        assert loss == pytest.approx(own[twins.argsort()[:n]].mean().item(), abs=1e-5) and n == kept(100, .45, pct)
        assert twin_loss == pytest.approx(twins[own.argsort()[:n]].mean().item(), abs=1e-5)
    assert not torch.allclose(rows[0][1], rows[0][2])  # two networks from the start


def test_the_twin_takes_the_same_kind_of_step():
    "Rate, momentum and weight decay are the Learner's: with the twin's weights set to the Learner's, both stay equal"
    class Same(Callback):
        order = 60
        def before_fit(self): self.learn.co_teaching.twin.load_state_dict(self.model.state_dict())
    learn = fit(run("two_networks", 30, meta=dict(rate=.3)), Same())
    for a, b in zip(learn.model.parameters(), learn.co_teaching.twin.parameters()): assert torch.allclose(a, b, atol=1e-5)


def loss_at(model, params, x, y):
    return F.cross_entropy(torch.func.functional_call(model, dict(zip(dict(model.named_parameters()), params)), (x,)), y, reduction="none")


def test_weights_of_samples_follow_their_agreement_with_the_validation_batch():
    "Ren et al.: max(0, <gradient of the sample, gradient of the validation loss>), normalised"
    seen = Parameters()
    class Look(Callback):
        order = 95
        def after_loss(self): self.weights = self.learn.learn_to_reweight.weights
    look = Look()
    learn = fit(run("l2rw", 1, meta=dict(meta_bs=500)), seen, look)  # all of the validation set
    learn.model.train()
    o, s = seen.rows[0], learn.dls.valid_ds
    params = [p.requires_grad_() for p in o["params"]]
    def flat(l): return torch.cat([g.flatten() for g in torch.autograd.grad(l, params, retain_graph=True)])
    aim = flat(loss_at(learn.model, params, s.x, s.y).mean())
    agree = torch.stack([flat(l) @ aim for l in loss_at(learn.model, params, o["x"], o["y"])]).clamp(min=0)
    assert torch.allclose(look.weights, agree / agree.sum(), atol=1e-5) and (look.weights == 0).any()


def test_the_weight_network_follows_the_slope_of_the_validation_loss_after_a_step():
    "Shu et al., by finite differences in the biases of its last two layers"
    class Look(Callback):
        order = 95
        def before_batch(self): self.net = deepcopy(self.learn.meta_weight_net.net).double()
        def after_loss(self): self.grads = [p.grad.clone() for p in self.learn.meta_weight_net.net.parameters()]
    look, seen = Look(), Parameters()
    learn = fit(run("mwnet", 1, meta=dict(meta_bs=500)), seen, look)
    o, s, model = seen.rows[0], learn.dls.valid_ds, learn.model.double().train()
    params, x, y = [p.double().requires_grad_() for p in o["params"]], o["x"].double(), o["y"]
    def after(net):
        l = loss_at(model, params, x, y)
        w = net(l.detach()[:, None])[:, 0].detach()
        gs = torch.autograd.grad((w * l).sum() / w.sum(), params)
        return loss_at(model, [p - o["lr"] * g for p, g in zip(params, gs)], s.x.double(), s.y).mean().item()
    def slope(name, i, eps=1e-5):
        ends = []
        for sign in (1, -1):
            net = deepcopy(look.net)
            with torch.no_grad(): net.get_parameter(name).view(-1)[i] += sign * eps
            ends.append(after(net))
        return (ends[0] - ends[1]) / (2 * eps)
    names = [n for n, _ in look.net.named_parameters()]
    for name in ("0.weight", "2.bias", "2.weight"):
        g = look.grads[names.index(name)].flatten()
        i = g.abs().argmax().item()
        assert g[i].item() == pytest.approx(slope(name, i), rel=.05, abs=1e-8), name


def test_a_mixture_finds_the_share_of_wrong_labels_and_trims_it():
    look = []
    class Look(Callback):
        order = 60
        def after_loss(self):
            l = F.cross_entropy(self.pred, self.y, reduction="none").detach().sort().values
            share = self.learn.mixture_trimming.share
            look.append((share, self.learn.loss_grad.item(), l[:max(1, round(100 * (1 - share)))].mean().item()))
    fit(run("mixture", 200), Look())
    shares = [o[0] for o in look]
    assert shares[:50] == [0] * 50 and len(set(shares[50:])) == 15 and all(a == pytest.approx(b, abs=1e-5) for _, a, b in look)
    assert all(.1 < o < .9 for o in shares[50:])


@pytest.mark.parametrize("losses", [torch.ones(50), torch.zeros(2), torch.cat([torch.zeros(99), torch.full((1,), 1e4)])], ids=["equal", "two", "outlier"])
def test_a_mixture_of_odd_losses_is_still_a_share(losses): assert 0 <= high_share(losses) <= .9


def test_mixup_mixes_labels_as_whole_numbers():
    "The loss lies between those of the two labels, and the images are blends"
    learn = fit(run("mixup", 40))
    assert learn.loss_func.y_int and torch.isfinite(learn.loss_grad)


def test_joined_takes_meta_validation_as_it_is():
    learn = fit(run("joined", 3))
    a, b = (o.dataset for o in learner_of(run("joined", 3))[0].dls.loaders[:2])
    assert torch.equal(learn.dls.train_ds.y, torch.cat([a.y, b.y])) and (b.y != b.clean).any()


def test_class_weights_come_from_the_training_labels():
    learn = fit(run("class_weights", 2, shift="tail20", meta=dict(power=1.)))
    n = learn.dls.train_ds.y.bincount(minlength=10)
    w = learn.loss_func.weight
    assert torch.allclose(w * n, (w * n).mean().expand(10), rtol=1e-4) and n.max() > 3 * n.min()


def test_two_networks_see_the_same_crops():
    seen = []
    class Look(Callback):
        order = 95
        def after_loss(self): seen.append(self.x.clone())
    learn = fit(Run(method="two_networks", data="fashion_mini", steps=2, augment=True), Look())
    assert len(seen) == 2 and isinstance(learn.dls.train.after_batch.fs[0], RandomCropFlip) and np.isfinite(learn.co_teaching.twin_loss.item())
