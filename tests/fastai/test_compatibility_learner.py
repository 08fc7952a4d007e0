"MetaRisk beside the methods and callbacks of a fastai Learner"
import gc
import os
import random
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from math import isnan

import matplotlib
import numpy as np
import psutil
import pytest
import torch
from common import CPU, ce, equal, fit, held, learner, net, state, tensors
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import *
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.rnn import RNNCallback, RNNRegularizer
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import load_learner
from fastai.optimizer import Adam, Lamb, Lookahead, OptimWrapper, RMSProp, ranger
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    Flip,
    ImageBlock,
    Learner,
    RandomSplitter,
    get_image_files,
    params,
    parent_label,
    set_seed,
)
from PIL import Image
from torch import nn

from metarisk_nb.callback import BatchRisk, MetaRisk
from metarisk_nb.data import TensorDL, TensorSet

matplotlib.use("Agg")


@contextmanager
def still(learn):
    "Neither bars nor words"
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield learn


def same(a, b):
    "Are two states equal to the last bit?"
    if isinstance(a, torch.Tensor): return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isnan(a) and isnan(b))


def phi(learn): return deepcopy(learn.meta_risk.state_dict())


def seeded(learn, seed=1):
    "The Learner with every random stream at its start, those of its loaders too"
    set_seed(seed)
    for dl in learn.dls.loaders: dl.rng = random.Random(seed)
    return learn


def alike(a, b): return equal(state(a), state(b)) and same(phi(a), phi(b))


def at(event, f, order=99):
    "A callback that does `f(self)` at `event`"
    cb = Callback(**{event: f})
    cb.order = order
    return cb


def stop(event, what, it=4):
    "A callback that raises `what` at `event`, after `it` batches"
    def f(self):
        if self.learn.train_iter >= it: raise what
    return at(event, f)


def two_groups(m): return [params(m[0]), params(m[1:])]


def clears(learn, shape=20):
    "Does training go on, and is nothing left of it in an export?"
    loss, n = learn.loss_func, learn.meta_risk.n_step
    fit(learn, 1)
    assert learn.loss_func is loss and loss.reduction == "mean" and learn.meta_risk.n_step == n + 10 and len(learn.meta_risk.weights) == shape
    assert learn.meta_risk.weights.isfinite().all() and not learn.meta_risk.uniform and all(v.isfinite().all() for v in state(learn))
    assert not held(learn.meta_risk)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "60 pictures of two classes"
    path, g = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        (path/"ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray((g.integers(0, 128, (8, 8, 3)) + 127*(i % 2)).astype(np.uint8)).save(path/"ab"[i % 2]/f"{i}.png")
    return path


def pictures(files, cbs=None, **kwargs):
    "A Learner of pictures out of files, as fastai's examples have them"
    set_seed(0)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(1/3, seed=0), batch_tfms=Flip())
    dls = block.dataloaders(files, bs=8, num_workers=0, device=CPU)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    return Learner(dls, model, cbs=cbs, **{"splitter": two_groups, "path": files, **kwargs})


