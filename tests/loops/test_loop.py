"`LearnedWeights` learns in a loop of a few lines what `MetaRisk()` learns in a Learner"
import io
import subprocess
import sys
from functools import partial

import fastai.callback.progress  # noqa: F401 (it adds `no_bar`)
import pytest
import torch
from digits import BS, accuracy, arrays, furthest, net, plain_loop, sets, sgd
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.utils.data import DataLoader

from metarisk_nb.callback import MetaRisk
from metarisk_nb.data import TensorDL, TensorSet
from metarisk_nb.loop import LearnedWeights
from metarisk_nb.validation import ValidationStream

ORDER = torch.stack([torch.randperm(1000, generator=torch.Generator().manual_seed(s)) for s in range(40)]).view(-1, BS)


@pytest.fixture(scope="module")
def learned(): return plain_loop(ORDER)


def test_it_learns_to_look_away_from_wrong_labels(learned):
    model, weights = learned
    plain, _ = plain_loop(ORDER, learned=False)
    assert accuracy(model) > accuracy(plain) + .05
    assert weights.weights[:30].sum() < .1 and .3 < weights.harmful < .7
    x, given, clean = arrays()
    report = weights.label_report()
    assert len(report) == 1000 and (given != clean)[report["index"][:200].tolist()].float().mean() > .9
    assert weights.readings["looks"] > 5 and weights.readings["worst_quarter"] < .1
    known = [(model(x[part]).argmax(1) == given[part]).float().mean().item() for part in (slice(1000), slice(1000, 1200))]
    assert weights.curriculum.doubt.record.state_dict()["known"] == pytest.approx(known, abs=.08)


def test_it_learns_what_meta_risk_learns():
    "One epoch of many batches, since a Learner looks at validation data anew in each epoch"
    (train, valid), ids = sets(), ORDER.flatten()
    x, y = train.tensors
    ds, vs = TensorSet(x[ids], y[ids]), TensorSet(*valid.tensors)
    dls = DataLoaders(TensorDL(ds, BS), TensorDL(vs, 200))
    dls.device, dls.c, dls.n_inp = torch.device("cpu"), 10, 1
    learn = Learner(dls, net(), CrossEntropyLoss(), opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9), cbs=MetaRisk())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
    model = net()
    opt = sgd(model)
    whole = ((valid.tensors[0],), valid.tensors[1])
    weights = LearnedWeights(model, iter([whole] * 1000), len(ds), optimizer=opt)
    for i in torch.arange(len(ds)).split(BS):
        weights.listen()
        pred = model(ds.x[i])
        weights(pred, ds.y[i], i).backward()
        opt.step()
        opt.zero_grad()
        weights.stepped()
    assert weights.harmful > .2
    torch.testing.assert_close(weights.weights, learn.meta_risk.weights, atol=1e-6, rtol=0)
    assert furthest(model, learn.model) < 1e-5


def test_uniform_weights_are_the_loops_own_loss_to_the_last_bit():
    few = ORDER[:30]
    model, weights = plain_loop(few)
    assert weights.curriculum.uniform and weights.readings == dict(harmful=0., worst_quarter=1., looks=2)
    assert furthest(model, plain_loop(few, learned=False)[0]) == 0


def test_the_random_streams_stay_where_they_are(learned):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    stream = ValidationStream(DataLoader(sets()[1], 50, shuffle=True))
    for _ in range(3): next(stream)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("own", [1., .25, 3.])
def test_the_loops_normaliser_is_kept(learned, own):
    "A loop that divides its loss by another number gets the weighted loss divided by the same"
    _, weights = learned
    pred, y = torch.randn(BS, 10, requires_grad=True), torch.randint(10, (BS,))
    c = weights.curriculum
    assert not c.uniform
    weights.due = weights.attends = weights.moved = False
    l = nn.functional.cross_entropy(pred, y, reduction="none")
    known = c.population.known.clone()
    got = weights(pred, y, None, own * l.mean())
    c.population.known = known
    places = c.places(l, y, pred, None, 1000)
    torch.testing.assert_close(got, own * (c.weights_at(places) * l).sum())


def test_a_run_that_is_resumed_is_the_same_to_the_last_bit():
    order = ORDER[:300]
    def run(stop=None):
        (train, valid), model = sets(), net()
        opt = sgd(model)
        stream = ValidationStream(DataLoader(valid, BS), lambda b: ((b[0],), b[1]), bs=60)
        weights = LearnedWeights(model, stream, 1000, optimizer=opt)
        for i, ids in enumerate(order):
            if i == 205:  # every run saves here
                file = io.BytesIO()
                torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), weights=weights.state_dict()), file)
                if stop:
                    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
                    model = net(1)
                    opt = sgd(model)
                    model.load_state_dict(state["model"])
                    opt.load_state_dict(state["opt"])
                    stream = ValidationStream(DataLoader(valid, BS), lambda b: ((b[0],), b[1]), bs=60)
                    weights = LearnedWeights(model, stream, 1000, optimizer=opt)
                    weights.load_state_dict(state["weights"])
            weights.listen()
            pred = model(train.tensors[0][ids])
            weights(pred, train.tensors[1][ids], ids).backward()
            opt.step()
            opt.zero_grad()
            weights.stepped()
        return model, weights
    a, b = run(), run(stop=True)
    assert not a[1].curriculum.uniform
    assert torch.equal(a[1].weights, b[1].weights) and furthest(a[0], b[0]) == 0
    assert a[1].label_report().equals(b[1].label_report())


