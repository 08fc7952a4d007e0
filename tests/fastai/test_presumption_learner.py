"MetaRisk() as it comes: innocent until proven harmful, in a fastai Learner"
import io
import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from common import CPU, Half, ce, equal, fit, learner, state, tensors
from fastai.basics import SGD, Adam, Callback, CrossEntropyLossFlat, DataLoaders, Learner, MSELossFlat, set_seed
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.load import DataLoader
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import TensorDataset

from metarisk_nb.callback import MetaRisk
from metarisk_nb.data import TensorDL, TensorSet
from metarisk_nb.guard import Guard
from metarisk_nb.order import LabelDoubt
from metarisk_nb.presumption import Case, Gap, Presumption


@pytest.fixture
def eager(monkeypatch):
    "The gap opens at once, any evidence opens a case, and weights move fast: what only weights that move can show shows in a few steps"
    for k, v in dict(enough=0., proof=-1., sure=-1e9).items(): monkeypatch.setattr(Case, k, v)
    for k, v in dict(convict=.45, release=.1).items(): monkeypatch.setattr(Presumption, k, v)
    monkeypatch.setattr(Gap, "look", lambda self, loss, augmented=False: setattr(self, "open", True))
    init = Presumption.__init__
    monkeypatch.setattr(Presumption, "__init__", lambda self, n, rate=.5, memory=3, **kwargs: init(self, n, .5, memory=3, **kwargs))


def noisy(cbs=None, share=.4, n=300, n_valid=200, seed=0, **kwargs):
    "Three clouds whose labels are partly drawn at random"
    g = torch.Generator().manual_seed(seed)
    def labelled(n, s):
        x, y = tensors(n, s)
        drawn = torch.where(torch.rand(n, generator=g) < share, (y + 1 + torch.randint(0, 2, (n,), generator=g)) % 3, y)
        return TensorSet(x + F.one_hot(y, 6), drawn, y)
    learn = learner(cbs, **kwargs)
    for i, s in enumerate([labelled(n, 5), labelled(n_valid, 6)]): learn.dls.loaders[i] = learn.dls[i].new(s)
    return learn


def big(): return nn.Sequential(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 3))


# --- What it is there for

def test_wrong_labels_lose_their_weight_and_the_share_is_read_off():
    set_seed(0)
    learn = fit(noisy(MetaRisk(), n=600, model=big(), bs=50, opt_func=Adam), 60, .01)
    m = learn.meta_risk
    s = learn.dls.train_ds
    kept = torch.cat([(learn.model(s.x).argmax(1) == s.clean)[s.y != s.clean]]).float().mean()
    plain = fit(noisy(n=600, model=big(), bs=50, opt_func=Adam), 60, .01)
    by_heart = (plain.model(s.x).argmax(1) == s.clean)[s.y != s.clean].float().mean()
    assert m.curriculum.convicted and .25 < m.harmful < .6 and m.skipped == 0 and kept > by_heart + .15
    assert m.settings["method"] == "head" and m.settings["rank"] == "history"


@pytest.mark.parametrize("opt", [SGD, Adam])
def test_on_clean_labels_it_is_plain_training_to_the_last_bit(opt):
    make = lambda cb: fit(noisy(cb, share=0., opt_func=opt), 8, .05)  # noqa: E731
    a, b = make(None), make(MetaRisk())
    assert equal(state(a), state(b)) and a.recorder.losses == b.recorder.losses and b.meta_risk.harmful == 0


def test_without_a_gap_nothing_is_weighed():
    learn = fit(noisy(MetaRisk()), 2)
    assert not learn.meta_risk.curriculum.gap.open and learn.meta_risk.uniform


