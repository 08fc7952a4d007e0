"One callback in two Learners, TorchScript, and parameters that a forward pass edits"
import gc
import warnings
from copy import deepcopy

import pytest
import torch
from common import CPU, equal, fit, learner, net, state
from fastai.basics import SGD, Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from torch import nn

from metarisk_nb.callback import BatchRisk, MetaRisk
from metarisk_nb.data import TensorDL, TensorSet


def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a and b != b


def phi(meta): return deepcopy(meta.state_dict())


def noted(f):
    "What `f` returns, and the warnings of MetaRisk that it gives"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = f()
    return out, [str(o.message) for o in said if "Learner" in str(o.message)]


def alone(bs=20, **kwargs): return fit(learner(MetaRisk.first_edition(every=1, **kwargs), bs=bs))


# --- One MetaRisk in two Learners

joins = {"cbs": lambda meta, **kw: learner(meta, **kw), "add_cb": lambda meta, **kw: learner(**kw).add_cb(meta), "add_cbs": lambda meta, **kw: learner(**kw).add_cbs([meta])}


@pytest.mark.parametrize("how", joins)
@pytest.mark.parametrize("left", ["there", "removed", "forgotten"])
def test_in_a_second_learner_it_begins_anew_and_says_so(how, left):
    meta = MetaRisk.first_edition(every=1)
    first = fit(learner(meta))
    before = phi(meta)
    if left == "removed": first.remove_cb(meta)
    if left == "forgotten": del first; gc.collect()
    want = alone()
    second, said = noted(lambda: joins[how](meta))
    assert len(said) == 1 and "starts from scratch" in said[0] and "load_state_dict" in said[0]
    fit(second)
    assert second.meta_risk is meta and equal(state(second), state(want)) and same(phi(meta), phi(want.meta_risk))
    if left == "there":
        assert first.meta_risk is not meta and first.meta_risk.learn is first and meta not in first.cbs and same(phi(first.meta_risk), before)


@pytest.mark.parametrize("kw", [{}, {"n": 300}, {"bs": 30}], ids=str)
def test_each_fold_learns_on_its_own(kw):
    "The folds of a cross-validation with one callback are as with a new one each"
    meta, folds = MetaRisk.first_edition(every=1), []
    for k in {}, kw:
        fold = learner(meta, **k)
        folds.append((fit(fold), phi(fold.meta_risk)))
    for (fold, was), k in zip(folds, ({}, kw)):
        want = fit(learner(MetaRisk.first_edition(every=1), **k))
        assert equal(state(fold), state(want)) and same(was, phi(want.meta_risk)) and same(was, phi(fold.meta_risk))


def test_both_learners_train_on_their_own_when_neither_has_trained():
    meta, want = MetaRisk.first_edition(every=1), alone()
    first = learner(meta)
    second, said = noted(lambda: learner(meta))
    assert len(said) == 1
    for o in second, first:
        set_seed(0)
        fit(o)
    assert first.meta_risk is not second.meta_risk and not first.meta_risk.uniform
    assert first.meta_risk.n_step == second.meta_risk.n_step == want.meta_risk.n_step == 20
    fit(first, 1)
    assert first.meta_risk.n_step == 30 and second.meta_risk.n_step == 20


def test_fit_with_the_same_callback_on_two_learners():
    meta, learns = MetaRisk.first_edition(every=1), [learner(), learner()]
    learns[0].fit(1, .1, cbs=meta)
    assert meta.n_step == 10
    _, said = noted(lambda: learns[1].fit(1, .1, cbs=meta))
    assert meta.n_step == 10 and len(said) == 1
    _, said = noted(lambda: learns[1].fit(1, .1, cbs=meta))
    assert meta.n_step == 20 and not said


def test_what_is_no_second_learner_is_left_alone():
    "Removed and added again, a deep copy, a loaded state: what was learned stays"
    learn = alone()
    meta, before = learn.meta_risk, phi(learn.meta_risk)
    def again():
        with learn.removed_cbs(meta): pass
        learn.remove_cb(meta)
        learn.add_cb(meta)
    _, said = noted(again)
    assert not said and same(phi(meta), before)
    twin, said = noted(lambda: deepcopy(learn))
    assert not said and twin.meta_risk is not meta and same(phi(twin.meta_risk), before) and twin.meta_risk.learn is twin
    fit(twin, 1)
    assert same(phi(meta), before) and twin.meta_risk.n_step == 30
    new = MetaRisk.first_edition(every=1)
    new.load_state_dict(before)
    other, said = noted(lambda: learner(new))
    assert not said and same(phi(other.meta_risk), before)
    third, said = noted(lambda: learner(meta))
    assert len(said) == 1
    meta.load_state_dict(before)
    _, said = noted(lambda: fit(third, 1))
    assert not said and meta.n_step == 30