class TestMethods:
    def test_lr_find_before_the_first_fit(self, tmp_path):
        plain, found = learner(MetaRisk.first_edition(every=2)), learner(MetaRisk.first_edition(every=2), path=tmp_path)
        with still(found): found.lr_find(show_plot=False)
        assert found.meta_risk.reducer is None and found.meta_risk.n_step == 0
        for o in plain, found: fit(seeded(o))
        assert alike(plain, found)

    def test_lr_find_between_two_fits(self, tmp_path):
        learn = fit(learner(MetaRisk.first_edition(every=2), path=tmp_path))
        before, theta, loss = phi(learn), state(learn), learn.loss_func
        with still(learn): learn.lr_find(show_plot=False)
        assert same(before, phi(learn)) and equal(theta, state(learn)) and learn.loss_func is loss
        clears(learn)

    @pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError("boom")], ids=["interrupt", "error"])
    def test_a_fit_after_an_interrupted_lr_find_learns(self, tmp_path, what):
        learn = learner(MetaRisk.first_edition(every=2), path=tmp_path)
        with still(learn), learn.added_cbs(stop("after_batch", what)), pytest.raises((KeyboardInterrupt, RuntimeError)): learn.lr_find(show_plot=False)
        assert fit(learn).meta_risk.n_step == 20

    @pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError("boom")], ids=["interrupt", "error"])
    def test_a_fit_after_interrupted_predictions_learns(self, what):
        learn = fit(learner(MetaRisk.first_edition(every=2)))
        with still(learn), learn.added_cbs(stop("after_batch", what, 0)), pytest.raises((KeyboardInterrupt, RuntimeError)): learn.get_preds()
        clears(learn)

    @pytest.mark.parametrize("what", ["validate", "get_preds", "predict", "tta", "show_results", "summary", "freeze", "unfreeze"])
    def test_it_leaves_alone(self, files, what):
        learn = fit(pictures(files, MetaRisk.first_edition(every=2)), 2, .01)
        before, theta = phi(learn), state(learn)
        with still(learn):
            res = learn.predict(get_image_files(files)[0]) if what == "predict" else getattr(learn, what)()
        assert same(before, phi(learn)) and equal(theta, state(learn)) and (res is not None or "freeze" in what or what == "show_results")
        with still(learn): learn.fit(1, .01)
        assert learn.meta_risk.n_step == 15

    @pytest.mark.parametrize("what, args, epochs", [("fit", (2,), 2), ("fit_one_cycle", (2, slice(1e-4, 1e-2)), 2), ("fit_flat_cos", (2,), 2), ("fit_sgdr", (2, 1), 3),
                                                    ("fine_tune", (2,), 3)])
    def test_it_learns_in(self, files, what, args, epochs):
        learn = pictures(files, MetaRisk.first_edition(every=1))
        with still(learn): getattr(learn, what)(*args)
        meta = learn.meta_risk
        assert meta.n_step == len(meta.history) == 5*epochs and not meta.uniform and meta.weights.isfinite().all() and meta.skipped == 0


class TestExport:
    def test_a_loaded_learner_predicts_the_same_and_trains_on(self, files, tmp_path):
        learn = fit(pictures(files, MetaRisk.first_edition(every=2), path=tmp_path), 2, .01)
        one = get_image_files(files)[0]
        with still(learn): want = learn.predict(one); learn.export()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = load_learner(tmp_path/"export.pkl")
        with still(new): got = new.predict(one)
        assert got[0] == want[0] and torch.equal(got[2], want[2]) and same(phi(learn), phi(new))
        new.dls = learn.dls
        for o in learn, new:
            o.opt = None
            fit(seeded(o), 1, .01)
        assert alike(learn, new) and new.meta_risk.n_step == 15

    @pytest.mark.parametrize("broken", [False, True], ids=["whole", "interrupted"])
    @pytest.mark.parametrize("where", ["valid", "meta_dl"])
    @pytest.mark.parametrize("kw", [{}, {"fresh": True, "n_inner": 2}, {"meta_bs": 9000}], ids=str)
    def test_it_holds_no_data(self, tmp_path, broken, where, kw):
        def export(cbs):
            learn = learner(cbs, path=tmp_path, **({"n_valid": 5000} if where == "valid" else {}))
            with learn.added_cbs(stop("after_step", KeyboardInterrupt)) if broken else nullcontext(), suppress(KeyboardInterrupt): fit(learn)
            with still(learn): learn.export()
            return (tmp_path/"export.pkl").stat().st_size, learn
        meta = MetaRisk.first_edition(every=1, meta_dl=learner(n_valid=5000).dls.valid if where == "meta_dl" else None, **kw)
        plain, (size, learn) = export([])[0], export(meta)
        assert size - plain < 60_000
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = load_learner(tmp_path/"export.pkl").meta_risk
        assert not held(new) and new.meta_dl is None and len(new.weights) == 20
        clears(learn)

    def test_a_deepcopy_goes_the_same_way(self):
        learn = fit(learner(MetaRisk.first_edition(every=1, meta_bs=20, n_inner=2)))
        twin = deepcopy(learn)
        for o in learn, twin: fit(seeded(o))
        assert alike(learn, twin) and twin.meta_risk.learn is twin and twin.meta_risk in twin.cbs

    def test_a_deepcopy_of_the_callback_belongs_to_its_learner(self):
        meta = deepcopy(fit(learner(MetaRisk.first_edition(every=1)), 1).meta_risk)
        assert meta.learn.meta_risk is meta and meta in meta.learn.cbs


settings = {"default": {}, "paper": dict(fresh=True, n_inner=3, every=1, floor=0, warmup=0), "draws": dict(meta_bs=25, every=3), "logits": dict(knots=None, every=2)}
seeds = partial(at, "before_epoch", lambda self: seeded(self.learn) if self.learn.epoch == 2 else None, order=-20)


