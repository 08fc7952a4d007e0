"Which runs make up a study, what they cost, and the command that trains them"
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarisk_nb.callback import MetaRisk
from metarisk_nb.lab import datasets, timing
from metarisk_nb.lab import plan as mod
from metarisk_nb.lab import sweep as engine
from metarisk_nb.lab.cli import main
from metarisk_nb.lab.datasets import arrays_of, study_data
from metarisk_nb.lab.methods import recipes
from metarisk_nb.lab.plan import *
from metarisk_nb.lab.rivals import chosen
from metarisk_nb.lab.run import Run
from metarisk_nb.lab.scales import *
from metarisk_nb.lab.scales import _kept
from metarisk_nb.lab.store import load_results, record_file, write_record
from metarisk_nb.lab.sweep import sweep
from metarisk_nb.lab.timing import kind_of, time_kinds
from metarisk_nb.lab.train import learner_of

COMMAND = Path(sys.executable).with_name("metarisk_study")
COUNTS = dict(cpu=dict(risk=5*6*5 + 3*3*4, noise=5*48 + 5*3*2 + 5*2*3 + 3*2 + 3*2*6, shift=3*4*2 + 3*4 + 3*2*2, fails=5*2 + 5*2*6 + 1 + 2,
                       harmless=5*(10*2 + 7*2 + 17*10 + 3), human=3*2*(2 + 3*10), cooled=2*5*6*4, fresh=5*(10*2 + 7*2 + 17*10), suspects=5*6*9 + 3*3*9 + 5*4,
                       rivals=5*(7*(9*3 + 3 + 2 + 2) + 2*(11*3 + 3 + 2 + 2) + 2*2*3), second=3*2*(2 + 3*10), finetune=3*(3*4 + 3*3) + 2*9 + 5*(2*(2 + 3 + 9) + 3)),
              paper=dict(risk=5*6*5, noise=5*48 + 5*3*3 + 5), smoke=dict(risk=5, noise=5))  # seeds x rows x methods of each block


def command(*args, **kwargs):
    return subprocess.run([str(COMMAND), *map(str, args)], capture_output=True, text=True, timeout=1800, env={**os.environ, "PYTHONWARNINGS": "ignore"}, **kwargs)


# --- Runs

@pytest.mark.parametrize("scale", COUNTS)
def test_runs_of_a_study(scale):
    assert set(scales[scale]) == set(COUNTS[scale])
    for name, n in COUNTS[scale].items():
        runs = study_runs(name, scale)
        assert len(runs) == len({r.key for r in runs}) == n and {r.study for r in runs} == {name}
        assert [r.seed for r in runs] == sorted(r.seed for r in runs)  # the first seed of all settings first


def test_noise_study_without_clean_data():
    "4 rates of 6 methods, the oracle on 3, the replayed on 2; with clean data 3 rates of 3 methods and 2 of 3"
    runs = study_runs("noise", "paper", 1)
    runs = [r for r in runs if r.valid_share is None]
    count = lambda **kw: sum(all(getattr(r, k) == v for k, v in kw.items()) for r in runs)
    assert [count(clean_valid=c) for c in (False, True)] == [4*6 + 3 + 2*3, 3*3 + 2*3]
    assert count(method="oracle") == 3 and count(method="learned") == 4 + 3 and count(method="shuffled") == count(method="joined") == 2
    assert count(noise=0.) == 6 and not count(noise=0., method="oracle")


@pytest.mark.parametrize("scale,name", [("cpu", "noise"), ("paper", "noise")])
def test_replayed_runs_have_their_source_in_the_study(scale, name):
    runs = study_runs(name, scale)
    assert {r.source for r in runs if r.source} <= set(runs) and any(r.source for r in runs)


def test_seeds_override_those_of_the_scale():
    one, two = (study_runs("risk", seeds=n) for n in (1, 2))
    assert len(one) == 6*5 + 3*4 and two == one + [replace(r, seed=1) for r in one]
    assert set(two) < set(study_runs("risk"))  # the same runs, so the store of the scale serves