def test_a_cell_that_is_run_again():
    "`learn = Learner(..., cbs=cb)` without `cb = MetaRisk.first_edition()`"
    meta, runs = MetaRisk.first_edition(every=1), []
    for _ in range(3):
        learn = learner(meta)
        runs.append(state(fit(learn)))
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2]) and meta.n_step == 20 and meta.learn is learn


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return 2 * x
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g): return 2 * g


class OnceNet(nn.Module):
    def __init__(self): super().__init__(); self.out = nn.Linear(6, 3)
    def forward(self, x): return Once.apply(self.out(x))


def test_a_way_out_that_one_model_needed_is_not_taken_for_the_next():
    meta = MetaRisk.first_edition(every=1, n_inner=2)
    assert fit(learner(meta, model=OnceNet())).meta_risk.method == "finite_difference"
    assert fit(learner(meta)).meta_risk.method == "exact"
    asked = MetaRisk.first_edition(every=1, method="first_order")
    fit(learner(asked))
    assert fit(learner(asked)).meta_risk.method == "first_order"


def test_warnings_are_given_again_in_a_second_learner():
    meta = MetaRisk.first_edition(every=1)
    def say(): return [str(o.message) for o in warned if "validation set has 60 samples" in str(o.message)]
    for _ in range(2):
        learn = learner(meta)
        with warnings.catch_warnings(record=True) as warned, learn.no_bar(), learn.no_logging():
            warnings.simplefilter("always")
            learn.fit(1, .1)
        assert len(say()) == 1


def test_a_batch_risk_in_two_learners():
    "A replayed schedule starts at its first step in each"
    history, replay = alone().meta_risk.history, None
    replay = BatchRisk(history)
    first = fit(learner(replay))
    second, said = noted(lambda: learner(replay))
    fit(second)
    assert len(said) == 1 and equal(state(first), state(second)) and replay.n_step == 20 and first.batch_risk.n_step == 20
    fit(first, 1)
    assert first.batch_risk.n_step == 30 and replay.n_step == 20


# --- TorchScript

class Wrapped(nn.Module):
    "A script within an ordinary module"
    def __init__(self, inner): super().__init__(); self.backbone, self.head = inner, nn.Linear(3, 3)
    def forward(self, x): return self.head(self.backbone(x))


def traced(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, torch.randn(20, 6), check_trace=False)


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


def frozen(model):
    for p in model.parameters(): p.requires_grad_(False)
    return model


scripts = {"scripted": lambda: scripted(net()), "traced": lambda: traced(net()), "backbone": lambda: Wrapped(scripted(net())), "traced backbone": lambda: Wrapped(traced(net())),
           "frozen backbone": lambda: Wrapped(scripted(frozen(net()))), "buffers": lambda: nn.Sequential(scripted(nn.BatchNorm1d(6, affine=False)), net())}


@pytest.mark.parametrize("kw", [{}, {"fresh": True}, {"method": "finite_difference"}, {"n_inner": 2}], ids=str)
@pytest.mark.parametrize("name", scripts)
def test_torch_script_is_refused_before_the_training(name, kw):
    set_seed(0)
    learn = learner(MetaRisk.first_edition(every=1, **kw), model=scripts[name]())
    before = state(learn)
    with pytest.raises(TypeError, match=r"TorchScript.*(backbone|the model itself|\b0\b).*torch.jit"): fit(learn, 1)
    assert equal(before, state(learn)) and learn.meta_risk.reducer is None and learn.meta_risk.n_step == 0
    learn.remove_cb(learn.meta_risk)
    fit(learn, 1)
    assert name == "buffers" or not equal(before, state(learn))


@torch.jit.script
def scaled_tanh(x: torch.Tensor): return 2 * torch.tanh(x)


class WithFunction(nn.Module):
    def __init__(self): super().__init__(); self.body = net()
    def forward(self, x): return self.body(scaled_tanh(x))


def test_a_scripted_function_within_a_model_is_learned_with():
    learn = fit(learner(MetaRisk.first_edition(every=1), model=WithFunction()))
    assert not learn.meta_risk.uniform and learn.meta_risk.skipped == 0
    model = WithFunction()
    plain, zero = [fit(learner(cbs, model=deepcopy(model))) for cbs in (None, MetaRisk.first_edition(every=1, meta_lr=0.))]
    assert equal(state(plain), state(zero))


