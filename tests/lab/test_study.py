"Runs, their keys, the store and sweeps"
import importlib
import inspect
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import psutil
import pytest
import torch
from common import autocast_depth
from fastai.callback.core import Callback
from fastai.torch_core import no_random
from forks import Forked, OnTerminal, wait_for

from metarisk_nb.callback import BatchRisk, History, MetaRisk, RiskMetric
from metarisk_nb.data import RandomCropFlip, shifts
from metarisk_nb.lab import datasets, methods, train
from metarisk_nb.lab import run as runs
from metarisk_nb.lab import store as files_of
from metarisk_nb.lab import sweep as engine
from metarisk_nb.lab.datasets import *
from metarisk_nb.lab.methods import *
from metarisk_nb.lab.plan import plan
from metarisk_nb.lab.run import Run, makers
from metarisk_nb.lab.store import *
from metarisk_nb.lab.sweep import run, sweep
from metarisk_nb.lab.train import learner_of, train_run

ROOT = Path(__file__).parents[2]

STORE = Path(__file__).parents[2] / "nbs/results"
short = dict(steps=30, noise=.4)
REPLAYS, CLEAN = ("frozen", "replayed", "shuffled"), ("joined", "finetuned", "clean_only")
two_jobs = pytest.mark.xdist_group("two jobs")  # the processes that joblib keeps serve all of these tests
FIGURES = {f"{s}_{k}" for s in ("valid", "hyper", "hyper_clean", "test") for k in ("risk", "acc", "ce")}


def files(store): return sorted(o.name for o in Path(store).rglob("*") if o.is_file() and o.suffix != ".lock")


def of(method, **kw): return Run(method=method, **{"clean_valid": method in CLEAN, **kw})


def figures(row): return row[sorted(FIGURES)].to_dict()


# --- Run and its key

def say_key(): print(hash("a"), Run(noise=.4, meta={"every": 5}).key)


def test_key_is_the_same_in_another_process(tmp_path):
    other, key = Forked(say_key, out=tmp_path / "out").wait()[1].split()
    assert key == Run(noise=.4, meta={"every": 5}).key and int(other) != hash("a")  # whose strings have other hashes


def test_key_does_not_depend_on_spelling():
    a = Run(noise=1, seed=np.int64(3), meta={"floor": 1, "every": 5})
    assert a == Run(noise=np.float64(1), seed=3, meta=(("every", 5), ("floor", 1.))) and a.key == Run(noise=1., seed=3, meta={"every": 5, "floor": 1.}).key
    assert hash(a) == hash(Run(noise=1., seed=3, meta={"every": 5, "floor": 1.}))


@pytest.mark.parametrize("change", [dict(study="b"), dict(data="fashion_mini"), dict(arch="mlp:64"), dict(objective="cvar"), dict(method="paper"),
                                    dict(noise=.1), dict(noise_kind="pairflip"), dict(clean_valid=True), dict(seed=1), dict(steps=601), dict(bs=50),
                                    dict(lr=.2), dict(div=10), dict(div_final=1e3), dict(mom=.8), dict(wd=0), dict(meta=dict(every=7)), dict(valid_share=.05),
                                    dict(shift="balance"), dict(shift="images"), dict(augment=True), dict(patience=5), dict(opt="adam"),
                                    dict(precision="bfloat16")], ids=str)
def test_every_setting_counts_in_the_key(change): assert Run(**change).key != Run().key


def test_a_changed_default_changes_the_key(monkeypatch):
    class Other(MetaRisk):
        def __init__(self, risk="expected", n_inner=1, every=11, **kwargs): super().__init__(risk, n_inner, every, **{"rule": "merit", **kwargs})
    old, plain, given = Run().key, Run(method="expected").key, Run(meta=dict(every=10, meta_lr=.1)).key
    monkeypatch.setitem(makers, "learned", Other)
    assert Run().settings["every"] == 11 and Run().key != old
    assert Run(method="expected").key == plain and Run(meta=dict(every=10, meta_lr=.1)).settings == dict(Run().settings, every=10, meta_lr=.1)
    assert Run(meta=dict(every=10, meta_lr=.1)).key == given
    monkeypatch.undo()
    monkeypatch.setattr(runs, "rules", runs.rules + 1)
    assert Run().key != old


def test_settings_are_the_arguments_of_the_callback():
    names = set(inspect.signature(MetaRisk).parameters) - {"risk", "meta_dl", "loss_func"}
    assert set(runs.first_settings) <= names and len(runs.first_settings) == 13
    for method in ("learned", "paper"):
        assert set(Run(method=method).settings) == set(runs.first_settings)
        json.dumps(Run(method=method).config)
    s = Run(method="paper").settings
    assert (s["n_inner"], s["every"], s["meta_lr"], s["knots"], s["meta_bs"], s["fresh"]) == (5, 1, 1e-3, None, 2000, True)
    assert Run(method="expected").settings == {} and Run(method="paper", meta=dict(n_inner=2)).settings["n_inner"] == 2


FIRST_STUDIES = {"default", "fails", "noise", "risk", "shift"}


def test_every_stored_record_is_found_again():
    n = 0
    own = {f.name for f in fields(Run) if f.init}
    for pack in STORE.glob("*.jsonl"):
        for rec in study_records(pack.with_suffix("")):
            n += pack.stem in FIRST_STUDIES
            assert Run(**{k: v for k, v in rec["config"].items() if k in own}).key == rec["key"]
    assert n == 1368