def test_accumulated_gradients_bring_evidence_once_per_optimizer_step():
    halves = ORDER[:200].reshape(-1, 50)
    model, weights = plain_loop(halves, parts=2)
    assert weights.step == 200 and weights.readings["looks"] == 10 + (not weights.curriculum.willing)
    assert weights.curriculum.reducer.n == 50


@pytest.mark.parametrize("make, says", [
    (lambda w, m: w(torch.randn(8, 1), torch.randn(8)), "logits of several classes"),
    (lambda w, m: w(torch.randn(8, 10), torch.rand(8, 10)), "logits of several classes"),
    (lambda w, m: (w.listen(), w(m(torch.randn(8, 64)).softmax(1), torch.zeros(8).long())), "last linear layer"),
    (lambda w, m: w.label_report(), "ids"), (lambda w, m: w.load_state_dict({}), "state lacks")])
def test_what_cannot_be_learned_from_is_refused(make, says):
    model = net()
    weights = LearnedWeights(model, iter([]), 10)
    with pytest.raises(ValueError, match=says): make(weights, model)


@pytest.mark.parametrize("ids, says", [(torch.arange(8) - 4, "from -4 to 3"), (torch.arange(8) + 5, "from 5 to 12"), ([1, 2], "got 2")])
def test_sample_numbers_that_are_no_rows_are_refused(ids, says):
    model, (x, y) = net(), (torch.randn(8, 64), torch.zeros(8).long())
    weights = LearnedWeights(model, [(x, y)], 10)
    weights.listen()
    with pytest.raises(ValueError, match=says): weights(model(x), y, ids)


def test_labels_and_numbers_of_other_kinds_are_taken():
    model, (x, y) = net(), (torch.randn(8, 64), torch.arange(8))
    for labels, ids in ((y.to(torch.uint8), [*range(8)]), (y[:, None], torch.arange(8, dtype=torch.int32)[:, None]), (y.int(), torch.arange(8).numpy())):
        weights = LearnedWeights(model, [(x, y)], 10)
        weights.listen()
        weights(model(x), labels, ids).backward()
        assert weights.curriculum.reducer.n == 16


def test_calls_out_of_order_are_told():
    model, (x, y) = net(), (torch.randn(8, 64), torch.arange(8))
    weights = LearnedWeights(model, [(x, y)], 10)
    with pytest.raises(ValueError, match="listen"): weights(model(x), y)
    with pytest.raises(ValueError, match="one loss per sample"): (w := LearnedWeights(model, [(x, y)], 10, loss_func=nn.CrossEntropyLoss())).listen(), w(model(x), y)
    with pytest.warns(UserWarning, match="stepped"):
        for _ in range(200): weights.listen()
    with pytest.raises(ValueError, match="n_items"): LearnedWeights(model, [(x, y)], 0)


def test_sample_numbers_in_some_passes_only(learned):
    model, weights = net(), None
    (train, valid) = sets()
    weights = LearnedWeights(model, DataLoader(valid, BS), 1000)
    opt = sgd(model)
    for i, ids in enumerate(ORDER[:120]):
        weights.listen()
        weights(model(train.tensors[0][ids]), train.tensors[1][ids], ids if i % 3 else None).backward()
        opt.step()
        opt.zero_grad()
        weights.stepped()
    assert weights.label_report()["seen"].sum() == 80 * BS


def test_another_term_of_the_loss_keeps_its_gradient(learned):
    model, weights = learned
    x, y, extra = torch.randn(BS, 64), torch.randint(10, (BS,)), torch.ones((), requires_grad=True)
    assert not weights.curriculum.uniform
    weights.listen()
    pred = model(x)
    loss = weights(pred, y, None, nn.functional.cross_entropy(pred, y) + 3 * extra, 1.)
    assert torch.autograd.grad(loss, extra)[0] == 3


@pytest.mark.parametrize("k", [.25, 1.])
def test_of_several_factors_the_one_that_fits_is_taken(learned, k):
    "As a trainer cannot know whether a model divides its loss by the number of items"
    model, weights = learned
    x, y = torch.randn(BS, 64), torch.randint(10, (BS,))
    weights.listen()
    pred = model(x).detach().requires_grad_()
    weights.attends = weights.due = False
    weights(pred, y, None, k * nn.functional.cross_entropy(pred, y), (.25, 1.)).backward()
    pull = pred.grad.abs().sum(1)
    assert weights.harmful > .3 and pull.min() < .01 * pull.max(), "the worst samples have hardly any weight"


def test_a_batch_is_weighed_once(learned):
    "Mixed labels would make a call for each of the two"
    model, weights = learned
    x, y = torch.randn(BS, 64), torch.randint(10, (BS,))
    weights.listen()
    pred = model(x)
    weights(pred, y)
    with pytest.raises(ValueError, match="one call per batch"): weights(pred, y.flip(0))


def test_a_network_that_is_called_again_in_the_same_step_is_heard():
    "As for a consistency loss; it has one linear layer"
    model, (x, y) = nn.Sequential(nn.Linear(64, 10)), (torch.randn(8, 64), torch.arange(8))
    weights = LearnedWeights(model, [(x, y)], 10)
    weights.listen()
    pred, *others = [model(x + i) for i in range(4)]
    weights(pred, y).backward()
    assert weights.witness.looks == 1 and len(others) == 3


def test_an_empty_validation_loader_is_refused():
    with pytest.raises(ValueError, match="empty"): next(ValidationStream([]))


def test_none_of_it_loads_fastai():
    code = "import sys, metarisk_nb.loop, metarisk_nb.lightning, metarisk_nb.transformers; print([o for o in ('fastai', 'fastcore') if o in sys.modules])"
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.strip() == "[]", r.stderr[-2000:]
