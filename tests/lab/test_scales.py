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

from metarisk_nb.callback import MetaRisk
from metarisk_nb.lab import datasets
from metarisk_nb.lab import plan as mod
from metarisk_nb.lab import sweep as engine
from metarisk_nb.lab.cli import main
from metarisk_nb.lab.datasets import arrays_of, study_data
from metarisk_nb.lab.methods import recipes
from metarisk_nb.lab.plan import *
from metarisk_nb.lab.run import Run
from metarisk_nb.lab.scales import *
from metarisk_nb.lab.store import record_file, write_record
from metarisk_nb.lab.sweep import sweep
from metarisk_nb.lab.train import learner_of

COMMAND = Path(sys.executable).with_name("metarisk_study")
COUNTS = dict(cpu=dict(risk=5*6*5 + 3*3*4, noise=5*48 + 5*3*2 + 5*2*3 + 3*2 + 3*2*6, shift=3*4*2 + 3*4 + 3*2*2, fails=5*2 + 5*2*6 + 1 + 2,
                       harmless=5*(10*2 + 7*2 + 17*10 + 3), human=3*2*(2 + 3*10), cooled=2*5*6*4, fresh=5*(10*2 + 7*2 + 17*10), suspects=5*6*9 + 3*3*9 + 5*4),
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
    (dict(study="riks"), "study must be one of risk, noise, shift, fails, harmless, fresh, human, suspects, cooled, got 'riks'"), (dict(study="shift", scale="paper"), "study must be one of risk, noise, got 'shift'"),
    (dict(study="risk", scale="gpu"), "scale must be one of cpu, paper, smoke, got 'gpu'"), (dict(study="risk", seeds=0), "seeds must be a whole number of at least 1, got 0"),
    (dict(study="risk", seeds=1.5), "seeds must be .*, got 1.5"), (dict(study="risk", seeds="3"), "seeds must be .*, got '3'")], ids=str)
def test_bad_arguments_are_refused_by_name(kwargs, says):
    with pytest.raises(ValueError, match=says): study_runs(**kwargs)


def test_paper_scale_is_the_papers_setting():
    runs = [r for name in scales["paper"] for r in study_runs(name, "paper")]
    assert {(r.data, r.arch, r.steps, r.bs, r.mom, r.wd, r.augment, r.patience) for r in runs} == {("cifar10", "resnet18_32", 20_000, 100, .9, 5e-4, True, 5)}
    assert {(r.lr, r.lr / r.div, r.lr / r.div_final) for r in runs} == {(.1, .005, 5e-6)}
    assert all({r.seed for r in runs if r.method == m} == set(range(5)) for m in {*recipes} - {"presumption", "elr"})
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


def store_of(folder, **seconds):
    "A store with a run of each method on digits, of 100 steps, that took so long"
    for m, s in seconds.items():
        r = Run("risk", method=m, steps=100)
        write_record(record_file(r, folder), dict(key=r.key, config=r.config, figures={}, seconds=s, trace=[]))
    return folder


def test_plan_counts_what_is_done_and_left(tmp_path):
    store_of(tmp_path, expected=10., learned=30.)
    runs = [Run("risk", method=m, steps=n, seed=s) for m, n in (("expected", 100), ("learned", 100), ("paper", 200)) for s in range(3)]
    runs += [Run("risk", method="expected", arch="cnn")]
    df = plan(runs, tmp_path)
    assert df.method.tolist() == ["expected", "learned", "paper", "expected"] and df.runs.tolist() == [3, 3, 3, 1] and df.done.tolist() == [1, 1, 0, 0]
    assert df.time.tolist() == ["measured", "measured", "cost model", "unknown"]
    each = [100 * .1 / 60, 100 * .3 / 60, 200 * .1 * times_plain(runs[6]) / 60]
    assert df["minutes each"][:3].tolist() == pytest.approx(each) and df["hours left"][:3].tolist() == pytest.approx(np.array(each) * [2, 2, 3] / 60)
    assert df.iloc[3][["minutes each", "hours left"]].isna().all()


def test_plan_for_a_gpu_is_estimated(tmp_path):
    "A linear layer of a x b takes 2ab operations a sample, and a step three passes"
    runs = [Run("risk", arch="mlp:50", method=m, steps=1000, bs=20) for m in ("expected", "paper")]
    a, b = (plan(runs, tmp_path, gpu) for gpu in ("T4", "A100"))
    flops = 3 * 20 * 2 * (64 * 50 + 50 * 10)
    assert a["minutes each"][0] == pytest.approx(1000 * flops / (.4 * 8.1e12) / 60) and set(a.time) == {"estimated"}
    assert a["minutes each"][1] / a["minutes each"][0] == pytest.approx(times_plain(runs[1])) and np.allclose(a["minutes each"] / b["minutes each"], 19.5 / 8.1)
    with pytest.raises(ValueError, match="gpu must be one of T4, .*, got 'TPU'"): plan(runs, tmp_path, "TPU")


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
    assert re.search(r"^ *cifar10 +resnet18_32 +paper +50 +0 +estimated +[\d.]+ +[\d.]+$", p.stdout, re.M)
    hours = sum(float(o) for o in re.findall(r"estimated +[\d.]+ +([\d.]+)$", p.stdout, re.M))
    total = re.search(r"^290 runs, 0 done, ([\d.]+) hours left with 2 at once$", p.stdout, re.M)
    assert float(total[1]) == pytest.approx(hours / 2, abs=1) and list(tmp_path.iterdir()) == []


def test_list_names_studies_and_scales(capsys):
    status, out = said(capsys, "--list")
    got = {(o[0], o[1]): int(o[-2]) for line in out.splitlines()[1:] for o in [line.split()]}
    assert status == 0 and got == {(st, sc): n for sc, o in COUNTS.items() for st, n in o.items()}


def test_dry_run_counts_what_is_done(capsys, tmp_path):
    r = study_runs("risk", "smoke")[0]
    write_record(record_file(r, tmp_path), dict(key=r.key, config=r.config, figures={}, seconds=6., trace=[]))
    status, out = said(capsys, "risk", "--scale", "smoke", "--store", tmp_path, "--dry-run")
    assert status == 0 and re.search(r"digits +resnet18_32 +expected +1 +1 +measured", out) and "5 runs, 1 done" in out


def test_dry_run_without_known_times_says_so(capsys, tmp_path):
    out = said(capsys, "risk", "--scale", "smoke", "--store", tmp_path, "--dry-run")[1]
    assert "unknown" in out and "5 runs, 0 done" in out and "5 runs of which nothing is known yet" in out and "nan" not in out


@pytest.mark.parametrize("args,status,says", [
    ([], 2, "name a study"), (["riks"], 2, "study: invalid choice: 'riks'"), (["risk", "--scale", "gpu"], 2, "--scale: invalid choice: 'gpu'"),
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