@pytest.mark.parametrize("method", ["learned", "paper", "frozen"])
@pytest.mark.parametrize("tells", [False, True], ids=["by its attributes", "by its settings"])
def test_a_new_argument_leaves_the_keys_alone_until_it_is_used(monkeypatch, tells, method):
    class Newer(MetaRisk):
        def __init__(self, risk="expected", n_inner=1, slant="auto", view=None, **kwargs):
            super().__init__(risk, n_inner, **{"rule": "merit", **kwargs})
            self.slant, self.view = slant, view
        @property
        def settings(self): return {k: getattr(self, k) for k in names} if tells else super().settings
        @classmethod
        def paper(cls, risk="expected", **kwargs): return super().paper(risk, **{"slant": "loss", **kwargs})
    old, other = Run(method=method, noise=.2), Run(method=method, noise=.2, meta=dict(warmup=3))
    names = [*runs._arguments(), "slant", "view"]
    monkeypatch.setattr(runs, "_arguments", lambda: names)
    monkeypatch.setitem(makers, method, dict(paper=Newer.paper).get(method, Newer))
    default = dict(paper="loss").get(method, "auto")
    for meta in ({}, dict(slant=default), dict(view=None), dict(slant=default, view=None)): assert Run(method=method, noise=.2, meta=meta).settings == old.settings
    assert Run(method=method, noise=.2).key == old.key and Run(method=method, noise=.2, meta=dict(warmup=3)).key == other.key
    used = {Run(method=method, noise=.2, meta=meta).key for meta in (dict(slant="margin"), dict(view=2), dict(slant="margin", view=2))}
    assert len(used | {old.key}) == 4


OLD_NAMES = dict(
    training="cifar10_classes study_data recipes network measure StepsDL", study="rules Run run sweep load_results record history",
    cost="""Work Workload workloads ours peers contenders every images targets overhead_runs plan heavy cross_entropy work cost_model take_turns
        peak_memory measure load_costs ratio best_peer model_ratio report throughput overhead overhead_ratios bench bench_gpu plot_cost""",
    scales="targets scales gpus study_runs times_plain plan main",
    tables="""paper_risk paper_acc paper_clean paper_noise bootstrap paired beside verdicts compare four_tables headlines as_markdown""")


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_modules_keep_their_names(name):
    mod, names = importlib.import_module(f"metarisk_nb.{name}"), OLD_NAMES[name].split()
    assert set(mod.__all__) == set(names) and "Moved to metarisk_nb.lab" in mod.__doc__
    for o in names: assert hasattr(mod, o) and (not inspect.isclass(getattr(mod, o)) or getattr(mod, o).__module__.startswith("metarisk_nb.lab."))


def test_all_brings_every_old_name():
    import metarisk_nb.all as everything
    for o in f"{OLD_NAMES['training']} {OLD_NAMES['study']} mlp cnn resnet18_32 cifar10 data_root MetaRisk plot_scores stored_runs".split(): assert hasattr(everything, o), o
    assert everything.Run is Run and everything.run is run and everything.measure is measure


def test_a_run_pickled_under_its_old_module_is_read():
    r = Run(noise=.2, meta=dict(every=5))
    raw = pickle.dumps(r, protocol=0).replace(b"metarisk_nb.lab.run", b"metarisk_nb.study")
    assert b"metarisk_nb.study" in raw and pickle.loads(raw) == r and pickle.loads(raw).key == r.key and type(pickle.loads(raw)) is Run


@pytest.mark.parametrize("name,bad", [("data", "mnist"), ("data", None), ("method", "magic"), ("method", ["learned"]), ("objective", "cva"),
                                      ("objective", "cvar:2"), ("objective", len), ("noise", 1.1), ("noise", -.1), ("noise", float("nan")), ("noise", "half"),
                                      ("noise_kind", "pair"), ("seed", -1), ("seed", .5), ("steps", 0), ("steps", 10.), ("steps", True), ("bs", 1), ("lr", 0),
                                      ("lr", -1), ("mom", 1), ("wd", float("nan")), ("arch", "vgg"), ("arch", "cnn:8-8"), ("arch", None), ("study", "../x"),
                                      ("study", ""), ("valid_share", 0), ("valid_share", .1), ("valid_share", True), ("valid_share", "a tenth"),
                                      ("valid_share", float("nan")), ("shift", "blur"), ("shift", None), ("patience", -1), ("patience", 2.), ("patience", None),
                                      ("meta", dict(evry=1)), ("meta", dict(meta_dl=1)), ("meta", dict(meta_loss=len))])
def test_bad_values_are_refused_by_name(name, bad):
    with pytest.raises(ValueError, match=name): Run(**{name: bad})


def test_values_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="meta is for method learned or paper .*, got method 'batch'"): Run(method="batch", meta=dict(every=5))
    with pytest.raises(ValueError, match="every must be"): Run(meta=dict(every=0))
    for m in ("oracle", "coteaching"):
        with pytest.raises(ValueError, match="needs some right labels"): Run(method=m, noise=1, noise_kind="pairflip")
    with pytest.raises(ValueError, match="bs must be at most 1000"): train_run(Run(bs=1001, steps=2))
    for m in ("finetuned", "clean_only"):
        with pytest.raises(ValueError, match=f"method {m} trains on a clean part: it needs clean_valid=True"): Run(method=m)


def test_source_of_replayed_weights():
    r = Run(method="frozen", noise=.2, meta=dict(every=5), steps=20)
    assert r.source == Run(noise=.2, meta=dict(every=5), steps=20) and replace(r, method="shuffled", seed=3).source == replace(r.source, seed=3)
    assert [replace(r, method="replayed", seed=s).source.seed for s in range(4)] == [1, 0, 1, 2]
    assert all(of(m).source is None for m in recipes if m not in REPLAYS)


def test_share_of_wrong_labels():
    assert Run(noise=.5).wrong == pytest.approx(.45) and Run(noise=.5, noise_kind="pairflip").wrong == .5 and Run().wrong == 0
    learn, _ = learner_of(Run(noise=.5))
    s = learn.dls.train_ds
    assert (s.y != s.clean).float().mean().item() == pytest.approx(.45, abs=.05)


# --- Data