@pytest.mark.parametrize("name", ["scripted", "traced", "backbone"])
def test_batch_risk_needs_no_second_pass_and_takes_scripts(name):
    set_seed(0)
    learn = fit(learner(BatchRisk("cvar:.5"), model=scripts[name]()), 1)
    assert learn.batch_risk.n_step == 10


# --- Parameters that are edited in `forward`

class Tokens(nn.Module):
    def __init__(self, embed): super().__init__(); self.embed, self.out = embed, nn.Linear(24, 3)
    def forward(self, x): return self.out(self.embed(x).flatten(1))


class Bag(nn.Module):
    def __init__(self): super().__init__(); self.embed, self.out = nn.EmbeddingBag(400, 4, max_norm=.5, mode="sum"), nn.Linear(4, 3)
    def forward(self, x): return self.out(self.embed(x))


class Clamped(nn.Module):
    "Weights that are clamped before each use, as far as the batch goes"
    def __init__(self): super().__init__(); self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        with torch.no_grad(): self.body.weight.clamp_(max=.05 * float(x.abs().max()))
        return self.out(self.body(x))


class Normed(nn.Module):
    "Rows of length 1, normalised in place"
    def __init__(self): super().__init__(); self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        with torch.no_grad(): self.out.weight.div_(self.out.weight.norm(dim=1, keepdim=True))
        return self.out(self.body(x).tanh())


class Data(nn.Module):
    "The same through `.data`, as older code has it, by the batch's own scale"
    def __init__(self): super().__init__(); self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        self.body.weight.data = self.body.weight.data * (1 - .01 * float(x.float().std()))
        return self.out(self.body(x))


class Copied(nn.Module):
    "A copy that follows its original, kept as a frozen parameter"
    def __init__(self): super().__init__(); self.body, self.late, self.out = nn.Linear(6, 8), frozen(nn.Linear(6, 8)), nn.Linear(8, 3)
    def forward(self, x):
        with torch.no_grad():
            for a, b in zip(self.late.parameters(), self.body.parameters()): a.lerp_(b, .1)
        return self.out(self.body(x) + self.late(x))


class Seen(nn.Module):
    "Counts what it has seen in a parameter that is not trained"
    def __init__(self): super().__init__(); self.body, self.seen = net(), nn.Parameter(torch.zeros(6), requires_grad=False)
    def forward(self, x):
        with torch.no_grad(): self.seen.add_(x.float().mean(0))
        return self.body(x)


edited = {"max_norm": lambda: Tokens(nn.Embedding(400, 4, max_norm=.5)), "max_norm of a sum": Bag, "clamp_": Clamped, "in place": Normed,
          "data": Data, "frozen copy": Copied, "frozen count": Seen}


def token_learner(cbs, model, tokens):
    set_seed(0)
    g = torch.Generator().manual_seed(0)
    def part(n, lo, hi):
        y = torch.randint(0, 3, (n,), generator=g)
        return TensorSet(torch.randint(lo, hi, (n, 6), generator=g) if tokens else torch.randn(n, 6, generator=g) * hi / 300, y)
    dls = DataLoaders(*[TensorDL(part(n, lo, hi), 20, shuffle=not lo, device=CPU) for n, lo, hi in ((100, 0, 300), (60, 150, 400))])
    dls.device, dls.n_inp = CPU, 1
    return Learner(dls, model(), CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)


class Trained(Callback):
    "The model after each training batch, before other batches edit its parameters too"
    order, run_valid = 100, False
    def before_fit(self): self.states = []
    def after_batch(self): self.states += state(self.learn)


@pytest.mark.parametrize("kw", [{}, {"fresh": True, "n_inner": 2}, {"method": "first_order", "fresh": True}], ids=str)
@pytest.mark.parametrize("name", edited)
def test_parameters_that_a_pass_edits_are_edited_by_training_alone(name, kw):
    plain, zero = [token_learner([Trained(), *cbs], edited[name], name.startswith("max_norm")) for cbs in ([], [MetaRisk.first_edition(meta_lr=0., every=1, **kw)])]
    for o in plain, zero:
        set_seed(1)
        fit(o, lr=.5)
    assert equal(plain.trained.states, zero.trained.states) and plain.recorder.losses == zero.recorder.losses


@pytest.mark.parametrize("name", edited)
def test_and_are_learned_with_all_the_same(name):
    learn = fit(token_learner(MetaRisk.first_edition("cvar:.5", every=1, warmup=0, meta_lr=.3), edited[name], name.startswith("max_norm")))
    assert not learn.meta_risk.uniform and learn.meta_risk.skipped == 0