@pytest.mark.parametrize("kwargs,says", [
    (dict(study="riks"), "study must be one of risk, noise, shift, fails, harmless, fresh, rivals, human, second, suspects, finetune, cooled, got 'riks'"), (dict(study="shift", scale="paper"), "study must be one of risk, noise, got 'shift'"),
    (dict(study="risk", scale="gpu"), "scale must be one of cpu, paper, smoke, got 'gpu'"), (dict(study="risk", seeds=0), "seeds must be a whole number of at least 1, got 0"),
    (dict(study="risk", seeds=1.5), "seeds must be .*, got 1.5"), (dict(study="risk", seeds="3"), "seeds must be .*, got '3'")], ids=str)
def test_bad_arguments_are_refused_by_name(kwargs, says):
    with pytest.raises(ValueError, match=says): study_runs(**kwargs)


def test_paper_scale_is_the_papers_setting():
    runs = [r for name in scales["paper"] for r in study_runs(name, "paper")]
    assert {(r.data, r.arch, r.steps, r.bs, r.mom, r.wd, r.augment, r.patience) for r in runs} == {("cifar10", "resnet18_32", 20_000, 100, .9, 5e-4, True, 5)}
    assert {(r.lr, r.lr / r.div, r.lr / r.div_final) for r in runs} == {(.1, .005, 5e-6)}
    assert all({r.seed for r in runs if r.method == m} == set(range(5)) for m in {r.method for r in runs})
    for r in runs:
        if r.method != "paper": continue
        s = {k: r.settings[k] for k in ("n_inner", "meta_bs", "meta_lr", "every", "fresh", "knots", "floor", "warmup", "meta_loss", "method")}
        assert s == dict(n_inner=5, meta_bs=2000, meta_lr=1e-3, every=1, fresh=True, knots=None, floor=0, warmup=0, meta_loss="own", method="exact")
    assert {r.noise for r in runs} == {0., .05, .2, .5} and {r.noise_kind for r in runs} == {"uniform"} and {r.shift for r in runs} == {"none"}
    assert {(r.clean_valid, r.valid_share) for r in runs} == {(False, None), (True, None), (True, .02)}  # 1,000 clean samples are 2%
    assert targets == ["expected", "cvar", "icvar", "human", "meanvar", "trimmed"] == list(dict.fromkeys(r.objective for r in study_runs("risk", "paper")))


def test_smoke_scale_is_the_papers_with_small_data_and_few_steps():
    a, b = (study_runs("risk", o, 1) for o in ("smoke", "paper"))
    assert set(a) == {replace(r, data="digits", steps=3, bs=20) for r in b if r.objective == "cvar"}


@pytest.fixture
def few_digits(monkeypatch):
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype(np.float32)
    monkeypatch.setitem(study_data, "digits", (lambda path: ((x[:140], y[:140]), (x[140:160], y[140:160])), study_data["digits"][1]))
    arrays_of.cache_clear()
    yield
    arrays_of.cache_clear()


def test_smoke_runs_train(few_digits, tmp_path):
    "ResNet-18, with the paper's crops and flips, on 100 digits"
    pick = lambda name, **kw: next(r for r in study_runs(name, "smoke") if all(getattr(r, k) == v for k, v in kw.items()))
    runs = [pick("risk", method=m, objective="cvar") for m in ("expected", "warm", "learned", "paper")]
    runs += [pick("noise", method=m, noise=.5) for m in ("oracle", "joined", "replayed")]
    df = sweep(runs, store=tmp_path)
    assert list(df.method) == [r.method for r in runs] and set(df.steps_done) == {3} and np.isfinite(df[["test_risk", "test_acc", "best_acc"]]).all(axis=None)
    assert len(list(tmp_path.rglob("*.json"))) == 8  # and the run whose weights `replayed` took
    assert len({round(o, 12) for o in df[:4].test_risk}) == 4


# --- Times

def test_times_plain_by_hand():
    "A step is 3 passes; an exact hypergradient 3K + 3V/b + 6(K - 1) + 2"
    r = Run(method="paper", data="cifar10")
    assert times_plain(r) == pytest.approx(1 + (3*5 + 3*20 + 6*4 + 2) / 3)
    assert times_plain(replace(r, data="digits")) == pytest.approx(1 + (15 + 3*2 + 26) / 3)  # 200 digits at most
    assert times_plain(Run()) == pytest.approx(1 + (3 + 3*2 + 2) / 3 / MetaRisk().every)
    assert times_plain(Run(meta=dict(every=1, method="first_order", n_inner=3, meta_bs=50))) == pytest.approx(1 + (9 + 1.5 + 6) / 3)
    assert {times_plain(Run(method=m, clean_valid=True)) for m in recipes if m not in ("learned", "paper")} == {1.}