def test_splits():
    a, b = (learner_of(Run(noise=.4, seed=s))[0].dls for s in (0, 1))
    assert [len(o.dataset) for o in a] == [1000, 200, 200, 397]
    assert torch.equal(a[3].dataset.y, b[3].dataset.y) and not torch.equal(a[0].dataset.x, b[0].dataset.x)
    rows = [set(map(tuple, o.dataset.x.flatten(1).tolist())) for o in a]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 1797  # no image twice, none in two splits
    assert [len(o.dataset) for o in learner_of(Run(data="fashion_mini"))[0].dls] == [10800, 600, 600, 10000]
    for kw in (dict(clean_valid=True), {}):
        d = learner_of(Run(noise=.5, **kw))[0].dls
        assert [bool((o.dataset.y != o.dataset.clean).any()) for o in d] == [True, not kw, True, False]
    assert [len(o.dataset) for o in learner_of(Run(valid_share=.05))[0].dls] == [1000, 70, 330, 397]


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("shift,moved", [("balance", {0, 2}), ("images", {3})])
def test_a_shift_moves_some_splits(shift, moved, clean):
    "Meta-validation is as the test set with clean_valid, else as the training set"
    r = Run(shift=shift, clean_valid=clean, noise=.4, seed=2)
    now, was = (learner_of(o)[0].dls for o in (r, replace(r, shift="none")))
    moved = moved | ({1} if clean == (shift == "images") else set())
    for i in range(4):
        got, own = now[i].dataset, was[i].dataset
        want = shifts[shift](own, seed=2) if i in moved else own
        assert all(torch.equal(getattr(got, k), getattr(want, k)) for k in ("x", "y", "clean"))
        assert (got.x.shape != own.x.shape or not torch.equal(got.x, own.x)) == (i in moved)
    assert torch.equal(now[3].dataset.y, was[3].dataset.y) and now.train.bs == 100


@pytest.fixture
def images(tmp_path):
    "A folder of CIFAR-10's layout with 4 + 2 images a class"
    g = np.random.default_rng(0)
    for part, n in (("train", 4), ("test", 2)):
        for c in cifar10_classes:
            (tmp_path / part / c).mkdir(parents=True)
            for i in range(n): PIL.Image.fromarray(g.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / part / c / f"{i}.png")
    return tmp_path


def test_cifar10_is_read_once_and_kept(images, monkeypatch, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    r = Run(data="cifar10", arch="cnn:4-4/2-2", steps=2, bs=8)
    arrays_of.cache_clear()
    a = run(r, store, path=images)
    arrays_of.cache_clear()
    monkeypatch.setattr(datasets, "cifar10_arrays", lambda path: pytest.fail("decoded again"))
    monkeypatch.setenv("METARISK_DATA", str(images))
    b = run(r, tmp_path_factory.mktemp("other"))
    assert figures(a) == figures(b) and a.data_mark == b.data_mark and not list(images.glob(".*"))


def test_cifar10_cut_is_averaged(images, monkeypatch):
    monkeypatch.setattr(datasets, "_some_of_each", lambda y, n, *start, f=datasets._some_of_each: f(y, 3))
    (x, y), (tx, ty) = datasets._cifar10_cut(images)
    assert x.shape == (30, 3, 16, 16) and tx.shape == (20, 3, 16, 16) and np.bincount(y).tolist() == [3] * 10
    full = datasets._cifar10(images)[1][0]
    assert np.allclose(tx, torch.nn.functional.avg_pool2d(torch.tensor(full).float(), 2).numpy())


def test_arrays_that_cannot_be_kept_are_still_read(images, monkeypatch):
    def full(f, **kw):
        f.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(datasets.np, "savez", full)
    with pytest.warns(UserWarning, match="could not be written"): (x, _), _ = datasets._cifar10(images)
    assert x.shape == (40, 3, 32, 32) and sorted(o.name for o in images.iterdir()) == ["test", "train"]


def test_missing_cifar10_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="download=True"): run(Run(data="cifar10", steps=2), tmp_path, path=tmp_path / "no")


# --- Training

class Counter(Callback):
    "Optimizer steps, learning rates, shares of training done and what was trained on"
    def __init__(self): self.n, self.lrs, self.pcts, self.momenta, self.sizes, self.images = 0, [], [], set(), [], []
    def before_step(self):
        h = self.opt.hypers[0]
        self.sizes.append(len(self.dls.train_ds))
        self.images.append(self.x.clone())
        self.n, self.lrs, self.pcts = self.n + 1, [*self.lrs, h["lr"]], [*self.pcts, self.pct_train]
        self.momenta.add(h["mom"])


g = np.random.default_rng(0)
CURRICULUM = np.array([0, 8, 20]), g.dirichlet(np.ones(100), 3)  # Steps and weights to replay