@pytest.mark.parametrize("where", ["nowhere", "predictions", "targets"])
def test_a_step_without_work_rests_and_notes(where, monkeypatch):
    "Unless the loss edits what it is given: then each step takes the long way, and what is noted is right"
    def loss(pred, y):
        if where == "predictions": pred.mul_(1.)
        if where == "targets": y.mul_(1)
        return F.cross_entropy(pred, y)
    weighed, batch_losses = [], MetaRisk.batch_losses
    monkeypatch.setattr(MetaRisk, "batch_losses", lambda self, *a, **k: weighed.append(self.n_step) or batch_losses(self, *a, **k))
    learn = fit(noisy(MetaRisk(loss_func=lambda p, y: F.cross_entropy(p, y, reduction="none")), n=1600, loss=loss), 4)
    m, steps = learn.meta_risk, 4 * len(learn.dls.train)
    m.curriculum.doubt.catch_up()
    assert m.uniform and m.skipped == 0 and not m.curriculum.doubt.seen.isnan().any() and m.passes == pytest.approx(4)
    assert len(weighed) < .4 * steps if where == "nowhere" else len(weighed) == steps
    assert equal(state(learn), state(fit(noisy(n=1600, loss=loss), 4)))


def evidence_of(learn, monkeypatch, epochs):
    "Steps in which a fit gathers evidence or looks"
    steps, gather = [], MetaRisk.gather
    monkeypatch.setattr(MetaRisk, "gather", lambda self, *a, **k: steps.append(self.n_step) or gather(self, *a, **k))
    fit(learn, epochs)
    return steps


def test_after_a_verdict_the_fit_is_left_alone(monkeypatch):
    monkeypatch.setattr(Gap, "look", lambda self, loss, augmented=False: setattr(self, "open", True))
    learn = noisy(MetaRisk(), share=0., n=600)
    steps, m = evidence_of(learn, monkeypatch, 12), learn.meta_risk
    assert m.curriculum.acquitted and m.uniform and max(steps) < 200 < m.n_step == 360
    assert not m.curriculum.doubt.seen.isnan().any() and m.passes == pytest.approx(12)  # what it makes of the samples is noted all the same


def test_other_trained_parameters_are_another_trial(monkeypatch):
    monkeypatch.setattr(Gap, "look", lambda self, loss, augmented=False: setattr(self, "open", True))
    learn = noisy(MetaRisk(), share=0., n=600, model=big())
    learn.freeze_to(0)
    fit(learn, 12)
    assert learn.meta_risk.curriculum.acquitted
    fit(learn, 1)
    assert learn.meta_risk.curriculum.acquitted  # the same task goes on
    for p in learn.model[0].parameters(): p.requires_grad_(False)
    assert evidence_of(learn, monkeypatch, 1) and not learn.meta_risk.curriculum.acquitted
    fit(learn, 12)
    assert learn.meta_risk.curriculum.acquitted
    for i, trained in {0: True, 2: False}.items():  # as many as before, but others
        for p in learn.model[i].parameters(): p.requires_grad_(trained)
    fit(learn, 1)
    assert not learn.meta_risk.curriculum.acquitted


def test_data_picked_to_judge_by_are_always_asked(monkeypatch):
    learn = noisy(None, share=0., n=600)
    learn.add_cb(MetaRisk(meta_dl=learn.dls.valid))
    assert max(evidence_of(learn, monkeypatch, 12)) > 350 and not learn.meta_risk.curriculum.acquitted
    learn.model[0].bias.requires_grad_(False)
    fit(learn, 1)
    assert learn.meta_risk.curriculum.gap.open  # they are trusted in another trial as well


@pytest.mark.parametrize("n,memory", [(200, 50), (1600, 80), (3000, 100)])
def test_a_small_data_set_is_judged_faster(n, memory):
    c = fit(noisy(MetaRisk(), n=n), 1).meta_risk.curriculum
    assert c.case.memory == memory and c.between == memory // 25


# --- What 'auto' picks, and says

def torch_loaders(n=200):
    sets = [TensorDataset(*tensors(m, i)) for i, m in enumerate((n, 60))]
    return DataLoaders(TorchLoader(sets[0], 20, shuffle=True, drop_last=True), TorchLoader(sets[1], 60), device=CPU)


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    def forward(self, x): return self.body(x)