def test_a_small_meta_validation_set_costs_less():
    "2% of CIFAR-10's 50,000 images are one meta-validation batch of 1,000"
    r = Run(method="paper", data="cifar10", valid_share=.02)
    assert times_plain(r) == pytest.approx(1 + (15 + 3*10 + 26) / 3)


def store_of(folder, device="cpu", seed=0, **seconds):
    "A store with a run of each method on digits, of 100 steps, that took so long"
    for m, s in seconds.items():
        r = Run("risk", method=m, steps=100, seed=seed)
        write_record(record_file(r, folder), dict(key=r.key, config=r.config, figures={}, seconds=s, trace=[], device=device))
    return folder


def test_plan_counts_what_is_done_and_left(tmp_path):
    store_of(tmp_path, expected=10., learned=30.)
    runs = [Run("risk", method=m, steps=n, seed=s) for m, n in (("expected", 100), ("learned", 100), ("paper", 200)) for s in range(3)]
    df = plan(runs, tmp_path)
    assert df.method.tolist() == ["expected", "learned", "paper"] and df.runs.tolist() == [3, 3, 3] and df.done.tolist() == [1, 1, 0]
    assert df.time.tolist() == ["stored", "stored", "unknown"] and df.iloc[2][["minutes each", "hours", "hours left"]].isna().all()
    each = np.array([100 * .1 / 60, 100 * .3 / 60])
    assert np.allclose(df["minutes each"][:2], each) and np.allclose(df.hours[:2], each * 3 / 60) and np.allclose(df["hours left"][:2], each * 2 / 60)


def test_a_plan_with_times_is_their_sum(tmp_path):
    "Once 20 s and .2 s per step, for runs of three lengths, two of which are done"
    store_of(tmp_path, expected=10.), store_of(tmp_path, expected=10., seed=1)
    runs = [Run("risk", method="expected", steps=n, noise=o, seed=s) for n, o in ((100, 0.), (500, 0.), (1000, .2)) for s in range(2)]
    df = plan(runs, tmp_path, times={kind_of(runs[0]): (20., .2)})
    assert len(df) == 1 and df.runs[0] == 6 and df.done[0] == 2 and df.time[0] == "timed"
    assert df.hours[0] == pytest.approx(2 * (3*20 + .2 * 1600) / 3600) and df["hours left"][0] == pytest.approx(2 * (2*20 + .2 * 1500) / 3600)
    assert df["minutes each"][0] == pytest.approx(60 * df.hours[0] / 6)


def test_what_cannot_be_timed_goes_at_the_pace_of_this_machine(tmp_path):
    "Plain training and GCE were stored at .1 s per step and take .2 and .4 here: a median of 3 times as long; GPUs don't count"
    store_of(tmp_path, expected=10., gce=10., learned=30.)
    store_of(tmp_path, "NVIDIA H100", seed=1, learned=1., paper=1.)
    plain, gce, learned, paper = runs = [Run("risk", method=m, steps=100) for m in ("expected", "gce", "learned", "paper")]
    df = plan(runs, tmp_path, times={kind_of(plain): (0., .2), kind_of(gce): (0., .4)})
    assert df.time.tolist() == ["timed", "timed", "stored", "unknown"] and np.allclose(df["minutes each"][:3], np.array([20, 40, 3*30]) / 60)


def test_runs_whose_weights_others_replay_are_planned_too():
    a, b = Run("noise", method="replayed"), Run("noise", method="frozen")
    df = plan([a, b, b.source], gpu="T4").set_index("method")
    assert df.runs.to_dict() == dict(replayed=1, frozen=1, learned=2) and a.source != b.source


