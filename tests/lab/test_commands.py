"The commands as they are met: at a terminal, in a pipe, interrupted, with a wrong option; and whose environment make uses"
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from forks import Forked, OnTerminal, wait_for

from metarisk_nb.lab import bench, cli, plan, sweep
from metarisk_nb.lab.scales import scales
from metarisk_nb.lab.store import record_file

ROOT = Path(__file__).parents[2]


def made_up(r, *args): return dict(key=r.key, config=r.config, figures=dict(test_risk=1., test_acc=80.), seconds=1., trace=[])


def train_what(fate, r):
    "Train nothing, fail, or go on for ever, as the method's `fate` says"
    now = fate.get(r.method)
    if now == "fails": raise ValueError("no such luck")
    if now == "endless": time.sleep(600)
    return made_up(r)


def study(store, fate, *args, script=None):
    "The command with five runs of digits whose fates are known"
    sweep.train_run = lambda r, *rest: train_what(fate, r)
    cli.main(["risk", "--scale", "smoke", "--store", str(store), *args])


RUNS = plan.study_runs("risk", "smoke")
EXPECTED, BATCH, WARM = RUNS[:3]


# --- What is imported, and when

LOADED = "import sys\ntry: {}\nexcept SystemExit as e: status = e.code\nprint('status', status, [o for o in ('torch', 'fastai', 'pandas') if o in sys.modules])"


@pytest.mark.parametrize("call,status", [
    ("from metarisk_nb.lab.cli import main; main(['--help'])", 0), ("from metarisk_nb.lab.cli import main; main(['riks'])", 2),
    ("from metarisk_nb.lab.cli import main; main(['risk', '--jobs', '0'])", 2), ("from metarisk_nb.lab.cli import main; main([])", 2),
    *[(f"import runpy; sys.argv = ['x', '--help']; runpy.run_path({str(ROOT / 'scripts' / o)!r}, run_name='__main__')", 0) for o in ("bench.py", "bench_gpu.py")]])
def test_help_and_mistakes_wait_for_nothing(call, status):
    p = subprocess.run([sys.executable, "-c", LOADED.format(call)], capture_output=True, text=True, cwd=ROOT)
    assert p.stdout.splitlines()[-1] == f"status {status} []", p.stdout + p.stderr


# --- Progress

def test_a_sweep_in_a_pipe_says_a_line_per_run(tmp_path):
    status, out = Forked(study, tmp_path / "s", {}, out=tmp_path / "out").wait()
    assert status == 0 and "\r" not in out and "█" not in out
    assert out.splitlines()[:5] == [f"{i} of 5 done, {r}" for i, r in enumerate(RUNS, 1)] and len(out.splitlines()) == 5 + 6  # the table
    status, out = Forked(study, tmp_path / "s", {}, out=tmp_path / "again").wait()
    assert status == 0 and len(out.splitlines()) == 6  # nothing was trained


def test_a_sweep_at_a_terminal_keeps_its_bar(tmp_path):
    p = OnTerminal(study, tmp_path / "s", {})
    status, out = p.wait()
    assert status == 0 and "100.00% [5/5" in out and "\r |" in out and str(WARM) in out and "5 done" not in out
    table = out.split("[5/5")[1].splitlines()
    assert table[1].split()[:2] == ["method", "n"]  # on a line of its own


def short_demo(out):
    sys.argv = ["demo", "--steps", "200", "--out", str(out)]
    runpy.run_path(str(ROOT / "scripts/demo.py"), run_name="__main__")


def test_the_demo_in_a_pipe_says_a_line_per_epoch(tmp_path):
    status, out = Forked(short_demo, tmp_path / "demo.png", out=tmp_path / "out").wait()
    assert status == 0, out
    lines = [o for o in out.splitlines() if o.startswith("  epoch")]
    assert "\r" not in out and [o.split(":")[0] for o in lines] == ["  epoch 1 of 2", "  epoch 2 of 2"] * 2 + ["  epoch 1 of 1"] * 2 + ["  epoch 1 of 2", "  epoch 2 of 2"]
    assert len(out) < 3000 and (tmp_path / "demo.png").exists()