def trained(r, source=CURRICULUM):
    with no_random(r.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn, _ = learner_of(r)
        learn.add_cb(c := Counter())
        with learn.no_bar(), learn.no_logging(): recipes[r.method](learn, r, *(source if r.source else ()))
    return learn, c


@pytest.mark.parametrize("method", recipes)
@pytest.mark.parametrize("steps", [1, 7, 37])
def test_exactly_so_many_steps(method, steps): assert trained(of(method, steps=steps, noise=.4))[1].n == steps


def test_schedule_spreads_over_exactly_the_steps():
    learn, c = trained(Run(method="expected", steps=200))
    assert c.lrs[0] == pytest.approx(.005) and max(c.lrs) == pytest.approx(.1) and 5e-6 <= c.lrs[-1] < 2e-5 and c.momenta == {.9}
    assert c.pcts == pytest.approx([i / 200 for i in range(200)])
    assert all(learn.opt.state[p].get("do_wd", True) for ps in learn.opt.param_lists for p in ps)
    _, c = trained(Run(method="warm", steps=201))
    assert [i for i, lr in enumerate(c.lrs) if lr == pytest.approx(.005)] == [0, 100]  # a new one-cycle at half time


def test_weight_decay_is_coupled_and_on_every_parameter():
    learn, _ = trained(Run(method="expected", steps=1, wd=.5, mom=0, lr=.1, div=1))
    with no_random(0): start = learner_of(Run())[0].model.state_dict()
    free, _ = trained(Run(method="expected", steps=1, wd=0, mom=0, lr=.1, div=1))
    for (n, p), q in zip(learn.model.named_parameters(), free.model.parameters()):
        assert torch.allclose(q - p, .1 * .5 * start[n], atol=1e-6), n


@pytest.mark.parametrize("method", recipes)
def test_each_method_trains(method, tmp_path):
    r = of(method, **short)
    row = run(r, tmp_path)
    averaged = method == "ema"  # over 30 steps the mean hardly leaves the start, and the trace has the model itself
    assert (row.test_acc > 30 or averaged) and row.steps_done == 30 and row.seconds > 0 and all(np.isfinite(row[o]) for o in FIGURES)
    rec = record(r.key, tmp_path)
    assert [o["step"] for o in rec["trace"]] == list(range(3, 31, 3))
    at_end = {k: v for k, v in row[sorted(FIGURES)].items() if not k.endswith("_ce")}
    assert averaged or {k: v for k, v in rec["trace"][-1].items() if k in FIGURES} == pytest.approx(at_end, rel=1e-5)
    assert set(rec["versions"]) == {"python", "torch", "fastai", "metarisk_nb"}
    if method in ("learned", "paper", "presumption"):
        steps, w = history(r.key, tmp_path)
        assert len(steps) <= 16 and steps[0] == 0 and steps[-1] == 30 and w.shape == (len(steps), 100) and np.allclose(w.sum(1), 1, atol=1e-2)
        assert row.skipped == 0
    else:
        with pytest.raises(ValueError, match="learns no weights"): history(r.key, tmp_path)


def test_methods_differ_where_they_should():
    "Same start for all; without noise, co-teaching's schedule is plain training; warm is plain for the first half"
    state = {m: trained(of(m, steps=20))[0].model.state_dict() for m in recipes}
    same = lambda a, b: all(torch.allclose(v, state[b][k], atol=1e-6) for k, v in state[a].items())
    assert same("coteaching", "expected") and same("batch", "expected") and not same("gce", "expected") and not same("label_smoothing", "expected")
    assert not any(same(m, "expected") for m in (*CLEAN, *REPLAYS)) and not same("frozen", "replayed") and not same("replayed", "shuffled")
    lo, hi = (trained(Run(method="coteaching", noise=n, steps=20))[0].model.state_dict() for n in (0, .4))
    assert not all(torch.equal(v, hi[k]) for k, v in lo.items())


def test_coteaching_keeps_what_it_should(monkeypatch):
    kept = []
    monkeypatch.setattr(methods, "ICVaR", lambda a: kept.append(a) or (lambda losses: losses.mean()))
    trained(Run(method="coteaching", noise=.4, steps=50))
    assert kept[:11] == pytest.approx([1 - .36 * i / 10 for i in range(11)]) and kept[11:] == pytest.approx([.64] * 39)


@pytest.fixture
def used(monkeypatch):
    "Training step and weights of each batch that `BatchRisk` weighs"
    rows, after_loss = [], BatchRisk.after_loss
    def spy(self):
        risk = self.risk.at(self.n_step) if isinstance(self.risk, History) else self.risk
        rows.append((self.n_step, risk.weights(100).numpy()))
        after_loss(self)
    monkeypatch.setattr(BatchRisk, "after_loss", spy)
    return rows


def between(step): return np.stack([np.interp(step, CURRICULUM[0], w) for w in CURRICULUM[1].T])


def test_frozen_trains_on_the_last_weights_from_the_first_step(used):
    trained(Run(method="frozen", steps=20))
    assert len(used) == 20 and all(np.allclose(w, CURRICULUM[1][-1], atol=1e-6) for _, w in used)


def test_replayed_weights_lie_between_the_stored_ones(used):
    trained(Run(method="replayed", steps=20))
    assert [s for s, _ in used] == list(range(20)) and all(np.allclose(w, between(s), atol=1e-6) for s, w in used)


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_weights_are_dealt_to_other_ranks(used, seed):
    trained(Run(method="shuffled", steps=20, seed=seed))
    order = np.random.default_rng(seed).permutation(100)
    assert (order != np.arange(100)).any() and all(np.allclose(w, between(s)[order], atol=1e-6) for s, w in used)


def test_a_long_curriculum_keeps_its_ends():
    w = g.dirichlet(np.ones(7), 3)
    h = methods._schedule(np.array([0, 900, 5000]), w)
    assert len(h) == 256 and h.steps[0] == 0 and h.steps[-1] == 5000
    for s in (0, 5000): assert np.allclose(h.at(s).weights(7), w[0 if s == 0 else 2], atol=1e-6)


def test_replayed_runs_train_their_sources_once(tmp_path, monkeypatch):
    begun, train = [], engine.train_run
    monkeypatch.setattr(engine, "train_run", lambda r, path, *source: begun.append((r, source)) or train(r, path, *source))
    runs = [Run(method=m, **short) for m in ("replayed", "frozen", "shuffled")]
    df = sweep(runs, store=tmp_path)
    assert [r for r, _ in begun] == [runs[0].source, *runs[:1], runs[1].source, *runs[1:]] and list(df.method) == [r.method for r in runs]
    assert files(tmp_path) == sorted(f"{r.key}.json" for r, _ in begun)
    for r, source in begun:
        if r.source: assert all(np.array_equal(a, b) for a, b in zip(*source, history(r.source.key, tmp_path)))
        else: assert not source


def rows(s): return torch.cat([s.x.flatten(1), s.y[:, None]], 1)


def test_what_the_clean_methods_train_on():
    dls = {m: trained(of(m, steps=20, noise=.4)) for m in CLEAN}
    train, valid = (o.dataset for o in learner_of(of("joined", noise=.4))[0].dls.loaders[:2])
    assert not torch.equal(train.y, train.clean) and torch.equal(valid.y, valid.clean)
    assert torch.equal(rows(dls["joined"][0].dls.train_ds), torch.cat([rows(train), rows(valid)])) and dls["joined"][1].sizes == [1200] * 20
    assert torch.equal(rows(dls["clean_only"][0].dls.train_ds), rows(valid)) and dls["clean_only"][1].sizes == [200] * 20
    assert torch.equal(rows(dls["finetuned"][0].dls.train_ds), rows(valid)) and dls["finetuned"][1].sizes == [1000] * 15 + [200] * 5
    lrs = dls["finetuned"][1].lrs
    assert max(lrs[:15]) == pytest.approx(.1, rel=.01) and .0008 < max(lrs[15:]) <= .001


@pytest.mark.parametrize("noise", [0., .4])
@pytest.mark.parametrize("method", ["expected", "joined"])
def test_trace(tmp_path, method, noise):
    r = of(method, noise=noise, steps=40)
    row, rec = run(r, tmp_path), record(r.key, tmp_path)
    trace = rec["trace"]
    assert [o["step"] for o in trace] == list(range(4, 41, 4)) and trace[-1]["test_acc"] == pytest.approx(row.test_acc, rel=1e-5)
    assert row.best_acc == max(o["test_acc"] for o in trace)
    at = max(range(10), key=lambda i: (trace[i]["valid_acc"], -i))
    assert (row.selected_step, row.selected_acc) == (trace[at]["step"], trace[at]["test_acc"])
    if not noise: assert not any("wrong" in o for o in trace)
    else:
        s = learner_of(r)[0].dls.train_ds
        share = (s.y != s.clean).float().mean().item()
        for o in trace: assert len(o["wrong"]) == 20 and np.mean(o["wrong"]) == pytest.approx(share, abs=1e-5)
        assert trace[-1]["wrong"][0] > .8 and trace[-1]["wrong"][-1] < .2  # from the highest losses to the lowest


def test_the_first_of_equals_is_picked():
    trace = [dict(step=s, valid_acc=v, hyper_acc=100 - v, test_acc=t) for s, v, t in ((1, 50., 60.), (2, 70., 61.), (3, 70., 80.), (4, 50., 79.))]
    at_hyper = dict(hyper_best=50., hyper_step=1, hyper_step_acc=60.)
    assert files_of._picked(trace) == dict(best_acc=80., selected_acc=61., selected_step=2, **at_hyper) and files_of._picked([]) == {}


class Sealed:
    "A loader that says when it was looked at"
    def __init__(self, dl, seen, now): self.dl, self.seen, self.now = dl, seen, now
    def __getattr__(self, k):
        self.seen.append(self.now[-1])
        return getattr(self.dl, k)


@pytest.mark.parametrize("method", ["learned", "warm", "finetuned"])
def test_the_test_set_is_read_after_training(monkeypatch, method):
    seen, now, make, recipe = [], ["before"], train.learner_of, recipes[method]
    def sealed(*args):
        learn, mark = make(*args)
        learn.dls.loaders[3] = Sealed(learn.dls[3], seen, now)
        return learn, mark
    def fit(*args):
        now.append("training")
        recipe(*args)
        now.append("after")
    monkeypatch.setattr(train, "learner_of", sealed)
    monkeypatch.setitem(recipes, method, fit)
    rec = train_run(of(method, patience=5, **short))
    assert set(seen) == {"after"} and len(rec["trace"]) == 10


@pytest.mark.parametrize("noise,better", [(.4, "hyper_acc"), (0., "hyper_risk")])
def test_patience_counts_passes_without_improvement(monkeypatch, noise, better):
    told = iter([5., 6., 6., 4., 7., 7., 6.5, 6., 8.])  # the best are those of passes 2 and 5
    def scripted(*args, **kw):
        v = next(told)
        return dict(hyper_acc=v if better == "hyper_acc" else 0., hyper_risk=-v if better == "hyper_risk" else 0.)
    monkeypatch.setattr(methods, "measure", scripted)
    assert trained(Run(method="expected", noise=noise, steps=300, patience=3))[1].n == 80 and next(told) == 8.


def test_patience_ends_a_run_and_its_weights(tmp_path):
    r = Run(noise=.4, steps=600, patience=1)
    row, (steps, w) = run(r, tmp_path), history(r.key, tmp_path)
    assert row.steps_done < 600 and row.steps_done % 10 == 0 and steps[-1] == row.steps_done and len(w) == len(steps)
    assert all(o["step"] <= row.steps_done for o in record(r.key, tmp_path)["trace"])


@pytest.mark.parametrize("augment", [False, True])
def test_augment_moves_training_images_only(augment):
    learn, c = trained(Run(steps=10, augment=augment))
    own, shown = (set(map(tuple, o.flatten(1).tolist())) for o in (learn.dls.train_ds.x, torch.cat(c.images)))
    assert (len(shown & own) < 100) if augment else shown == own
    for dl in learn.dls.loaders[1:]:
        assert not any(isinstance(o, RandomCropFlip) for o in dl.after_batch.fs) and torch.equal(dl.one_batch()[0], dl.dataset.x[:500])


@pytest.mark.parametrize("method", ["expected", "presumption", "learned", "paper", "warm", "relabelled"])
def test_bfloat16_is_for_the_steps_alone(method, tmp_path, monkeypatch):
    "Layers give bfloat16 while training and float32 where a figure is measured; the figures are nearly those of float32"
    seen, forward = set(), torch.nn.functional.linear
    def linear(x, *args):
        out = forward(x, *args)
        seen.add((torch.is_grad_enabled(), out.dtype))
        return out
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        a, b = (run(Run(method=method, steps=100, noise=.2, precision=o), tmp_path) for o in ("float32", "bfloat16"))
    assert (True, torch.bfloat16) in seen and (False, torch.float32) in seen
    assert a.test_risk != b.test_risk and a.test_risk == pytest.approx(b.test_risk, rel=.1) and abs(a.test_acc - b.test_acc) < 3
    assert load_results("trial", tmp_path).precision.fillna("float32").tolist().count("bfloat16") == 1 and a.key != b.key


def test_a_bfloat16_run_gives_the_learner_back_as_it_was():
    learn, c = trained(Run(method="warm", steps=7, precision="bfloat16"))
    assert c.n == 7 and not hasattr(learn, "mixed_precision") and {p.dtype for p in learn.model.parameters()} == {torch.float32}


def test_an_error_in_a_bfloat16_run_leaves_no_autocast_open_for_the_next(monkeypatch):
    def boom(self): raise RuntimeError("boom")
    with monkeypatch.context() as m:
        m.setattr(BatchRisk, "after_loss", boom)
        with pytest.raises(RuntimeError, match="boom"): trained(Run(method="batch", steps=7, precision="bfloat16"))
    assert autocast_depth() == 0 and not torch.is_autocast_enabled("cpu")


def test_figures_are_those_of_fastai(tmp_path):
    r = Run(objective="trimmed:.1", **short)
    row, (learn, _) = run(r, tmp_path), trained(r)
    learn.metrics = [RiskMetric("trimmed:.1"), partial(_accuracy)]
    for i, split in enumerate(("valid", "hyper", "test"), 1):
        with learn.no_bar(): ce, risk, acc = learn.validate(ds_idx=i)
        assert risk == pytest.approx(row[f"{split}_risk"], rel=1e-5) and 100 * acc == pytest.approx(row[f"{split}_acc"], rel=1e-5)
    assert ce == pytest.approx(row.test_ce, rel=1e-5)


def _accuracy(pred, y): return (pred.argmax(1) == y).float().mean()


@two_jobs
def test_same_run_same_figures_and_the_callers_random_stream_stays(tmp_path):
    r = Run(**short)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    a = run(r, tmp_path / "a")
    assert torch.equal(torch.rand(3), want)
    torch.rand(7)
    b = run(r, tmp_path / "b")
    assert figures(a) == figures(b)
    assert record(r.key, tmp_path / "a")["weights"] == record(r.key, tmp_path / "b")["weights"]
    assert figures(sweep([r], jobs=2, store=tmp_path / "c").iloc[0]) == figures(a)  # in another process too
    assert figures(run(Run(**short, seed=1), tmp_path)) != figures(a)


def test_learners_of_earlier_runs_are_freed_by_their_weight(monkeypatch):
    "Digits weigh a third of a megabyte, so hundreds of runs need no collection; a run that follows a quarter of a gigabyte does"
    collected = []
    monkeypatch.setattr(train.gc, "collect", lambda: collected.append(1))
    monkeypatch.setattr(train._leftovers, "size", 0)
    for seed in range(3): train_run(Run(method="expected", steps=1, seed=seed))
    assert not collected and train._leftovers.size == 3 * 1400 * 64 * 4
    monkeypatch.setattr(train._leftovers, "limit", 1400 * 64 * 4)
    for seed in range(3): train_run(Run(method="expected", steps=1, seed=seed))
    with pytest.raises(ValueError): train_run(Run(bs=1001, steps=1))
    assert len(collected) == 4


# --- The store

def test_a_stored_run_is_not_trained_again(tmp_path, monkeypatch):
    r = Run(**short)
    a = run(r, tmp_path)
    monkeypatch.setattr(engine, "train_run", lambda *args: pytest.fail("trained again"))
    pd_equal = lambda x, y: x.to_dict() == y.to_dict()
    assert pd_equal(a, run(r, tmp_path)) and len(sweep([r, r], store=tmp_path)) == 1
    assert files(tmp_path) == [f"{r.key}.json"] and (tmp_path / r.study / f"{r.key}.json").stat().st_size < 20_000


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b.replace(b'"seconds": ', b'"seconds": 9'), lambda b: b"[1]",
                                    lambda b: b"\xff\xfe"], ids=["half", "empty", "changed", "other", "bytes"])
