"The loop of lesson 21, short and without fastai, and the lines that change in lesson 22"
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

NBS = Path(__file__).parents[2] / "nbs"
PLAIN, OTHER = "21_plain_pytorch", "22_other_frameworks"
LOOP = "# The whole loop"


def sources(nb): return ["".join(c["source"]) for c in json.loads((NBS / f"{nb}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]


def cell(nb, start):
    "The one code cell whose first line is `start`"
    found = [s for s in sources(nb) if s.splitlines()[:1] == [start]]
    assert len(found) == 1, (nb, start)
    return found[0]


def run(*cells):
    ns = {}
    for o in cells: exec(o, ns)
    return ns


def needed(nb): return [next(s for s in sources(nb) if f in s) for f in ("import load_digits", "def digits(")]


@pytest.fixture(scope="module")
def plain(): return run(*needed(PLAIN), cell(PLAIN, LOOP))


def fit(ns, seed=0, every=20, epochs=30):
    "Test accuracy and reducer of the plain loop"
    train_dl, valid, (x, y) = ns["digits"](seed)
    torch.manual_seed(seed)
    *_, (model, curriculum) = ns["train"](train_dl, valid, every, epochs)
    with torch.no_grad(): return (model.eval()(x).argmax(1) == y).float().mean().item(), curriculum.reducer


def test_the_loop_is_short_and_knows_torch_alone():
    loop = cell(PLAIN, LOOP)
    assert len([o for o in loop.splitlines() if o.strip()]) < 30
    assert max(map(len, loop.splitlines())) <= 120
    for o in ("fastai", "matplotlib", "metarisk_nb.callback", "metarisk_nb.all"): assert o not in loop


def test_no_cell_of_the_plain_loop_imports_a_framework():
    lines = [o.strip() for s in sources(PLAIN) for o in s.splitlines()]
    for lib in ("fastai", "lightning", "pytorch_lightning", "transformers"):
        assert not [o for o in lines if o.startswith((f"import {lib}", f"from {lib}"))]


def test_running_the_loop_loads_neither_fastai_nor_matplotlib():
    code = cell(PLAIN, LOOP) + """
torch.manual_seed(0)
dl = [(torch.randn(100, 64), torch.randint(10, (100,))) for _ in range(3)]
*_, (model, curriculum) = train(dl, dl[0], every=2, epochs=2)
assert curriculum.reducer.logits.any()
import sys
print([o for o in ('fastai', 'fastcore', 'matplotlib', 'pandas', 'sklearn') if o in sys.modules])
"""
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.strip() == "[]"


def test_the_loop_learns_to_look_away_from_wrong_labels(plain):
    acc, reducer = fit(plain)
    base, uniform = fit(plain, every=0)
    w = reducer.weights().detach()
    assert torch.equal(uniform.logits, torch.zeros(12))
    assert abs(w.sum() - 1) < 1e-5 and (w >= 0).all()
    assert w[:30].sum() < .1, "uniform weights would be .3"
    assert acc > base + .05


@pytest.mark.parametrize("start, most", [("# A Lightning module", 2), ("# A model and a Trainer", 1)])
def test_three_marked_lines_change_for_lightning_and_two_for_the_trainer(start, most):
    "The last of them is where the trainer is made"
    assert cell(OTHER, start).count("# line ") == most
    assert sum(s.count("# line ") for s in sources(OTHER)) == 5