# --- Errors

@pytest.mark.parametrize("fate", [dict(warm="fails"), dict(expected="fails", paper="fails"), dict(batch="fails", warm="fails", learned="fails")])
@pytest.mark.parametrize("terminal", [True, False])
def test_errors_have_lines_of_their_own_each_once(tmp_path, fate, terminal):
    status, out = (OnTerminal(study, tmp_path / "s", fate) if terminal else Forked(study, tmp_path / "s", fate, out=tmp_path / "out")).wait()
    said = out.replace("\r\n", "\n").split("\n")
    at = said.index(f"metarisk_study: {len(fate)} of 5 runs failed:")
    assert status == 1 and said[at + 1:-1] == [f"{r}: ValueError: no such luck" for r in RUNS if r.method in fate] and "Traceback" not in out


def test_a_damaged_file_is_named_once(tmp_path):
    fn = record_file(BATCH, tmp_path / "s")
    fn.parent.mkdir(parents=True)
    fn.write_text("half")
    status, out = Forked(study, tmp_path / "s", {}, out=tmp_path / "out").wait()
    assert status == 0 and out.count("is damaged") == 1 and f"metarisk_study: {fn} is damaged" in out.splitlines()[0] and "warnings.warn" not in out


# --- Ctrl-C

def is_at(p, text):
    def ok():
        assert p.process.is_alive(), p.said()
        return text in p.said()
    return ok


def interrupted(p, press=True):
    if press: p.press(b"\x03")
    else: os.kill(p.pid, signal.SIGINT)
    status, out = p.wait()
    assert status == 130 and "Traceback" not in out and "KeyboardInterrupt" not in out, out
    return out.replace("\r\n", "\n").split("\n")


@pytest.mark.parametrize("press", [True, False], ids=["at the terminal", "by a signal"])
def test_ctrl_c_ends_a_sweep_with_one_line(tmp_path, press):
    p = OnTerminal(study, tmp_path / "s", dict(warm="endless"))
    wait_for(is_at(p, str(WARM)))
    said = interrupted(p, press)
    assert said[-2:] == ["metarisk_study: stopped; what is stored is kept, and the same command continues from there", ""]
    assert all(record_file(r, tmp_path / "s").exists() for r in (EXPECTED, BATCH)) and not record_file(WARM, tmp_path / "s").exists()
    status, out = Forked(study, tmp_path / "s", {}, out=tmp_path / "out").wait()
    assert status == 0 and out.startswith(f"1 of 3 done, {WARM}")  # the next call goes on


def long_study(store):
    "Two real processes that train digits for a long time"
    scales["smoke"]["risk"] = [dict(data="digits", steps=10**5, seeds=2, method="expected")]
    cli.main(["risk", "--scale", "smoke", "--store", str(store), "--jobs", "2"])


def locks(p):
    "How many runs are at work below a process"
    n = 0
    for o in psutil.Process(p.pid).children(recursive=True):
        try: n += any(".locks" in f.path for f in o.open_files())
        except psutil.Error: pass
    return n


@pytest.mark.xdist_group("two jobs")
@pytest.mark.parametrize("press", [True, False], ids=["at the terminal", "by a signal"])
def test_ctrl_c_ends_the_children_too(tmp_path, press):
    p = OnTerminal(long_study, tmp_path)
    wait_for(lambda: p.said() and locks(p) == 2, 600)
    children = psutil.Process(p.pid).children(recursive=True)
    assert interrupted(p, press)[-2].startswith("metarisk_study: stopped")
    assert not psutil.wait_procs(children, 60)[1] and not list(tmp_path.rglob("*.json"))


def endless_demo(out):
    real = time.perf_counter
    def stop(): time.sleep(600) or real()
    time.perf_counter = stop  # which the demo reads when it begins to train
    short_demo(out)