def interrupted(make, path):
    "A run of 4 epochs, and one that goes on in another Learner after two of them"
    learns = whole, first, second = [set_seed(0) or make() for _ in range(3)]
    for o in learns:
        o.path = path
        o.add_cb(seeds())
    with still(seeded(whole)): whole.fit_one_cycle(4, .1)
    def leave(self):
        if self.learn.epoch == 2: raise CancelFitException
    with still(seeded(first)): first.fit_one_cycle(4, .1, cbs=at("before_epoch", leave))
    first.save("theta"); first.meta_risk.save("phi")
    second.load("theta"); second.meta_risk.load("phi")
    with still(second): second.fit_one_cycle(4, .1, start_epoch=2)
    return whole, second


class Tokens(nn.Sequential):
    def __init__(self): super().__init__(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(48, 3))


class TestResume:
    @pytest.mark.parametrize("model", ["linear", "dropout"])
    @pytest.mark.parametrize("name", settings)
    def test_goes_on_to_the_last_bit(self, tmp_path, name, model):
        whole, second = interrupted(lambda: learner(MetaRisk.first_edition(**settings[name]), model=net() if model == "dropout" else nn.Linear(6, 3)), tmp_path)
        assert alike(whole, second) and whole.meta_risk.n_step == 40 and same(whole.opt.state_dict()["state"], second.opt.state_dict()["state"])

    def test_goes_on_to_the_last_bit_where_validation_data_are_not_kept(self, tmp_path):
        def make():
            learn = learner(MetaRisk.first_edition(every=2, meta_bs=25, warmup=0), model=Tokens())
            for dl in learn.dls.loaders: dl.dataset.x = dl.dataset.x.abs().mul(2).long().clamp(0, 8)
            return learn
        assert alike(*interrupted(make, tmp_path))

    def test_a_second_fit_goes_on_and_reset_begins_anew(self):
        learn, other = fit(learner(MetaRisk.first_edition(every=1))), learner(MetaRisk.first_edition(every=1))
        before, seen = learn.meta_risk.weights, []
        with learn.added_cbs(at("before_batch", lambda self: seen.append(self.learn.meta_risk.weights))): fit(learn)
        assert torch.equal(seen[0], before) and learn.meta_risk.n_step == 40 and len(learn.meta_risk.history) == 40
        learn.meta_risk.reset()
        learn.model, learn.opt = deepcopy(other.model), None
        for o in learn, other: fit(seeded(o))
        assert alike(learn, other)

    def test_a_file_is_read_safely_and_another_reducers_is_refused(self, tmp_path):
        learn = fit(learner(MetaRisk.first_edition(every=1), path=tmp_path))
        file = learn.meta_risk.save("phi")
        assert file == tmp_path/"models"/"phi.pth" and same(torch.load(file, weights_only=True), phi(learn))
        assert same(phi(learn), MetaRisk.first_edition(every=1).load_state_dict(torch.load(file)) or phi(learn))
        for kw, bs in (dict(knots=5), 20), (dict(knots=None), 20):
            with pytest.raises(ValueError, match="state belongs to a reducer with n=20 and knots=12, but this curriculum has"): learner(MetaRisk.first_edition(**kw), bs=bs, path=tmp_path).meta_risk.load("phi")
        fit(learner(MetaRisk.first_edition(knots=None), path=tmp_path)).meta_risk.save("logits")
        with pytest.raises(ValueError, match="n=20 and knots=None, but this curriculum has n=25"): learner(MetaRisk.first_edition(knots=None), bs=25, path=tmp_path).meta_risk.load("logits")
        with pytest.raises(FileNotFoundError, match="nowhere.pth"): learn.meta_risk.load("nowhere")
        with pytest.raises(RuntimeError, match="before the first fit"): learner(MetaRisk.first_edition(), path=tmp_path).meta_risk.save("none")
        assert sorted(o.name for o in (tmp_path/"models").iterdir()) == ["logits.pth", "phi.pth"]

    def test_a_crash_while_saving_leaves_the_old_file_whole(self, tmp_path, monkeypatch):
        learn = fit(learner(MetaRisk.first_edition(every=1), path=tmp_path))
        before = phi(learn)
        learn.meta_risk.save("phi")
        def crash(o, file): file.write_bytes(b"half"); raise OSError("disk full")
        monkeypatch.setattr(torch, "save", crash)
        for name in "phi", "new":
            with pytest.raises(OSError, match="disk full"): fit(learn, 1).meta_risk.save(name)
        assert [o.name for o in (tmp_path/"models").iterdir()] == ["phi.pth"] and same(learn.meta_risk.load("phi") and phi(learn), before)

    def test_a_state_that_cannot_be_read_leaves_what_was_learned(self):
        learn = fit(learner(MetaRisk.first_edition(every=1)))
        before = phi(learn)
        with pytest.raises((KeyError, ValueError)): learn.meta_risk.load_state_dict({**before, "optimizer": {}})
        assert same(before, phi(learn))