def test_a_damaged_file_is_named_and_made_again(tmp_path, damage):
    r, other = Run(**short, method="expected"), Run(**short, method="gce")
    a, _ = run(r, tmp_path), run(other, tmp_path)
    fn = tmp_path / r.study / f"{r.key}.json"
    fn.write_bytes(damage(fn.read_bytes()))
    with pytest.warns(UserWarning, match=f"{r.key}.json is damaged"): df = load_results(r.study, tmp_path)
    assert list(df.key) == [other.key]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        df = sweep([r, other], store=tmp_path)
    assert figures(df.iloc[0]) == figures(a)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_results(r.study, tmp_path)) == 2


def test_a_file_under_another_name_is_no_result(tmp_path):
    r = Run(**short, method="expected")
    run(r, tmp_path)
    fn = tmp_path / r.study / f"{r.key}.json"
    fn.rename(fn.with_name(f"{Run(**short, method='gce').key}.json"))
    with pytest.warns(UserWarning, match="is damaged"): assert len(load_results(r.study, tmp_path)) == 0


# --- Packs

def made_up_store(folder, n=4):
    runs = [Run(method="expected", seed=s) for s in range(n)]
    for r in runs: write_record(record_file(r, folder), made_up(r) | dict(figures=dict(test_acc=float(r.seed))))
    return runs, folder / "trial.jsonl"