def endless_bench(out):
    bench.measure_cost = lambda *args, **kw: print("measuring") or time.sleep(600)
    sys.argv = ["bench", "--quick", "--out", str(out)]
    runpy.run_path(str(ROOT / "scripts/bench.py"), run_name="__main__")


def endless_bench_gpu(out):
    bench.throughput = lambda *args, **kw: time.sleep(600)
    sys.argv = ["bench_gpu", "--data", "digits", "--arch", "mlp"]
    runpy.run_path(str(ROOT / "scripts/bench_gpu.py"), run_name="__main__")


@pytest.mark.parametrize("f,at,says", [(endless_demo, "plain:", "demo: stopped; no picture was saved"), (endless_bench, "measuring", "bench: stopped; what was measured is stored"),
                                       (endless_bench_gpu, "batches of 100", "bench_gpu: stopped")])
def test_ctrl_c_ends_a_script_with_one_line(tmp_path, f, at, says):
    p = OnTerminal(f, tmp_path / "demo.png")
    wait_for(is_at(p, at))
    assert interrupted(p)[-2:] == [says, ""] and not list(tmp_path.iterdir())


def measure_apart(pids):
    "What the benchmark measures in a process of its own, which forks"
    with cli.stoppable("bench"): bench._alone(f"import os, time\nos.fork()\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(600)")


@pytest.mark.skipif(not Path("/proc").exists(), reason="forks")
def test_ctrl_c_ends_the_processes_of_the_benchmark(tmp_path):
    p = OnTerminal(measure_apart, tmp_path / "pids")
    wait_for(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
    pids = [int(o) for o in (tmp_path / "pids").read_text().split()]
    assert interrupted(p)[-2:] == ["bench: stopped", ""]
    wait_for(lambda: not any(psutil.pid_exists(o) and psutil.Process(o).status() != "zombie" for o in pids), 30)


# --- make

def environment(folder, owner=None, installed=True):
    "An environment whose Python notes what it is asked to do, with the package of a checkout or without"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    (folder / "bin/python").chmod(0o755)
    if owner is not None:
        info = folder / "lib/python3.12/site-packages/metarisk_nb-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "direct_url.json").write_text(json.dumps(dict(dir_info=dict(editable=True), url=f"file://{owner}")))
    if installed: (folder / ".installed").touch()
    return folder


@pytest.fixture
def checkout(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for o in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / o, here)
        os.utime(here / o, (1, 1))
    return here


def make(here, target, venv):
    return subprocess.run(["make", target, f"VENV={venv}", f"PYTHON={venv}/bin/python"], cwd=here, capture_output=True, text=True, timeout=60)


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "bench", "prepare", "clean"])
@pytest.mark.parametrize("installed", [True, False], ids=["up to date", "stale"])
def test_make_leaves_the_environment_of_another_checkout_alone(checkout, tmp_path, target, installed):
    venv = environment(tmp_path / "venv", tmp_path / "there", installed)
    p = make(checkout, target, venv)
    assert p.returncode and f"The environment {venv} belongs to the checkout {tmp_path / 'there'}, and this one is {checkout}: nothing was changed" in p.stderr
    assert f"make {target} VENV=.venv" in p.stderr and not (venv / "asked").exists() and venv.exists()


@needs_make
@pytest.mark.parametrize("owned", [True, False], ids=["this checkout's", "nobody's"])
def test_make_uses_an_environment_of_its_own(checkout, tmp_path, owned):
    venv = environment(tmp_path / "venv", checkout if owned else None)
    assert make(checkout, "demo", venv).returncode == 0 and (venv / "asked").read_text() == "scripts/demo.py\n"
    (venv / ".installed").unlink()
    p = make(checkout, "handout", venv)
    asked = (venv / "asked").read_text()
    assert f"Installing into {venv}" in p.stdout and f"-m venv {venv}\n-m pip install -q -e .[dev]\nscripts/handout.py\n" in asked
    assert make(checkout, "clean", venv).returncode == 0 and not venv.exists()