class TestInterruption:
    @pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_step", "after_epoch"])
    @pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError("boom"), CancelFitException, CancelTrainException, CancelEpochException, CancelBatchException], ids=str)
    def test_a_fit_that_broke_off(self, tmp_path, event, what): self.broken(tmp_path, event, what)

    @pytest.mark.parametrize("event, what", [("before_fit", RuntimeError("boom")), ("before_epoch", RuntimeError("boom")), ("before_train", RuntimeError("boom")), ("after_pred", CancelBatchException),
        ("before_backward", CancelBackwardException), ("before_step", CancelStepException), ("before_validate", CancelValidException), ("after_validate", KeyboardInterrupt), ("after_fit", RuntimeError("boom"))])
    def test_a_fit_that_broke_off_elsewhere(self, tmp_path, event, what): self.broken(tmp_path, event, what)

    def broken(self, tmp_path, event, what):
        learn = learner(MetaRisk.first_edition(every=2, fresh=True, n_inner=2, warmup=0), path=tmp_path)
        with learn.added_cbs(stop(event, what, 4 if event not in ("before_fit", "before_epoch", "before_train") else 0)), suppress(KeyboardInterrupt, RuntimeError, Exception): fit(learn)
        clears(learn)
        with still(learn): learn.export()
        assert len(fit(learn, 1).meta_risk.weights) == 20

    def test_an_error_in_the_meta_step_itself(self):
        calls = []
        def bad(pred, y):
            calls.append(0)
            if len(calls) == 3: raise RuntimeError("boom")
            return ce(pred, y)
        learn = learner(MetaRisk.first_edition(every=1, meta_loss=bad, warmup=0))
        with pytest.raises(RuntimeError, match="boom"): fit(learn)
        assert torch.is_grad_enabled() and learn.meta_risk.n_step == 2 and all(p.grad_fn is None for p in learn.model.parameters())
        clears(learn)


class Hidden(nn.Module):
    "A model that keeps its hidden layer for RNNRegularizer, or gives it out as fastai's text models do"
    def __init__(self, gives=False): super().__init__(); self.body, self.head, self.gives = nn.Linear(6, 8), nn.Linear(8, 3), gives
    def forward(self, x):
        self.h = self.body(x)
        return (self.head(self.h), [self.h[:, None]], [self.h[:, None]]) if self.gives else self.head(self.h)


class RNN(Callback):
    "What RNNRegularizer looks for"
    def after_pred(self): self.out = self.raw_out = self.model.h[:, None]