def test_rank_and_method_are_picked_by_task_and_model(eager):
    def found(learn): return {k: fit(learn, 1).meta_risk.settings[k] for k in ("rank", "method")}
    assert MetaRisk().settings["rank"] == MetaRisk().settings["method"] == "auto"
    assert found(learner(MetaRisk())) == dict(rank="history", method="head")
    assert found(Learner(torch_loaders(), nn.Sequential(nn.Linear(6, 3)), CrossEntropyLossFlat(), opt_func=SGD, cbs=MetaRisk())) == dict(rank="class", method="head")
    assert found(learner(MetaRisk(), model=nn.Sequential(nn.Linear(6, 3), nn.Tanh()))) == dict(rank="history", method="exact")
    assert found(learner(MetaRisk(n_inner=2))) == dict(rank="history", method="exact")
    assert found(learner(MetaRisk(rank="loss", method="finite_difference"))) == dict(rank="loss", method="finite_difference")
    sets = [TensorSet(tensors(m, i)[0], tensors(m, i)[0][:, :1]) for i, m in enumerate((100, 40))]
    dls = DataLoaders(*[TensorDL(s, 20, device=CPU) for s in sets])
    dls.n_inp = 1
    assert found(Learner(dls, Regression(), MSELossFlat(), opt_func=SGD, cbs=MetaRisk())) == dict(rank="loss", method="head")


def test_another_model_is_looked_at_anew(eager):
    learn = fit(learner(MetaRisk()), 1)
    learn.model, learn.opt = nn.Sequential(nn.Linear(6, 3), nn.Tanh()), None
    assert fit(learn, 1).meta_risk.settings["method"] == "exact" and learn.meta_risk.skipped == 0


@pytest.mark.parametrize("where", ["the model", "a part of it"])
def test_compiled_code_is_not_listened_to(where, eager):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    if where == "the model": model.compile(backend="eager")
    else: model[2] = torch.compile(model[2], backend="eager")
    learn = fit(learner(MetaRisk(), model=model), 1)
    assert learn.meta_risk.settings["method"] == "exact" and learn.meta_risk.skipped == 0 and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("given,says", [
    (dict(rule="presumption", floor=.1, knots=None), "knots, floor: for rule='merit' only"), (dict(rule="merit", rank="class"), "rule='merit' sorts by loss"),
    (dict(rule="merit", method="head"), "rule='merit' sorts by loss"), (dict(method="head", n_inner=2), "method='head' is for n_inner=1"),
    (dict(rank="margin"), "rank must be one of"), (dict(rule="guilt"), "rule must be")])
def test_bad_arguments(given, says):
    with pytest.raises(ValueError, match=says): MetaRisk(**given)


def test_what_cannot_be_done_is_said_at_the_first_batch():
    with pytest.raises(ValueError, match="method='head' needs a model"): fit(learner(MetaRisk(method="head"), model=nn.Sequential(nn.Linear(6, 3), nn.Tanh())))
    learn = Learner(torch_loaders(), nn.Linear(6, 3), CrossEntropyLossFlat(), opt_func=SGD, cbs=MetaRisk(rank="history"))
    with pytest.raises(ValueError, match="rank='history' needs"): fit(learn)


def test_rule_follows_the_target_and_the_arguments():
    assert MetaRisk().presumes and not MetaRisk("cvar").presumes and not MetaRisk(knots=None).presumes and not MetaRisk.paper().presumes
    assert not MetaRisk.first_edition().presumes and MetaRisk.first_edition().settings["method"] == "exact" and MetaRisk(every=5, n_inner=2).presumes


# --- Sample numbers

class Pairs:
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i], self.y[i]


@pytest.mark.parametrize("kind", ["tensors", "items", "workers", "short last batch"])
def test_numbers_are_those_of_the_samples(kind, monkeypatch):
    seen, note = [], LabelDoubt.note
    monkeypatch.setattr(LabelDoubt, "note", lambda self, pred, y, ids=None, n_items=0: seen.append((y, ids)) or note(self, pred, y, ids, n_items))
    x, y = tensors(110, 0)
    if kind == "tensors": learn = learner(MetaRisk(), n=110)
    else:
        dl = DataLoader(Pairs(x, y), bs=20, shuffle=True, num_workers=2 * (kind == "workers"), drop_last=kind != "short last batch", device=CPU)
        learn = Learner(DataLoaders(dl, DataLoader(Pairs(*tensors(60, 1)), bs=60, num_workers=0, device=CPU), device=CPU), nn.Linear(6, 3),
                        CrossEntropyLossFlat(), opt_func=SGD, cbs=MetaRisk())
    fit(learn, 2)
    assert len(seen) >= 10 and all(torch.equal(y[ids], given) for given, ids in seen)
    learn.meta_risk.curriculum.doubt.catch_up()
    assert len(learn.meta_risk.curriculum.doubt.seen) == 110


