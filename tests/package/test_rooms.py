"One concern per room: sizes, arrows and doors of the modules, and what the first edition's users imported or pickled"
import ast
import importlib
import io
import json
import lzma
import pickle
import re
import subprocess
import sys
from copy import copy
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "metarisk_nb"
FILES = {".".join(o.relative_to(PACKAGE).with_suffix("").parts): o for o in sorted(PACKAGE.rglob("*.py")) if o.name != "_modidx.py"}
# From the ground up: a module imports only from those before it. The last row keeps old names or gathers new ones
ROOMS = """
    risk reducer processes files view explorable plot
    kernels passes checks losses groups record audit order head curriculum guard presumption hypergrad inner_step loaders numbering samples batches weighing learned arranging reporting evidence validation loop lightning transformers callback by_group panel
    networks readers data cleaning cleaner
    lab.drawn lab.real lab.pretrained lab.datasets lab.run lab.store lab.robust lab.methods lab.suspects lab.train lab.sweep lab.timing lab.contenders lab.report lab.bench lab.scales lab.plan lab.cli lab.stats lab.tables lab.rivals lab.targets lab.field lab.front lab.two_by_two
    training study cost scales tables stored widget all
""".split()
# The public names of each module in the first edition: all of them stay importable from there
FIRST = {
    "risk": "risks check_losses weighted_sum weigh check_whole Risk Spectral ExpectedValue CVaR ICVaR Trimmed HumanAligned Extremile overlap "
            "Histogram MeanVariance Entropic EVaR as_risk ess_share",
    "reducer": "interpolation SortedReducer",
    "hypergrad": "methods NoDerivative hypergradient",
    "callback": "meta_losses per_sample sample_losses RiskMetric History BatchRisk gce_loss mae_loss MetaRisk",
    "data": "noise_kinds data_path fashion_classes shifts noisy_labels TensorSet TensorDL four_way fashion_mini long_tail worse_images "
            "RandomCropFlip fashion_mnist cifar10_arrays cifar10 mlp cnn resnet18_32",
    "training": "cifar10_classes study_data recipes network measure StepsDL",
    "study": "rules Run run sweep load_results record history",
    "plot": "palette plot_losses plot_weights plot_evolution plot_curriculum plot_scores",
    "widget": "RiskExplorer SpectrumDesigner stored_runs CurriculumPlayer NoiseLab MetaRiskPanel",
    "cost": "Work Workload workloads ours peers contenders every images targets overhead_runs plan heavy cross_entropy work cost_model "
            "take_turns peak_memory measure load_costs ratio best_peer model_ratio report throughput overhead overhead_ratios bench bench_gpu "
            "plot_cost",
    "scales": "targets scales gpus study_runs times_plain plan main",
    "tables": "paper_risk paper_acc paper_clean paper_noise bootstrap paired beside verdicts compare four_tables headlines as_markdown",
}


def tree(fn): return ast.parse(fn.read_text(encoding="utf-8"))


def is_shim(fn): return all(isinstance(o, (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)) for o in tree(fn).body)


# --- Sizes

@pytest.mark.parametrize("name", FILES)
def test_a_module_has_at_most_300_lines_of_140_characters_and_classes_of_150_lines(name):
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    assert not [f"{i}: {len(o)} characters" for i, o in enumerate(lines, 1) if len(o) > 140]
    sizes = {o.name: o.end_lineno - o.lineno + 1 for o in ast.walk(tree(FILES[name])) if isinstance(o, ast.ClassDef)}
    assert not {k: n for k, n in sizes.items() if n > 150}


# --- Arrows

def arrows(nodes, name):
    "Each name that a module of the package imports from another one of it: (module, name, or None for the whole module)"
    for o in nodes:
        if isinstance(o, ast.Import):
            for a in o.names:
                if a.name.startswith("metarisk_nb."): yield a.name.removeprefix("metarisk_nb."), None
        if isinstance(o, ast.ImportFrom):
            above = name.split(".")[:-o.level] if o.level else []
            if not o.level and o.module.split(".")[0] != "metarisk_nb": continue
            base = ".".join([*above, *([o.module.removeprefix("metarisk_nb").lstrip(".")] if o.module else [])]).strip(".")
            for a in o.names:
                whole = f"{base}.{a.name}".strip(".")
                yield (whole, None) if whole in FILES else (base, a.name)


