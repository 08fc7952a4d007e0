"Runs, their keys, the store and sweeps"
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import no_random

from metarisk_nb import study
from metarisk_nb.callback import MetaRisk, RiskMetric
from metarisk_nb.study import *

short = dict(steps=30, noise=.4)
FIGURES = {f"{s}_{k}" for s in ("valid", "hyper", "hyper_clean", "test") for k in ("risk", "acc", "ce")}


def python(code, *args, **kwargs):
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, **kwargs)


def files(store): return sorted(o.name for o in Path(store).rglob("*") if o.is_file() and o.suffix != ".lock")


def figures(row): return row[sorted(FIGURES)].to_dict()


# --- Run and its key

def test_key_is_the_same_in_another_process():
    code = "from metarisk_nb.study import Run; print(Run(noise=.4, meta={'every': 5}).key)"
    out = python(code, env={**os.environ, "PYTHONHASHSEED": "7"}).communicate()[0]
    assert out.split()[-1] == Run(noise=.4, meta={"every": 5}).key


def test_key_does_not_depend_on_spelling():
    a = Run(noise=1, seed=np.int64(3), meta={"floor": 1, "every": 5})
    assert a == Run(noise=np.float64(1), seed=3, meta=(("every", 5), ("floor", 1.))) and a.key == Run(noise=1., seed=3, meta={"every": 5, "floor": 1.}).key
    assert hash(a) == hash(Run(noise=1., seed=3, meta={"every": 5, "floor": 1.}))


@pytest.mark.parametrize("change", [dict(study="b"), dict(data="fashion_mini"), dict(arch="mlp:64"), dict(objective="cvar"), dict(method="paper"),
                                    dict(noise=.1), dict(noise_kind="pairflip"), dict(clean_valid=True), dict(seed=1), dict(steps=601), dict(bs=50),
                                    dict(lr=.2), dict(div=10), dict(div_final=1e3), dict(mom=.8), dict(wd=0), dict(meta=dict(every=7))], ids=str)
def test_every_setting_counts_in_the_key(change): assert Run(**change).key != Run().key


def test_a_changed_default_changes_the_key(monkeypatch):
    class Other(MetaRisk):
        def __init__(self, risk="expected", n_inner=1, every=11, **kwargs): super().__init__(risk, n_inner, every, **kwargs)
    old, plain, given = Run().key, Run(method="expected").key, Run(meta=dict(every=10, meta_lr=.1)).key
    monkeypatch.setitem(study._meta_makers, "learned", Other)
    assert Run().settings["every"] == 11 and Run().key != old
    assert Run(method="expected").key == plain and Run(meta=dict(every=10, meta_lr=.1)).settings == dict(Run().settings, every=10, meta_lr=.1)
    assert Run(meta=dict(every=10, meta_lr=.1)).key == given
    monkeypatch.undo()
    monkeypatch.setattr(study, "rules", study.rules + 1)
    assert Run().key != old


def test_settings_are_all_arguments_of_the_callback():
    import inspect
    names = set(inspect.signature(MetaRisk).parameters) - {"risk", "meta_dl", "loss_func"}
    for method in ("learned", "paper"):
        assert set(Run(method=method).settings) == names
        json.dumps(Run(method=method).config)
    s = Run(method="paper").settings
    assert (s["n_inner"], s["every"], s["meta_lr"], s["knots"], s["meta_bs"], s["fresh"]) == (5, 1, 1e-3, None, 2000, True)
    assert Run(method="expected").settings == {} and Run(method="paper", meta=dict(n_inner=2)).settings["n_inner"] == 2


@pytest.mark.parametrize("name,bad", [("data", "mnist"), ("data", None), ("method", "magic"), ("method", ["learned"]), ("objective", "cva"),
                                      ("objective", "cvar:2"), ("objective", len), ("noise", 1.1), ("noise", -.1), ("noise", float("nan")), ("noise", "half"),
                                      ("noise_kind", "pair"), ("seed", -1), ("seed", .5), ("steps", 0), ("steps", 10.), ("steps", True), ("bs", 1), ("lr", 0),
                                      ("lr", -1), ("mom", 1), ("wd", float("nan")), ("arch", "vgg"), ("arch", "cnn:8-8"), ("arch", None), ("study", "../x"),
                                      ("study", ""), ("meta", dict(evry=1)), ("meta", dict(meta_dl=1)), ("meta", dict(meta_loss=len))])
def test_bad_values_are_refused_by_name(name, bad):
    with pytest.raises(ValueError, match=name): Run(**{name: bad})