def test_runs_of_one_kind():
    "What changes the time per step, and what doesn't"
    r = Run(method="learned", noise=.2)
    same = [dict(seed=3), dict(steps=50), dict(noise=0.), dict(shift="balance"), dict(lr=.01), dict(study="noise"), dict(meta=dict(knots=None, floor=0.)), dict(clean_valid=True)]
    others = [dict(method="paper"), dict(data="table"), dict(arch="cnn"), dict(bs=50), dict(opt="adam"), dict(augment=True), dict(precision="bfloat16"), dict(meta=dict(every=5)),
              dict(meta=dict(n_inner=2)), dict(objective="cvar"), dict(valid_share=.02)]  # another target has another `every`
    assert {kind_of(replace(r, **o)) for o in same} == {kind_of(r)} and len({kind_of(replace(r, **o)) for o in [{}, *others]}) == 1 + len(others)


def test_times_from_two_lengths(monkeypatch):
    "A method that needs 3 s once and .5 s per step, on data that take 7 s"
    spent = []
    monkeypatch.setattr(timing, "_seconds", lambda r, steps, path: spent.append(steps) or 3 + .5 * steps)
    monkeypatch.setattr(timing, "_beside", lambda r, path: 7.)
    runs = [Run(method=m, steps=n, noise=o) for m, n, o in (("gce", 600, 0.), ("expected", 3, 0.), ("expected", 2, .2), ("gce", 600, .4), ("report", 600, .2))]
    times = time_kinds(runs)
    assert list(times) == [kind_of(runs[i]) for i in (2, 0, 4)] and all(o == pytest.approx((10., .5)) for o in times.values())
    assert spent == [1, 1, 2] + [4, 4, 8] + [10, 10, 20]  # a report needs a pass over 1,000 samples


def test_kinds_that_cannot_be_run_here_have_no_time(tmp_path):
    assert time_kinds([Run(data="cifar10", arch="cnn", steps=2), Run(data="cifar10_cut", method="gce", steps=2)], path=tmp_path) == {}


def test_short_runs_are_timed_and_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, threads, runs = torch.get_rng_state(), torch.get_num_threads(), [Run(data="digits_300", bs=20, method=m, steps=3) for m in ("expected", "warm", "shuffled")]
    times = time_kinds(runs)
    assert list(times) == [kind_of(r) for r in runs] and all(o > 0 for t in times.values() for o in t[:1]) and not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_plan_for_a_gpu_is_estimated(tmp_path):
    "A linear layer of a x b takes 2ab operations a sample, and a step three passes"
    runs = [Run("risk", arch="mlp:5000-5000", method=m, steps=1000, bs=2000) for m in ("expected", "paper")]
    a, b = (plan(runs, tmp_path, gpu) for gpu in ("T4", "A100"))
    flops = 3 * 2000 * 2 * (64 * 5000 + 5000 * 5000 + 5000 * 10)
    assert a["minutes each"][0] == pytest.approx(1000 * flops / (.4 * 8.1e12) / 60) and set(a.time) == {"estimated"}
    assert a["minutes each"][1] / a["minutes each"][0] == pytest.approx(times_plain(runs[1])) and np.allclose(a["minutes each"] / b["minutes each"], 19.5 / 8.1)


def test_a_gpu_waits_for_its_host(tmp_path):
    "62 parameter tensors of ResNet-18 take .28 ms each on any fast GPU; meta-steps with their large batches take what they compute"
    plain, paper = runs = [Run("risk", data="cifar10", arch="resnet18_32", method=m, steps=1000, augment=True) for m in ("expected", "paper")]
    a, b = (plan(runs, tmp_path, gpu)["minutes each"] for gpu in ("H100", "RTX4090"))
    assert a[0] == b[0] == pytest.approx(1000 * 62 * .28e-3 / 60) and (a[1] - a[0]) / (b[1] - b[0]) == pytest.approx(82.6 / 66.9)


def test_plan_refuses_other_gpus(tmp_path):
    with pytest.raises(ValueError, match="gpu must be one of T4, .*, got 'TPU'"): plan([Run()], tmp_path, "TPU")


def test_sizes_for_times_are_those_of_the_data():
    for name in ("digits", "fashion_mini"):
        dls = learner_of(Run(data=name))[0].dls
        assert mod._image[name] == tuple(dls.train_ds.x.shape[1:]) and mod._n[name] == sum(map(len, (o.dataset for o in dls.loaders[:3])))
    assert set(mod._image) == set(mod._n) == set(study_data)