def test_a_data_set_of_another_size_begins_anew():
    learn = fit(learner(MetaRisk()), 1)
    learn.dls.loaders[0] = learn.dls.train.new(TensorSet(*tensors(100, 7)))
    with pytest.warns(UserWarning, match="200 samples and now has 100"): learn.fit(1)
    assert len(learn.meta_risk.curriculum.doubt.seen) == 100
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)


# --- It disturbs nothing, and is not disturbed

def copying(pred, y): return F.cross_entropy(pred - 1, y, reduction="none")
def editing(pred, y): return F.cross_entropy(pred.sub_(1), y, reduction="none")


class Shifted(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.net = in_place, nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    def forward(self, x): return self.net(x.sub_(.5) if self.in_place else x - .5)


@pytest.mark.parametrize("method", ["auto", "exact"])
@pytest.mark.parametrize("what", ["loss", "model"])
def test_edits_in_place_change_nothing(what, method, eager):
    def run(in_place):
        set_seed(3)
        cb = MetaRisk(method=method, every=2, **(dict(loss_func=editing if in_place else copying) if what == "loss" else {}))
        kw = dict(model=Shifted(in_place)) if what == "model" else dict(loss=lambda p, y: (editing if in_place else copying)(p, y).mean())
        return fit(noisy(cb, **kw))
    a, b = run(True), run(False)
    assert torch.equal(a.meta_risk.weights, b.meta_risk.weights) and not a.meta_risk.uniform


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_the_model_and_the_streams_are_left_as_they_are(method):
    "Weights that never move: with evidence gathered and batches sorted, the run is plain training to the last bit"
    a, b = fit(learner()), fit(learner(MetaRisk(method=method, every=1)))
    assert equal(state(a), state(b)) and not any(m._forward_hooks for m in b.model.modules())


@pytest.mark.parametrize("method", ["auto", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision(dtype, method, eager):
    learn = fit(learner(MetaRisk(method=method, every=2), dtype=dtype), 6)
    assert learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform and all(o.isfinite().all() for o in state(learn))


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_bfloat16(method, eager):
    learn = fit(noisy([MetaRisk(method=method, every=2), Half()]), 6)
    assert learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform and all(o.isfinite().all() for o in state(learn))


def test_no_half_of_the_callback_takes_a_name_that_another_one_has():
    "A method in one class and a mark in another: whoever sets the mark hides the method"
    kinds = {}
    for c in MetaRisk.__mro__:
        if c.__module__.startswith("metarisk_nb"):
            for k, v in vars(c).items():
                if not k.startswith("__"): kinds.setdefault(k, set()).add(callable(v) or isinstance(v, (property, classmethod)))
    assert not [k for k, v in kinds.items() if len(v) > 1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_labels_of_any_whole_numbers(dtype, eager):
    learn = learner(MetaRisk(), loss=lambda p, y: F.cross_entropy(p, y.long()))
    learn.meta_risk.loss_func = lambda p, y: F.cross_entropy(p, y.long(), reduction="none")
    for o in learn.dls.loaders: o.dataset.y = o.dataset.y.to(dtype)
    assert fit(learn).meta_risk.settings["rank"] == "history" and learn.meta_risk.skipped == 0


@pytest.mark.parametrize("ignored", [-100, -1, 2, 54])
def test_labels_to_ignore_are_no_evidence(ignored, eager):
    seen = []
    learn = learner(MetaRisk(every=2), loss=CrossEntropyLossFlat(ignore_index=ignored))
    for i in range(2):
        y = learn.dls[i].dataset.y
        y[y == 2] = 1 if ignored == 2 else 2
        y[::5] = ignored
    arranged, arrange = [], learn.meta_risk.arrange
    learn.meta_risk.arrange = lambda batch: arranged.append(arrange(batch)) or arranged[-1]
    class Last(Callback):
        order, run_valid = 50, False
        def after_loss(self):
            c, y = self.learn.meta_risk.curriculum, self.yb[0]
            places = arranged[-1]
            if (y == ignored).any(): seen.append(bool(places[y == ignored].min() > places[y != ignored].max()))
            assert c.classes.starving <= {0, 1, 2}
    fit(learn.add_cb(Last()))
    assert all(seen) and learn.meta_risk.skipped == 0


@pytest.mark.parametrize("cb", [MixUp, CutMix, lambda: GradientAccumulation(40)], ids=["MixUp", "CutMix", "accumulation"])
def test_beside_other_callbacks(cb, eager):
    sets = [TensorSet(torch.randn(m, 1, 4, 4), torch.arange(m) % 3) for m in (200, 60)]
    dls = DataLoaders(*[TensorDL(s, 20, shuffle=not i, device=CPU) for i, s in enumerate(sets)])
    dls.n_inp, dls.c = 1, 3
    learn = fit(Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), CrossEntropyLossFlat(), opt_func=SGD, cbs=[MetaRisk(every=2), cb()]))
    assert learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform and all(o.isfinite().all() for o in state(learn))


def test_tuple_outputs(eager):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        def forward(self, x):
            h = self.body(x).relu()
            return self.head(h), h
    learn = fit(learner(MetaRisk(loss_func=lambda p, y: ce(p[0], y), meta_loss=lambda p, y: ce(p[0], y)), model=Two(), loss=lambda p, y: ce(p[0], y).mean()))
    assert learn.meta_risk.settings["method"] in ("head", "exact") and learn.meta_risk.skipped == 0


# --- Copies and files

@pytest.mark.parametrize("method", ["auto", "exact"])
def test_a_run_goes_on_to_the_last_bit(method, eager):
    def make():
        set_seed(9)
        return noisy(MetaRisk(method=method, every=3 if method == "auto" else 1), model=nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    def one(learn, seed):
        set_seed(seed)
        learn.dls.rng.seed(seed) if hasattr(learn.dls, "rng") else learn.dls.train.rng.seed(seed)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .05)
    whole = make()
    for seed in (1, 2): one(whole, seed)
    first = make()
    one(first, 1)
    f = io.BytesIO()
    torch.save((first.model.state_dict(), first.meta_risk.state_dict()), f)
    f.seek(0)
    model, meta = torch.load(f, weights_only=True)
    second = make()
    second.model.load_state_dict(model)
    second.meta_risk.load_state_dict(meta)
    one(second, 2)
    assert torch.equal(whole.meta_risk.weights, second.meta_risk.weights) and equal(state(whole), state(second)) and not whole.meta_risk.uniform


def test_a_copy_goes_its_own_way(eager):
    learn = fit(noisy(MetaRisk()), 1)
    before = learn.meta_risk.weights
    twin = fit(deepcopy(learn), 1)
    assert twin.meta_risk.n_step == 30 and torch.equal(before, learn.meta_risk.weights) and not torch.equal(before, twin.meta_risk.weights)


def test_a_state_of_the_first_edition_is_refused_with_the_way_out():
    old = fit(learner(MetaRisk.first_edition())).meta_risk.state_dict()
    with pytest.raises(ValueError, match="first_edition"): learner(MetaRisk()).meta_risk.load_state_dict(old)


def test_a_starving_class_is_named_once(eager, monkeypatch):
    monkeypatch.setattr(Guard, "starved", .95)
    learn = learner(MetaRisk())
    learn.dls.vocab = ["cat", "dog", "eel"]
    with pytest.warns(UserWarning, match="(cat|dog|eel).* benefit of the doubt"):
        with learn.no_bar(), learn.no_logging(): learn.fit(4, .1)
    assert learn.meta_risk.guarded > 0