def loose(folder): return [o for o in files(folder) if o.endswith(".json")]


def test_a_pack_holds_what_the_files_held(tmp_path):
    runs, pack = made_up_store(tmp_path)
    before = load_results("trial", tmp_path)
    pack_study(tmp_path / "trial")
    assert loose(tmp_path) == [] and len(pack.read_text().splitlines()) == 4
    assert load_results("trial", tmp_path).equals(before)
    assert all(is_stored(record_file(r, tmp_path)) and record(r.key, tmp_path)["figures"] == dict(test_acc=r.seed) for r in runs)
    assert plan(runs, tmp_path).done.sum() == 4
    text = pack.read_text()
    write_record(record_file(runs[0], tmp_path), made_up(runs[0]) | dict(figures=dict(test_acc=9.)))  # a newer one
    assert load_results("trial", tmp_path).test_acc.max() == 9
    pack_study(tmp_path / "trial")
    assert loose(tmp_path) == [] and len(set(text.splitlines()) - set(pack.read_text().splitlines())) == 1  # one line is another


def test_packed_runs_are_not_trained_again(tmp_path, monkeypatch):
    runs, _ = made_up_store(tmp_path)
    pack_study(tmp_path / "trial")
    begun = []
    monkeypatch.setattr(engine, "train_run", lambda r, *args: begun.append(r) or made_up(r))
    new = Run(method="expected", seed=7)
    assert len(sweep([*runs, new], store=tmp_path)) == 5 and begun == [new] and loose(tmp_path) == [f"{new.key}.json"]