# --- The command

def said(capsys, *args):
    "Exit status of the command, and what it said"
    try: main([str(o) for o in args]); status = 0
    except SystemExit as e: status = e.code if isinstance(e.code, int) else (print(e.code, file=sys.stderr), 1)[1]
    return status, "".join(capsys.readouterr())


def test_dry_run_of_the_papers_scale(tmp_path):
    p = command("noise", "--scale", "paper", "--dry-run", "--gpu", "A100", "--jobs", "2", "--store", tmp_path)
    assert p.returncode == 0, p.stderr
    assert re.search(r"^ *cifar10 +resnet18_32 +paper +50 +0 +estimated +[\d.]+ +[\d.]+ +[\d.]+$", p.stdout, re.M)
    hours = sum(float(o) for o in re.findall(r"estimated +[\d.]+ +[\d.]+ +([\d.]+)$", p.stdout, re.M))
    total = re.search(r"^290 runs, 0 done, ([\d.]+) hours left with 2 at once; \1 hours for all of them from the start$", p.stdout, re.M)
    assert float(total[1]) == pytest.approx(hours / 2, abs=1) and list(tmp_path.iterdir()) == []


def test_list_names_studies_and_scales(capsys):
    status, out = said(capsys, "--list")
    got = {(o[0], o[1]): int(o[-2]) for line in out.splitlines()[1:] for o in [line.split()]}
    assert status == 0 and got == {(st, sc): n for sc, o in COUNTS.items() for st, n in o.items()}


@pytest.fixture
def an_hour_each(monkeypatch):
    "No run is timed: each one of plain training takes an hour, and of the others nothing is known"
    asked = []
    monkeypatch.setattr(timing, "time_kinds", lambda runs, *args: asked.append((len(runs), *args)) or {kind_of(r): (3600., 0.) for r in runs if r.method == "expected"})
    return asked


def test_dry_run_says_what_is_done_and_left(capsys, tmp_path, an_hour_each):
    r = study_runs("noise", "smoke")[0]
    write_record(record_file(r, tmp_path), dict(key=r.key, config=r.config, figures={}, seconds=6., trace=[]))
    status, out = said(capsys, "noise", "--scale", "smoke", "--seeds", 3, "--store", tmp_path, "--path", "here", "--dry-run", "--jobs", 2)
    assert status == 0 and re.search(r"digits +resnet18_32 +expected +3 +1 +timed +60.0 +3.0 +2.0", out) and an_hour_each == [(15, 2, "here")]
    assert "15 runs, 1 done, 1.0 hours left with 2 at once, and 12 runs of which nothing is known yet; 1.5 hours for all of them from the start" in out
    assert "\ntimed: short runs" in out and "\nunknown: nothing" in out and "stored:" not in out and "nan" not in out


def test_dry_run_for_a_gpu_times_nothing(capsys, tmp_path, an_hour_each):
    assert said(capsys, "risk", "--scale", "smoke", "--store", tmp_path, "--dry-run", "--gpu", "T4")[0] == 0 and an_hour_each == []


def test_a_scale_without_a_study_is_all_of_its_studies(capsys, tmp_path, monkeypatch, an_hour_each):
    runs = study_runs(scale="smoke")
    assert runs == study_runs("risk", "smoke") + study_runs("noise", "smoke") and len(study_runs(scale="cpu")) == sum(len(study_runs(o)) for o in scales["cpu"])
    out = said(capsys, "--scale", "smoke", "--store", tmp_path, "--dry-run")[1]
    assert "11 runs, 0 done, 2.0 hours left" in out  # and the run whose weights `replayed` takes
    monkeypatch.setattr(engine, "train_run", lambda r, *args: made_up(r) | dict(steps=[1], weights=[[.5, .5]]))
    status, out = said(capsys, "--scale", "smoke", "--store", tmp_path)
    assert status == 0 and [o for o in out.splitlines() if o in scales["smoke"]] == ["risk", "noise"]
    assert [o.split()[0] for o in out.splitlines() if " done, " in o] == [str(i) for i in range(1, 11)] and len(list(tmp_path.glob("*/*.json"))) == 11