def test_values_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="meta is for method learned or paper, got method 'batch'"): Run(method="batch", meta=dict(every=5))
    with pytest.raises(ValueError, match="every must be"): Run(meta=dict(every=0))
    for m in ("oracle", "coteaching"):
        with pytest.raises(ValueError, match="needs some right labels"): Run(method=m, noise=1, noise_kind="pairflip")
    with pytest.raises(ValueError, match="bs must be at most 1000"): study._train(Run(bs=1001, steps=2))


def test_share_of_wrong_labels():
    assert Run(noise=.5).wrong == pytest.approx(.45) and Run(noise=.5, noise_kind="pairflip").wrong == .5 and Run().wrong == 0
    learn, _ = study._learner(Run(noise=.5))
    s = learn.dls.train_ds
    assert (s.y != s.clean).float().mean().item() == pytest.approx(.45, abs=.05)


# --- Data

def test_splits():
    a, b = (study._learner(Run(noise=.4, seed=s))[0].dls for s in (0, 1))
    assert [len(o.dataset) for o in a] == [1000, 200, 200, 397]
    assert torch.equal(a[3].dataset.y, b[3].dataset.y) and not torch.equal(a[0].dataset.x, b[0].dataset.x)
    rows = [set(map(tuple, o.dataset.x.flatten(1).tolist())) for o in a]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 1797  # no image twice, none in two splits
    assert [len(o.dataset) for o in study._learner(Run(data="fashion_mini"))[0].dls] == [10800, 600, 600, 10000]
    for kw in (dict(clean_valid=True), {}):
        d = study._learner(Run(noise=.5, **kw))[0].dls
        assert [bool((o.dataset.y != o.dataset.clean).any()) for o in d] == [True, not kw, True, False]


@pytest.fixture
def images(tmp_path):
    "A folder of CIFAR-10's layout with 4 + 2 images a class"
    g = np.random.default_rng(0)
    for part, n in (("train", 4), ("test", 2)):
        for c in study.cifar10_classes:
            (tmp_path / part / c).mkdir(parents=True)
            for i in range(n): PIL.Image.fromarray(g.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / part / c / f"{i}.png")
    return tmp_path


def test_cifar10_is_read_once_and_kept(images, monkeypatch, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    r = Run(data="cifar10", arch="cnn:4-4/2-2", steps=2, bs=8)
    study._arrays.cache_clear()
    a = run(r, store, path=images)
    study._arrays.cache_clear()
    monkeypatch.setattr(study, "cifar10_arrays", lambda path: pytest.fail("decoded again"))
    monkeypatch.setenv("METARISK_DATA", str(images))
    b = run(r, tmp_path_factory.mktemp("other"))
    assert figures(a) == figures(b) and a.data_mark == b.data_mark and not list(images.glob(".*"))


def test_cifar10_cut_is_averaged(images, monkeypatch):
    monkeypatch.setattr(study, "_first_of_each", lambda y, n, f=study._first_of_each: f(y, 3))
    (x, y), (tx, ty) = study._cifar10_cut(images)
    assert x.shape == (30, 3, 16, 16) and tx.shape == (20, 3, 16, 16) and np.bincount(y).tolist() == [3] * 10
    full = study._cifar10(images)[1][0]
    assert np.allclose(tx, torch.nn.functional.avg_pool2d(torch.tensor(full).float(), 2).numpy())


def test_arrays_that_cannot_be_kept_are_still_read(images, monkeypatch):
    def full(f, **kw):
        f.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(study.np, "savez", full)
    with pytest.warns(UserWarning, match="could not be written"): (x, _), _ = study._cifar10(images)
    assert x.shape == (40, 3, 32, 32) and sorted(o.name for o in images.iterdir()) == ["test", "train"]


def test_missing_cifar10_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="download=True"): run(Run(data="cifar10", steps=2), tmp_path, path=tmp_path / "no")


# --- Training

class Counter(Callback):
    "Optimizer steps, learning rates and shares of training done"
    def __init__(self): self.n, self.lrs, self.pcts, self.momenta = 0, [], [], set()
    def before_step(self):
        h = self.opt.hypers[0]
        self.n, self.lrs, self.pcts = self.n + 1, [*self.lrs, h["lr"]], [*self.pcts, self.pct_train]
        self.momenta.add(h["mom"])


