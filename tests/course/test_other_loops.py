"The loops of lessons 21 and 22: short, without fastai, and they learn the same weights"
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

NBS = Path(__file__).parents[2] / "nbs"
PLAIN, OTHER = "21_plain_pytorch", "22_other_frameworks"
LOOP = "# The whole loop"
LIGHTNING, TRAINER = "# A Lightning module", "# A subclass of the Trainer"
SHAPES = ["# The network and its optimizer", "# The meta-step", LIGHTNING, "# A trainer in Lightning's order",
          "# A model and a batch as Hugging Face has them", "# A trainer in the order of Hugging Face's", TRAINER]


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


@pytest.fixture(scope="module")
def shapes(): return run(*needed(OTHER), *[cell(OTHER, o) for o in SHAPES])


def fit(ns, seed=0, every=20, epochs=30):
    "Test accuracy and reducer of the plain loop"
    train_dl, valid, (x, y) = ns["digits"](seed)
    torch.manual_seed(seed)
    *_, (model, curriculum) = ns["train"](train_dl, valid, every, epochs)
    with torch.no_grad(): return (model.eval()(x).argmax(1) == y).float().mean().item(), curriculum.reducer


def lightning(ns, seed=0, every=20, epochs=30):
    train_dl, valid, _ = ns["digits"](seed)
    torch.manual_seed(seed)
    module = ns["Digits"](valid, epochs * len(train_dl), every)
    ns["lightning_fit"](module, train_dl, epochs)
    return module


def trainer(ns, seed=0, every=20, epochs=30, accumulate=1):
    train_dl, valid, _ = ns["digits"](seed, bs=100 // accumulate, collate_fn=ns["collate"])
    torch.manual_seed(seed)
    model = ns["Classifier"]()
    opts = ns["sgd"](model, epochs * len(train_dl) // accumulate)
    o = ns["MetaTrainer"](model, train_dl, epochs, opts, accumulate, valid=valid, every=every)
    o.train()
    return o


def test_the_loop_is_short_and_knows_torch_alone():
    loop = cell(PLAIN, LOOP)
    assert len([o for o in loop.splitlines() if o.strip()]) < 30
    assert max(map(len, loop.splitlines())) <= 120
    for o in ("fastai", "matplotlib", "metarisk_nb.callback", "metarisk_nb.all"): assert o not in loop


@pytest.mark.parametrize("nb", [PLAIN, OTHER])
def test_no_cell_imports_a_framework(nb):
    lines = [o.strip() for s in sources(nb) for o in s.splitlines()]
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


def test_both_shapes_learn_the_weights_of_the_plain_loop(plain, shapes):
    _, want = fit(plain, epochs=10)
    lit, hf = lightning(shapes, epochs=10), trainer(shapes, epochs=10)
    assert want.logits.abs().max() > .1
    assert torch.equal(lit.curriculum.reducer.logits, want.logits) and torch.equal(hf.curriculum.reducer.logits, want.logits)
    assert lit.global_step == hf.state.global_step == 100


def test_one_meta_step_for_an_optimizer_step_of_several_calls(shapes):
    o = trainer(shapes, epochs=6, accumulate=2)
    assert o.state.global_step == 60 and o.meta.n == 3
    assert o.curriculum.reducer.logits.any()


def test_evaluation_makes_no_meta_step_and_takes_the_mean(shapes):
    o = trainer(shapes, epochs=4)
    inputs, before = next(iter(o.train_dl)), o.curriculum.reducer.logits.detach().clone()
    assert before.any()
    o.state.global_step = 10 * o.meta.every
    loss, outputs = o.compute_loss(o.model.eval(), inputs, return_outputs=True)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"]))
    assert torch.equal(o.curriculum.reducer.logits, before)
    o.compute_loss(o.model.train(), inputs)
    assert not torch.equal(o.curriculum.reducer.logits, before)


@pytest.mark.parametrize("marker", [LIGHTNING, TRAINER])
def test_the_shapes_have_the_frameworks_signatures(marker):
    want = {LIGHTNING: ["def training_step(self, batch, batch_idx)", "def on_train_batch_start(self, batch, batch_idx)",
                        "def configure_optimizers(self)"],
            TRAINER: ["def compute_loss(self, model, inputs, return_outputs=False"]}[marker]
    for o in want: assert o in cell(OTHER, marker)