def test_precision_of_a_whole_scale(capsys, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "train_run", lambda r, *args: seen.append(r) or made_up(r))
    assert said(capsys, "risk", "--scale", "smoke", "--store", tmp_path, "--precision", "bfloat16")[0] == 0
    assert seen == [replace(r, precision="bfloat16") for r in study_runs("risk", "smoke")] and "bfloat16" in str(seen[0])
    assert set(load_results("risk", tmp_path).precision) == {"bfloat16"}


@pytest.mark.parametrize("args,status,says", [
    ([], 2, "name a study, or a --scale"), (["riks"], 2, "study: invalid choice: 'riks'"), (["risk", "--scale", "gpu"], 2, "--scale: invalid choice: 'gpu'"),
    (["shift", "--scale", "paper"], 1, "study must be one of risk, noise, got 'shift'"), (["risk", "--seeds", "0"], 2, "--seeds must be at least 1, got 0"),
    (["risk", "--seeds", "x"], 2, "--seeds: invalid int value: 'x'"), (["risk", "--jobs", "0"], 2, "--jobs must be at least 1, got 0"),
    (["risk", "--gpu", "TPU"], 2, "--gpu: invalid choice: 'TPU'"), (["risk", "--scheduler", "host:8786"], 1, "scheduler must be the address of a Dask scheduler")], ids=str)
def test_bad_options_are_named(capsys, tmp_path, args, status, says):
    got, out = said(capsys, *args, "--store", tmp_path)
    assert got == status and says in out and "Traceback" not in out and not list(tmp_path.rglob("*.json"))


def test_failed_runs_end_the_command_with_their_names(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train_run", lambda r, *args: (_ for _ in ()).throw(OSError("no such disk")))
    status, out = said(capsys, "risk", "--scale", "smoke", "--store", tmp_path)
    assert status == 1 and "metarisk_study: 5 of 5 runs failed" in out and out.count("no such disk") == 5


def made_up(r, *args):
    return dict(key=r.key, config=r.config, figures=dict(test_risk=float(r.seed), test_acc=80. + r.noise), seconds=1., trace=[])


def test_the_command_sums_up(capsys, tmp_path, monkeypatch):
    "Each setting has a line of its own, n is its seeds"
    monkeypatch.setattr(engine, "train_run", made_up)
    status, out = said(capsys, "risk", "--scale", "smoke", "--seeds", 3, "--store", tmp_path)
    assert status == 0 and re.search(r"^ *warm +3 +1 +1 +80 +0$", out, re.M) and len(re.findall(r" 3 +1 +1 +80 +0$", out, re.M)) == 5


def test_the_command_mixes_no_settings(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train_run", made_up)
    out = said(capsys, "shift", "--store", tmp_path)[1]
    assert len(re.findall(r" 3 +1 +1 +80 +0$", out, re.M)) == 16  # 48 runs, three seeds of a setting


@pytest.mark.slow
def test_the_whole_smoke_scale(tmp_path):
    for name, n, sources in (("risk", 5, 0), ("noise", 5, 1)):
        p = command(name, "--scale", "smoke", "--store", tmp_path)
        assert p.returncode == 0, p.stderr[-3000:]
        recs = [json.loads(o.read_text()) for o in (tmp_path / name).glob("*.json")]
        assert len(recs) == n + sources and all(o["steps_done"] == 3 for o in recs)
        assert set(study_runs(name, "smoke")) <= {Run(**{k: v for k, v in o["config"].items() if k in Run.__dataclass_fields__ and k != "settings"}) for o in recs}


@pytest.mark.parametrize("kind, rival", [(k, m) for k, o in _kept.items() for m in o])
def test_a_constant_that_is_kept_for_other_seeds_is_the_choice_of_the_first(kind, rival):
    df = load_results("finetune", Path(__file__).parents[2] / "nbs/results")
    first = df[(df.noise_kind == kind) & (df.method == rival) & (df.seed == 0)]
    assert len(first) == 3 and chosen(first).meta.item() == " ".join(f"{k}={v}" for k, v in _kept[kind][rival].items())