def test_a_damaged_line_of_a_pack_is_named_and_made_again(tmp_path, monkeypatch):
    runs, pack = made_up_store(tmp_path)
    pack_study(tmp_path / "trial")
    lines = pack.read_text().splitlines()
    hurt = next(r for r in runs if r.key in lines[1])
    lines[1] = lines[1].replace('"seconds": 1.0', '"seconds": 2.0')
    pack.write_text("\n".join(["<<<<<<< ours", *lines]))
    with pytest.warns(UserWarning) as said: df = load_results("trial", tmp_path)
    said = [str(o.message) for o in said]
    assert len(df) == 3 and len(said) == 2 and said[0].startswith(f"line 1 of {pack} is no record") and said[1].startswith(f"{hurt.key} in {pack} is damaged")
    monkeypatch.setattr(engine, "train_run", lambda r, *args: made_up(r))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep(runs, store=tmp_path)
        assert loose(tmp_path) == [f"{hurt.key}.json"]
        pack_study(tmp_path / "trial")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_results("trial", tmp_path)) == len(pack.read_text().splitlines()) == 4


def test_a_file_that_is_damaged_stays_where_it_is(tmp_path):
    runs, pack = made_up_store(tmp_path)
    fn = record_file(runs[2], tmp_path)
    fn.write_text("{")
    with pytest.warns(UserWarning, match="is damaged"): pack_study(tmp_path / "trial")
    assert loose(tmp_path) == [fn.name] and len(pack.read_text().splitlines()) == 3


def test_a_pack_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    runs, pack = made_up_store(tmp_path)
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError): pack_study(tmp_path / "trial")
    assert len(loose(tmp_path)) == 4 and not pack.exists() and len(load_results("trial", tmp_path)) == 4


def test_the_results_of_the_studies_are_packed():
    loose = subprocess.run(["git", "ls-files", "nbs/results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert [o for o in loose if o.count("/") > 2 and "/cost/" not in o] == []


def test_results_have_the_columns_that_studies_read(tmp_path):
    sweep([Run(**short, method=m, meta=dict(every=5) if m == "learned" else {}) for m in ("expected", "learned")], store=tmp_path)
    df = load_results("trial", tmp_path)
    want = "study data arch objective method noise noise_kind clean_valid seed steps test_risk test_acc seconds key".split()
    assert set(want) | FIGURES <= set(df) and set(want) <= set(load_results("none", tmp_path))
    assert df.set_index("method").meta_every.to_dict() == {"expected": pytest.approx(float("nan"), nan_ok=True), "learned": 5}
    assert df.noise.dtype == df.test_acc.dtype == float and df.seed.dtype == int and df.clean_valid.dtype == bool
    assert {"meta_lr", "meta_bs", "meta_loss", "meta_floor", "meta_knots", "meta_n_inner"} <= set(df)


ALL = [Run(method=m, noise=.4, steps=30, seed=s) for m in ("expected", "gce", "coteaching") for s in range(2)]


def slow_sweep(store, log):
    "Six runs, each of which says that it begins and takes half a second more"
    real = engine.train_run
    def slow(r, *args):
        with open(log, "a") as f: f.write(r.key + "\n")
        time.sleep(.5)
        return real(r, *args)
    engine.train_run = slow
    sweep(ALL, store=store)


def test_two_sweeps_at_once_share_the_work(tmp_path):
    log = tmp_path / "log"
    for status, out in [o.wait() for o in [Forked(slow_sweep, tmp_path / "s", log, out=tmp_path / f"out{i}") for i in range(2)]]: assert status == 0, out
    assert sorted(log.read_text().split()) == sorted(r.key for r in ALL)  # each run was trained once
    assert files(tmp_path / "s") == sorted(f"{r.key}.json" for r in ALL)
    want = run(ALL[0], tmp_path / "alone")
    assert figures(run(ALL[0], tmp_path / "s")) == figures(want)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    log, store = tmp_path / "log", tmp_path / "s"
    p = Forked(slow_sweep, store, log, out=tmp_path / "out")
    wait_for(lambda: log.exists() and len(log.read_text().split()) == 3)  # in the middle of the third run
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    begun = log.read_text().split()
    assert files(store) == sorted(f"{o}.json" for o in begun[:-1]) and begun == [r.key for r in ALL[:len(begun)]]
    status, out = Forked(slow_sweep, store, log, out=tmp_path / "out").wait()
    assert status == 0, out
    assert log.read_text().split() == begun + begun[-1:] + [r.key for r in ALL[len(begun):]]
    assert files(store) == sorted(f"{r.key}.json" for r in ALL)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    r, write = Run(**short, method="expected"), Path.write_text
    def full(self, text):
        write(self, text[:50])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"): run(r, tmp_path)
    assert files(tmp_path) == []
    monkeypatch.undo()
    run(r, tmp_path)
    assert files(tmp_path) == [f"{r.key}.json"]


def made_up(r, *args): return dict(key=r.key, config=r.config, figures={}, seconds=1., trace=[])


def full_sweep(runs, store, size, checked):
    "A sweep on a disk that takes no file larger than `size`, looked at before each training or not; says what it trains"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if not checked: engine.check_room = lambda fn: None
    real = engine.train_run
    engine.train_run = lambda r, *args: print("BEGUN", r) or real(r, *args)
    try: sweep(runs, store=store)
    except StoreError as e: sys.exit(str(e))


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
@pytest.mark.parametrize("size,checked", [(10_000, True), (1000, False)], ids=["before the training", "after the training"])
def test_a_full_disk_costs_only_what_it_could_not_hold(tmp_path, size, checked):
    done, lost, left = (Run(method=m, **short) for m in ("expected", "gce", "batch"))
    run(done, tmp_path)
    raw = (tmp_path / "trial" / f"{done.key}.json").read_bytes()
    status, out = OnTerminal(full_sweep, [done, lost, left], tmp_path, size, checked).wait()
    assert status == 1 and out.count("BEGUN") == (not checked) and str(left) not in out, out
    line, way_out = out.replace("\r\n", "\n").strip().split("\n")[-2:]
    assert line == f"{lost}: its result cannot be written to {record_file(lost, tmp_path)}: File too large"
    assert way_out.startswith("Nothing more is trained. 1 of 3 runs are stored and remain so: make room") and "--store" in way_out
    assert files(tmp_path) == [f"{done.key}.json"] and (tmp_path / "trial" / f"{done.key}.json").read_bytes() == raw
    sweep([done, lost], store=tmp_path)
    assert files(tmp_path) == sorted(f"{o.key}.json" for o in (done, lost))


def full_disk(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("obstacle", ["check", "write", "folder", "locks"])
def test_a_sweep_stops_where_nothing_can_be_stored(tmp_path, monkeypatch, obstacle):
    "A disk that is full before or after the training; a file where a folder should be"
    first, *rest = ALL[:4]
    if obstacle != "folder": write_record(record_file(first, tmp_path), made_up(first))
    else: (tmp_path / "trial").touch()
    if obstacle == "locks": (tmp_path / "trial" / ".locks").touch()
    begun = []
    monkeypatch.setattr(engine, "train_run", lambda r, *args: begun.append(r) or made_up(r))
    if obstacle in ("check", "write"): monkeypatch.setattr(Path, dict(check="write_bytes", write="write_text")[obstacle], full_disk)
    stopped = first if obstacle == "folder" else rest[0]
    with pytest.raises(StoreError) as e: sweep(ALL[:4], store=tmp_path)
    assert begun == rest[:1] * (obstacle == "write")
    what, way_out = str(e.value).splitlines()
    assert what.startswith(f"{stopped}: its result cannot be written to {record_file(stopped, tmp_path)}: ") and "the same call trains the rest" in way_out
    monkeypatch.undo()
    assert obstacle == "folder" or read_record(record_file(first, tmp_path)) == json.loads(json.dumps(made_up(first)))


def test_a_worker_of_a_cluster_says_that_its_disk_is_full(tmp_path, monkeypatch):
    said = SimpleNamespace(returncode=3, stderr=b"a warning\nits result cannot be written\n")
    monkeypatch.setattr(engine.subprocess, "run", lambda *args, **kw: said)
    error = engine._attempt_apart(ALL[0], tmp_path, None, True)[1]
    assert isinstance(error, StoreError) and str(error) == "its result cannot be written"
    said.returncode = 1
    assert engine._attempt_apart(ALL[0], tmp_path, None, True) == (ALL[0], "its result cannot be written")


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=two_jobs)])
def test_a_failing_run_is_named_and_loses_no_other(tmp_path, jobs):
    good, bad = [Run(**short, method=m) for m in ("expected", "gce")], Run(**short, method="batch", bs=1001)
    with pytest.raises(RuntimeError, match="1 of 3 runs failed:\n.*batch.*bs must be at most 1000"):
        sweep([good[0], bad, good[1]], jobs=jobs, store=tmp_path)
    assert files(tmp_path) == sorted(f"{o.key}.json" for o in good)
    assert torch.get_num_threads() == 1