def test_every_room_has_its_place(): assert set(ROOMS) == {o for o in FILES if not o.endswith("__init__")}


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_down(name):
    to = {m for m, _ in arrows(ast.walk(tree(FILES[name])), name) if m}
    assert to <= set(ROOMS)
    if name in ROOMS: assert not [m for m in to if ROOMS.index(m) >= ROOMS.index(name)]
    else: assert not to, "a package's __init__ imports no room"


# --- Doors

def is_private(o): return bool(o) and o.startswith("_") and not o.startswith("__")


def reached(nodes, name=""):
    "What a source takes of other modules by a private name: imports, attributes of imported modules, and imports in strings of code"
    nodes, known = list(nodes), {}
    for o in nodes:
        if isinstance(o, ast.Import): known |= {(a.asname or a.name.split(".")[0]): (a.name if a.asname else "metarisk_nb") for a in o.names if a.name.split(".")[0] == "metarisk_nb"}
        if isinstance(o, ast.ImportFrom):
            found = list(arrows([o], name))
            known |= {a.asname or a.name: m for a, (m, n) in zip(o.names, found) if n is None}
            yield from [f"from {m} import {n}" for m, n in found if is_private(n) and m != name]
    for o in nodes:
        if isinstance(o, ast.Attribute) and is_private(o.attr):
            left = ast.unparse(o.value)
            of = known.get(left.split(".")[0]) if re.fullmatch(r"[\w.]+", left) else None
            if of and (left.split(".")[0] == left or left.startswith("metarisk_nb.")): yield f"{left}.{o.attr}"
        if isinstance(o, ast.Constant) and isinstance(o.value, str):
            for m, names in re.findall(r"from metarisk_nb\.([\w.]+) import ([\w, ]+)", o.value):
                if m != name: yield from [f"from {m} import {n}, in a string" for n in re.split(r"[, ]+", names) if is_private(n)]