class TestCallbacks:
    def test_save_model(self, tmp_path):
        learn = fit(learner([MetaRisk.first_edition(every=2, warmup=0), SaveModelCallback(every_epoch=True), ], path=tmp_path))
        assert sorted(o.name for o in (tmp_path/"models").iterdir()) == ["model_0.pth", "model_1.pth"]
        learn.remove_cb(SaveModelCallback)
        with still(learn): learn.fit_one_cycle(2, .1, cbs=SaveModelCallback(with_opt=True))
        best, history = phi(learn), learn.meta_risk.history
        assert learn.meta_risk.n_step == 40 and history.steps[-1] == 39 and same(best["logits"], learn.meta_risk.reducer.logits.detach())
        clears(learn)

    def test_early_stopping(self):
        learn = learner(MetaRisk.first_edition(every=2, warmup=0))
        with still(learn): learn.fit(5, .1, cbs=EarlyStoppingCallback(min_delta=10))
        assert learn.meta_risk.n_step == 20
        clears(learn)

    def test_reduce_lr_on_plateau(self):
        learn, rates = learner(MetaRisk.first_edition(every=2)), []
        look = at("before_batch", lambda self: rates.append(learn.meta_risk.rates()["0.weight"]))
        with still(learn): learn.fit(4, .1, cbs=[ReduceLROnPlateau(min_delta=10), look])
        assert sorted(set(rates)) == pytest.approx([1e-4, 1e-3, 1e-2, .1]) or sorted(set(rates)) == pytest.approx([1e-3, 1e-2, .1])

    def test_csv_logger(self, tmp_path):
        learn = learner([MetaRisk.first_edition(every=2), CSVLogger()], path=tmp_path)
        with learn.no_bar(): learn.fit(2, .1)
        assert list(learn.csv_logger.read_log().epoch) == [0, 1]

    @pytest.mark.parametrize("every", [1, 3])
    def test_terminate_on_nan(self, every):
        learn = learner(MetaRisk.first_edition(every=every, warmup=0))
        def spoil(self):
            if self.learn.train_iter == 4: self.learn.model[0].weight.data.fill_(float("nan"))
        with still(learn): learn.fit(3, .1, cbs=[TerminateOnNaNCallback(), at("before_batch", spoil)])
        meta = learn.meta_risk
        assert meta.n_step == 5 and meta.weights.isfinite().all() and meta.skipped == (every == 1) and not meta.uniform
        assert all(v["exp_avg"].isfinite().all() for v in meta.opt_phi.state.values())
        learn.model, learn.opt = net(), None
        clears(learn)

    def test_show_graph_and_progress(self, capsys):
        learn = learner([MetaRisk.first_edition(every=2), ShowGraphCallback()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn.fit(2, .1)
        assert learn.meta_risk.n_step == 20 and "train_loss" in capsys.readouterr().out

    def test_tensorboard(self, files, tmp_path):
        pytest.importorskip("tensorboard")
        from fastai.callback.tensorboard import TensorBoardCallback
        learn = fit(pictures(files, [MetaRisk.first_edition(every=2), TensorBoardCallback(tmp_path, n_preds=2)]), 2, .01)
        assert any(tmp_path.iterdir()) and learn.meta_risk.n_step == 10 and not learn.meta_risk.uniform

    def test_gradient_clip(self):
        def norms(*cbs):
            seen = []
            def look(self): seen.append(torch.stack([p.grad.norm() for p in self.learn.model.parameters()]).norm().item())
            fit(learner([MetaRisk.first_edition(every=2, warmup=0), *cbs, at("after_step", look)]), 1)
            return seen
        assert max(norms(GradientClip(.01))) < .0101 < min(norms())

    @pytest.mark.parametrize("gives", [False, True], ids=["kept", "given out"])
    def test_rnn_regularizer(self, gives):
        rows, reg = [], RNNRegularizer(alpha=2.)
        def before(self): rows.append([self.learn.loss_grad.item()])
        def after(self): rows[-1] += [self.learn.loss_grad.item(), 2 * self.learn.rnn.out.pow(2).mean().item()]
        learn = learner([MetaRisk.first_edition(every=2, warmup=0), RNNCallback() if gives else RNN(), reg, at("after_loss", before, .5), at("after_loss", after)], model=Hidden(gives))
        fit(learn, 1)
        rows = [o for o in rows if o[1] != o[0]]
        assert len(rows) == 10 == learn.meta_risk.n_step and all(b - a == pytest.approx(c, rel=1e-4) for a, b, c in rows) and not learn.meta_risk.uniform

    def test_channels_last(self, files):
        a, b = [fit(pictures(files, [MetaRisk.first_edition(every=1), *cbs]), 2, .01) for cbs in ([], [ChannelsLast()])]
        assert (a.meta_risk.weights - b.meta_risk.weights).abs().max() < 1e-4 and all((x - y).abs().max() < 1e-4 for x, y in zip(state(a), state(b)))

    @pytest.mark.parametrize("to", ["to_fp16", "to_bf16"])
    def test_half_precision_as_fastai_has_it(self, to, tmp_path):
        learn = learner(MetaRisk.first_edition(every=2, warmup=0), path=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(getattr(learn, to)())
        clears(learn)
        assert learn.meta_risk.weights.dtype == torch.float32
        with still(learn): learn.export(); learn.lr_find(show_plot=False)
        assert load_learner(tmp_path/"export.pkl").meta_risk.n_step == 30 == learn.meta_risk.n_step

    def test_gradient_accumulation_with_a_rest(self):
        learn = fit(learner([MetaRisk.first_edition(every=1, warmup=0), GradientAccumulation(60)], n=207, drop_last=False))
        meta = learn.meta_risk
        assert meta.n_step == 6 and meta.history.steps == [0, 1, 2, 3, 4, 5, 6] and not meta.uniform  # the seventh step was begun
        fit(learn, 1)
        assert meta.n_step == 9 and meta.history.steps == list(range(10)) and meta.weights.isfinite().all()


def wrapped(opt, **kwargs): return partial(OptimWrapper, opt=opt, **kwargs)


def lookahead(ps, **kwargs): return Lookahead(RMSProp(ps, mom=0., **kwargs))


class TestOptimizers:
    @pytest.mark.parametrize("opt", [wrapped(torch.optim.SGD), wrapped(torch.optim.SGD, momentum=.9), wrapped(torch.optim.AdamW), Adam, RMSProp, ranger, lookahead, Lamb],
                             ids=["torch SGD", "torch SGD with momentum", "torch AdamW", "Adam", "RMSProp", "ranger", "Lookahead", "Lamb"])
    def test_with(self, opt, tmp_path):
        learn, seen = learner(MetaRisk.first_edition(every=2, warmup=0), opt_func=opt, path=tmp_path), []
        look = at("after_loss", lambda self: seen.append((set(self.learn.meta_risk.rates().values()), {self.learn.opt.hypers[0]["lr"]})))
        with learn.added_cbs(look): fit(learn, 2, .01)
        assert all(a == b for a, b in seen) and len({*map(str, seen)}) > 10 and learn.meta_risk.skipped == 0
        clears(learn)
        plain, other = [fit(learner(cbs, opt_func=opt), 2, .01) for cbs in ([], [MetaRisk.first_edition(every=1, meta_lr=0.)])]
        assert equal(state(plain), state(other))

    @pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
    def test_each_group_has_its_own_rate(self, files, frozen):
        learn, seen = pictures(files, MetaRisk.first_edition(every=1)), []
        learn.splitter = lambda m: [params(m[0]), params(m[3])]
        if frozen: learn.freeze()
        look = at("after_loss", lambda self: seen.append(self.learn.meta_risk.rates()))
        with still(learn): learn.fit(1, slice(1e-4, 1e-2), cbs=look)
        want = {"0.0.weight": 1e-4, "0.1.weight": 1e-4, "0.1.bias": 1e-4, "3.weight": 1e-2, "3.bias": 1e-2}
        if frozen: want = {k: v for k, v in want.items() if not k.startswith("0.0")}  # batch norm trains on, as fastai has it
        assert all(o == pytest.approx(want) for o in seen) and learn.meta_risk.skipped == 0 and not learn.meta_risk.uniform


class TestAddAndRemove:
    @pytest.mark.parametrize("how", ["instance", "class", "fit", "context"])
    def test_added(self, how):
        want, learn = fit(learner(MetaRisk() if how == "class" else MetaRisk.first_edition())), learner()
        if how == "fit":
            meta = MetaRisk.first_edition()
            with still(learn): learn.fit_one_cycle(2, .1, cbs=meta)
        elif how == "context":
            with learn.added_cbs(meta := MetaRisk.first_edition()): fit(learn)
        else: meta = fit(learn.add_cb(MetaRisk if how == "class" else MetaRisk.first_edition())).meta_risk
        assert equal(state(learn), state(want)) and same(phi(want), meta.state_dict())
        assert (how in ("fit", "context")) != hasattr(learn, "meta_risk")
        if how in ("fit", "context"):
            with learn.added_cbs(meta): fit(learn)
            assert meta.n_step == 40

    def test_removed_by_class(self):
        learn = fit(learner(MetaRisk.first_edition(every=1)).remove_cb(MetaRisk))
        assert not hasattr(learn, "meta_risk") and equal(state(learn), state(fit(learner())))

    @pytest.mark.parametrize("other, names", [(MetaRisk, r"\[MetaRisk, MetaRisk\]"), (partial(BatchRisk, "cvar"), r"\[MetaRisk, BatchRisk\]")], ids=["MetaRisk", "BatchRisk"])
    def test_two_are_refused(self, other, names):
        learn, second = learner(MetaRisk.first_edition(warmup=0, every=2)), other()
        theta = state(learn)
        with pytest.raises(ValueError, match=f"2 callbacks weigh the losses of a batch, {names}"): fit(learn.add_cb(second))
        assert equal(theta, state(learn))
        first = next(o for o in learn.cbs if isinstance(o, MetaRisk))
        learn.remove_cbs([second, first]).add_cb(first)
        clears(learn)

    def test_works_without_accelerate(self):
        code = "import sys; sys.modules['accelerate'] = None\nfrom common import *\nfrom metarisk_nb.all import MetaRisk\nprint(fit(learner(MetaRisk.first_edition(every=1))).meta_risk.n_step)"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
        res = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env)
        assert res.stdout.strip() == "20", res.stderr


class TestMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize("kw", [{}, {"meta_bs": 20, "fresh": True, "n_inner": 2, "every": 10}], ids=["default", "draws"])
    def test_nothing_grows_over_5000_steps(self, kw):
        set_seed(0)
        dls = DataLoaders(*[TensorDL(TensorSet(*tensors(2000 - 1900*i, i)), 4, shuffle=not i, device=CPU) for i in (0, 1)])
        learn, me, rows = Learner(dls, nn.Linear(6, 3), CrossEntropyLossFlat(), default_cbs=False, cbs=[TrainEvalCallback(), MetaRisk.first_edition(**kw)]), psutil.Process(), []
        def look():
            gc.collect()
            rows.append((sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()), me.memory_info().rss/2**20, me.num_fds(), len(me.children()), me.num_threads()))
        look()
        with warnings.catch_warnings(), learn.added_cbs(at("after_epoch", lambda self: look())):
            warnings.simplefilter("ignore")
            learn.fit(10, 1e-3)
        look()
        assert learn.meta_risk.n_step == 5000 and len(learn.meta_risk.history) <= 256
        assert max(o[0] for o in rows[2:]) <= rows[2][0] + 2 and rows[-1][1] - rows[2][1] < 10 and rows[-1][2:] == rows[0][2:], rows


class TestNotFinite:
    def run(self, bad, n=5, **kw):
        "A fit whose meta-gradients are not finite in the steps `bad`; what it says"
        learn = learner(MetaRisk.first_edition(every=1, warmup=0, meta_loss=lambda pred, y: ce(pred, y) * (float("nan") if learn.meta_risk.n_step in bad else 1.), **kw))
        with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            learn.fit(n, .1)
        return learn, [str(o.message) for o in said if "finite" in str(o.message)]

    def test_three_in_a_row_are_counted_and_said_once(self):
        learn, said = self.run({4, 5, 6, 20, 21})
        meta = learn.meta_risk
        assert meta.skipped == 5 and meta.failed == 0 and len(said) == 1 and not meta.uniform and meta.n_step == 50 == len(meta.history)
        w = meta.history.weights
        assert torch.equal(w[6], w[3]) and not torch.equal(w[7], w[6]) and meta.history.values[4:7].isnan().all()

    def test_twenty_in_a_row_end_the_meta_steps_of_a_fit(self):
        learn, said = self.run(range(5, 5 + MetaRisk.patience))
        meta, theta = learn.meta_risk, state(learn)
        assert MetaRisk.patience == 20 and meta.skipped == meta.failed == 20 and len(said) == 2 and "the next fit tries again" in said[1]
        w = meta.history.weights
        assert meta.n_step == 50 and torch.equal(w[4], w[-1]) and w.isfinite().all() and not meta.uniform
        meta.meta_loss = "own"
        fit(learn)
        assert not torch.equal(meta.weights, w[-1]) and meta.n_step == 70 and not equal(theta, state(learn)) and meta.skipped == 20 and meta.failed == 0
        meta.reset()
        fit(learn)
        assert meta.failed == meta.skipped == 0 and meta.n_step == 20 and not meta.uniform


class TestSeeds:
    @pytest.mark.parametrize("kw", settings.values(), ids=settings)
    def test_same_seed_same_result(self, kw):
        assert alike(*[fit(learner(MetaRisk.first_edition(**kw))) for _ in range(2)])

    @pytest.mark.parametrize("kw", settings.values(), ids=settings)
    def test_the_random_streams_are_as_without(self, kw):
        def after(cbs):
            learn = fit(learner(cbs))
            return state(learn), [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), learn.dls.train.rng.random()]
        (a, i), (b, j) = after([]), after(MetaRisk.first_edition(**{**kw, "meta_lr": 0.}))
        assert i == j and equal(a, b)