def trained(r):
    with no_random(r.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn, _ = study._learner(r)
        learn.add_cb(c := Counter())
        with learn.no_bar(), learn.no_logging(): recipes[r.method](learn, r)
    return learn, c


@pytest.mark.parametrize("method", recipes)
@pytest.mark.parametrize("steps", [1, 7, 37])
def test_exactly_so_many_steps(method, steps): assert trained(Run(method=method, steps=steps, noise=.4))[1].n == steps


def test_schedule_spreads_over_exactly_the_steps():
    learn, c = trained(Run(method="expected", steps=200))
    assert c.lrs[0] == pytest.approx(.005) and max(c.lrs) == pytest.approx(.1) and 5e-6 <= c.lrs[-1] < 2e-5 and c.momenta == {.9}
    assert c.pcts == pytest.approx([i / 200 for i in range(200)])
    assert all(learn.opt.state[p].get("do_wd", True) for ps in learn.opt.param_lists for p in ps)
    _, c = trained(Run(method="warm", steps=201))
    assert [i for i, lr in enumerate(c.lrs) if lr == pytest.approx(.005)] == [0, 100]  # a new one-cycle at half time


def test_weight_decay_is_coupled_and_on_every_parameter():
    learn, _ = trained(Run(method="expected", steps=1, wd=.5, mom=0, lr=.1, div=1))
    with no_random(0): start = study._learner(Run())[0].model.state_dict()
    free, _ = trained(Run(method="expected", steps=1, wd=0, mom=0, lr=.1, div=1))
    for (n, p), q in zip(learn.model.named_parameters(), free.model.parameters()):
        assert torch.allclose(q - p, .1 * .5 * start[n], atol=1e-6), n


@pytest.mark.parametrize("method", recipes)
def test_each_method_trains(method, tmp_path):
    r = Run(method=method, **short)
    row = run(r, tmp_path)
    assert row.test_acc > 30 and row.seconds > 0 and all(np.isfinite(row[o]) for o in FIGURES)
    rec = record(r.key, tmp_path)
    assert [o["step"] for o in rec["trace"]] == list(range(3, 31, 3))
    assert rec["trace"][-1]["hyper_acc"] == row.hyper_acc and rec["trace"][-1]["valid_acc"] == row.valid_acc
    assert set(rec["versions"]) == {"python", "torch", "fastai", "metarisk_nb"}
    if method in ("learned", "paper"):
        steps, w = history(r.key, tmp_path)
        assert len(steps) <= 12 and steps[0] == 0 and steps[-1] == 30 and w.shape == (len(steps), 100) and np.allclose(w.sum(1), 1, atol=1e-2)
        assert row.skipped == 0
    else:
        with pytest.raises(ValueError, match="learns no weights"): history(r.key, tmp_path)


def test_methods_differ_where_they_should():
    "Same start for all; without noise, co-teaching's schedule is plain training; warm is plain for the first half"
    state = {m: trained(Run(method=m, steps=20))[0].model.state_dict() for m in recipes}
    same = lambda a, b: all(torch.allclose(v, state[b][k], atol=1e-6) for k, v in state[a].items())
    assert same("coteaching", "expected") and same("batch", "expected") and not same("gce", "expected") and not same("label_smoothing", "expected")
    lo, hi = (trained(Run(method="coteaching", noise=n, steps=20))[0].model.state_dict() for n in (0, .4))
    assert not all(torch.equal(v, hi[k]) for k, v in lo.items())


def test_coteaching_keeps_what_it_should(monkeypatch):
    kept = []
    monkeypatch.setattr(study, "ICVaR", lambda a: kept.append(a) or (lambda losses: losses.mean()))
    trained(Run(method="coteaching", noise=.4, steps=50))
    assert kept[:11] == pytest.approx([1 - .36 * i / 10 for i in range(11)]) and kept[11:] == pytest.approx([.64] * 39)


def test_figures_are_those_of_fastai(tmp_path):
    r = Run(objective="trimmed:.1", **short)
    row, (learn, _) = run(r, tmp_path), trained(r)
    learn.metrics = [RiskMetric("trimmed:.1"), study.partial(_accuracy)]
    for i, split in enumerate(("valid", "hyper", "test"), 1):
        with learn.no_bar(): ce, risk, acc = learn.validate(ds_idx=i)
        assert risk == pytest.approx(row[f"{split}_risk"], rel=1e-5) and 100 * acc == pytest.approx(row[f"{split}_acc"], rel=1e-5)
    assert ce == pytest.approx(row.test_ce, rel=1e-5)


def _accuracy(pred, y): return (pred.argmax(1) == y).float().mean()


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


# --- The store

def test_a_stored_run_is_not_trained_again(tmp_path, monkeypatch):
    r = Run(**short)
    a = run(r, tmp_path)
    monkeypatch.setattr(study, "_train", lambda *args: pytest.fail("trained again"))
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


def test_results_have_the_columns_that_studies_read(tmp_path):
    sweep([Run(**short, method=m, meta=dict(every=5) if m == "learned" else {}) for m in ("expected", "learned")], store=tmp_path)
    df = load_results("trial", tmp_path)
    want = "study data arch objective method noise noise_kind clean_valid seed steps test_risk test_acc seconds key".split()
    assert set(want) | FIGURES <= set(df) and set(want) <= set(load_results("none", tmp_path))
    assert df.set_index("method").meta_every.to_dict() == {"expected": pytest.approx(float("nan"), nan_ok=True), "learned": 5}
    assert df.noise.dtype == df.test_acc.dtype == float and df.seed.dtype == int and df.clean_valid.dtype == bool
    assert {"meta_lr", "meta_bs", "meta_loss", "meta_floor", "meta_knots", "meta_n_inner"} <= set(df)


WORK = """
import sys, time, signal, os
from pathlib import Path
from metarisk_nb import study
from metarisk_nb.study import *
store, log = sys.argv[1:]
train = study._train
def slow(r, path=None):
    with open(log, 'a') as f: f.write(r.key + '\\n')
    time.sleep(.5)
    return train(r, path)
study._train = slow
print('ready', flush=True)
sweep([Run(method=m, noise=.4, steps=30, seed=s) for m in ('expected', 'gce', 'coteaching') for s in range(2)], store=store)
"""
ALL = [Run(method=m, noise=.4, steps=30, seed=s) for m in ("expected", "gce", "coteaching") for s in range(2)]


def wait_for(ok, seconds=120):
    end = time.monotonic() + seconds
    while not ok():
        assert time.monotonic() < end, "waited too long"
        time.sleep(.02)


def test_two_sweeps_at_once_share_the_work(tmp_path):
    log = tmp_path / "log"
    two = [python(WORK, tmp_path / "s", log) for _ in range(2)]
    for o in two:
        out = o.communicate(timeout=300)[0]
        assert o.returncode == 0, out
    assert sorted(log.read_text().split()) == sorted(r.key for r in ALL)  # each run was trained once
    assert files(tmp_path / "s") == sorted(f"{r.key}.json" for r in ALL)
    want = run(ALL[0], tmp_path / "alone")
    assert figures(run(ALL[0], tmp_path / "s")) == figures(want)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    log, store = tmp_path / "log", tmp_path / "s"
    p = python(WORK, store, log)
    wait_for(lambda: log.exists() and len(log.read_text().split()) == 3)  # in the middle of the third run
    p.send_signal(signal.SIGKILL)
    p.communicate()
    begun = log.read_text().split()
    assert files(store) == sorted(f"{o}.json" for o in begun[:-1]) and begun == [r.key for r in ALL[:len(begun)]]
    q = python(WORK, store, log)
    out = q.communicate(timeout=300)[0]
    assert q.returncode == 0, out
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


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_run_is_named_and_loses_no_other(tmp_path, jobs):
    good, bad = [Run(**short, method=m) for m in ("expected", "gce")], Run(**short, method="batch", bs=1001)
    with pytest.raises(RuntimeError, match="1 of 3 runs failed:\n.*batch.*bs must be at most 1000"):
        sweep([good[0], bad, good[1]], jobs=jobs, store=tmp_path)
    assert files(tmp_path) == sorted(f"{o.key}.json" for o in good)
    assert torch.get_num_threads() == 1


def test_the_bar_names_what_runs_now(tmp_path, monkeypatch):
    named, train = [], study._train
    monkeypatch.setattr(study.fp.ConsoleProgressBar, "on_update", lambda self, val, text: named.append((val, text)))
    monkeypatch.setattr(study.fp, "progress_bar", study.fp.ConsoleProgressBar)
    seen = {}
    monkeypatch.setattr(study, "_train", lambda r, path=None: seen.setdefault(r, named[-1]) and train(r, path))
    sweep(ALL[:3], store=tmp_path)
    assert [seen[r][0] for r in ALL[:3]] == [0, 1, 2] and all(str(r) in seen[r][1] for r in ALL[:3])


def test_store_is_beside_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study._store(None) == Path("results")
    (tmp_path / "nbs").mkdir()
    assert study._store(None) == Path("nbs/results") and study._store("x") == Path("x")