def test_the_bar_names_what_runs_now(tmp_path, monkeypatch):
    named, train = [], engine.train_run
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(engine.fp.ConsoleProgressBar, "on_update", lambda self, val, text: named.append((val, text)))
    monkeypatch.setattr(engine.fp, "progress_bar", engine.fp.ConsoleProgressBar)
    seen = {}
    monkeypatch.setattr(engine, "train_run", lambda r, *args: seen.setdefault(r, named[-1]) and train(r, *args))
    sweep(ALL[:3], store=tmp_path)
    assert [seen[r][0] for r in ALL[:3]] == [0, 1, 2] and all(str(r) in seen[r][1] for r in ALL[:3])


def test_store_is_beside_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_folder(None) == Path("results")
    (tmp_path / "nbs").mkdir()
    assert store_folder(None) == Path("nbs/results") and store_folder("x") == Path("x")


# --- A cluster

def locked(p):
    "Does a process have the lock of a run open?"
    try: return any(o.path.endswith(".lock") and ".locks" in o.path for o in p.open_files())
    except psutil.Error: return False  # it has just ended


def at_work(pids):
    "Those of the workers that have a run at work, in a process of its own"
    return [p for p in pids if any(map(locked, psutil.Process(p).children(recursive=True)))]


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_loses_no_run(tmp_path):
    LocalCluster = pytest.importorskip("dask.distributed").LocalCluster
    runs, store = [Run(method=m, noise=.4, steps=100, seed=s) for m in ("expected", "warm") for s in range(2)], tmp_path / "s"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path) as cluster, ThreadPoolExecutor(1) as pool:
        pids = [o.pid for o in cluster.workers.values()]
        def kill():
            wait_for(lambda: files(store) and at_work(pids))
            os.kill(pid := at_work(pids)[0], signal.SIGKILL)
            return pid, len(files(store))
        killed = pool.submit(kill)
        df = sweep(runs, store=store, scheduler=cluster.scheduler_address)
        pid, done = killed.result()
        assert 1 <= done < len(runs) and not psutil.pid_exists(pid)
    assert files(store) == sorted(f"{r.key}.json" for r in runs) and list(df.key) == [r.key for r in runs]
    alone = sweep(runs, store=tmp_path / "alone")
    assert [figures(o) for _, o in df.iterrows()] == [figures(o) for _, o in alone.iterrows()]


def test_a_store_that_the_workers_do_not_share_is_named(tmp_path, monkeypatch):
    attempt = engine.attempt
    monkeypatch.setattr(engine, "attempt", lambda r, store, *args: attempt(r, tmp_path / "elsewhere", *args))
    with pytest.raises(RuntimeError, match=f"1 of 1 runs failed:\n.*trained, but not in {tmp_path / 'here'}: do all workers see this folder"):
        sweep([Run(**short, method="expected")], store=tmp_path / "here")


@pytest.mark.parametrize("bad", ["host:8786", "http://host:8786", "tcp://", "", 8786])
def test_a_bad_scheduler_is_refused_by_name(tmp_path, bad):
    with pytest.raises(ValueError, match="scheduler must be the address of a Dask scheduler, such as 'tcp://host:8786', got "):
        sweep([Run(**short)], store=tmp_path, scheduler=bad)
    assert files(tmp_path) == []


def test_dask_is_asked_for_where_it_is_absent(tmp_path, monkeypatch):
    for o in ("dask", "dask.distributed", "distributed"): monkeypatch.setitem(sys.modules, o, None)
    with pytest.raises(ImportError, match=r"pip install 'metarisk_nb\[cluster\]'"): sweep([Run(**short)], store=tmp_path, scheduler="tcp://host:8786")