def sources():
    "Modules, scripts and the code of notebooks: what it is, of which module, its source"
    for name, fn in FILES.items(): yield name, name, fn.read_text(encoding="utf-8")
    for fn in sorted((ROOT / "scripts").glob("*.py")): yield f"scripts/{fn.name}", "", fn.read_text(encoding="utf-8")
    for fn in sorted([*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs").glob("[!.]*/*.ipynb")]):
        code = ["".join(c["source"]) for c in json.loads(fn.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        own = next((m[1] for o in code if (m := re.match(r"#\| default_exp ([\w.]+)", o))), "")
        yield fn.relative_to(ROOT).as_posix(), own, "\n".join(re.sub(r"^\s*[%!].*$", "", o, flags=re.M) for o in code)


SOURCES = {what: (name, src) for what, name, src in sources()}


@pytest.mark.parametrize("what", SOURCES)
def test_no_private_name_crosses_modules(what):
    name, src = SOURCES[what]
    assert not sorted(set(reached(ast.walk(ast.parse(src)), name)))


@pytest.mark.parametrize("src,found", [
    ("from .study import _hash, Run", 1), ("from metarisk_nb.study import _hash as h", 1), ("from metarisk_nb import study\nstudy._hash(1)", 1),
    ("import metarisk_nb.study as s\nprint(s._hash)", 1), ("import metarisk_nb.study\nmetarisk_nb.study._hash", 1), ("x = 'from metarisk_nb.cost import run, _peaks; _peaks()'", 1),
    ("def f():\n    from ..risk import _square", 1), ("from .plot import palette\nimport metarisk_nb\nmetarisk_nb.__version__\nself._x = a._b.c", 0),
    ("from torch import _C\nimport numpy as np\nnp._x", 0), ("from .here import _mine", 0)])
def test_what_counts_as_private(src, found): assert len(set(reached(ast.walk(ast.parse(src)), "here"))) == found


# --- Weight

LIGHT = ["risk", "reducer", "processes", "hypergrad", "curriculum", "losses", "groups"]


@cache
def loaded():
    "Which of the heavy libraries the import of each light module brings, each in a process of its own"
    code = """import importlib, json, os, sys, torch
for m in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(f'metarisk_nb.{m}')
        print(json.dumps([m, [o for o in ('fastai', 'fastcore', 'matplotlib', 'pandas', 'sklearn', 'IPython') if o in sys.modules]]), flush=True)
        os._exit(0)
    os.wait()
"""
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *LIGHT], capture_output=True, text=True, cwd=ROOT)
    return dict(map(json.loads, r.stdout.splitlines())), r.stderr


@pytest.mark.parametrize("name", LIGHT)
def test_importing_a_light_room_loads_torch_alone(name):
    found, errors = loaded()
    assert found.get(name) == [], errors[-2000:]


# --- The first edition

@pytest.mark.parametrize("name", FIRST)
def test_public_names_of_the_first_edition_are_where_they_were(name):
    mod, names = importlib.import_module(f"metarisk_nb.{name}"), FIRST[name].split()
    assert not [o for o in names if not hasattr(mod, o)]
    assert set(names) <= set(mod.__all__), "for `from ... import *`"
    if name in ("cost", "scales", "tables"): return  # never were in metarisk_nb.all
    everything = importlib.import_module("metarisk_nb.all")
    assert not [o for o in names if getattr(everything, o, None) is not getattr(mod, o)]


@cache
def pickles(): return pickle.loads(lzma.decompress((Path(__file__).parent / "first_edition.pkl.xz").read_bytes()))


def old(name): return pickle.loads(pickles()[name])


def test_runs_of_the_first_edition_are_read_and_have_their_keys():
    want = old("expected")
    assert (old("Run").key, old("Run_noise").key) == (want["run"], want["run2"])
    assert old("Run").meta and copy(old("Run")) == old("Run")


def test_risks_reducers_and_histories_of_the_first_edition_are_read():
    want, h, r = old("expected"), old("History"), old("SortedReducer")
    assert old("CVaR")(torch.arange(10.)) == 8. and torch.allclose(old("Histogram").weights(3).float(), torch.tensor([.5, .3, .2]))
    assert torch.equal(r.logits, torch.tensor([1., 0, -1, -2])) and r.weights()[0] > .2 > r.weights()[-1]
    assert h.steps == want["steps"] and h.weights.shape == (2, 10) and h.values.isfinite().all()
    assert torch.allclose(h.at(1).weights(10).float(), h.weights[-1])


@pytest.mark.parametrize("name", ["BatchRisk", "MetaRisk", "RiskMetric", "MetaRiskPanel"])
def test_callbacks_of_the_first_edition_are_read_and_train(name):
    from common import fit, learner, state

    from metarisk_nb.all import MetaRisk, RiskMetric
    cb = old(name)
    cbs = [] if name == "RiskMetric" else [cb] if name != "MetaRiskPanel" else [MetaRisk(), cb]
    learn = fit(learner(cbs, metrics=[cb] if isinstance(cb, RiskMetric) else None), 1)
    assert all(o.isfinite().all() for o in state(learn)) and len(learn.recorder.values) == 1


def test_a_learner_exported_by_the_first_edition_goes_on():
    from common import fit, learner
    want, learn = old("expected"), torch.load(io.BytesIO(pickles()["Learner with MetaRisk"]), map_location="cpu", weights_only=False)
    m = learn.meta_risk
    assert torch.allclose(m.weights, torch.tensor(want["weights"])) and m.n_step == want["n_step"] and m.history.steps == want["steps"]
    learn.dls, learn.model = (o := learner()).dls, o.model  # an export holds no data
    fit(learn, 1)
    assert learn.meta_risk.n_step == 10 + want["n_step"] and learn.meta_risk.weights.isfinite().all()
