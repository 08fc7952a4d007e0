"One loss per sample out of losses of any shape: told apart, or refused with a message"
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from common import ce, equal, fit, learner, net, state
from fastai.basics import SGD, DataLoaders, Learner, set_seed
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLossFlat, LabelSmoothingCrossEntropyFlat, MSELossFlat
from torch import nn
from torch.utils.data import DataLoader as TorchLoader

from metarisk_nb.callback import BatchRisk, MetaRisk, RiskMetric, per_sample, sample_losses


def randn(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
def labels(*shape, of=3): return torch.randint(0, of, shape, generator=torch.Generator().manual_seed(1))
def bce(pred, y): return F.binary_cross_entropy_with_logits(pred, y, reduction="none")
def mse(pred, y): return F.mse_loss(pred, y, reduction="none")
def seq(pred, y): return F.cross_entropy(pred.transpose(1, -1), y, reduction="none")
def alone(f, pred, y): return torch.stack([f(pred[i:i + 1], y[i:i + 1]).mean() for i in range(len(y))])


# --- Losses that can be told apart

pixels = partial(F.cross_entropy, reduction="none", ignore_index=2)
accepted = {  # loss, output, target: n samples of 4 labels, 5 steps or 7 x 7 pixels
    "n": (ce, randn(6, 3), labels(6)), "n, 1": (mse, randn(6, 1), randn(6, 1)), "labels": (bce, randn(6, 4), labels(6, 4, of=2).float()),
    "as many labels as samples": (bce, randn(4, 4), labels(4, 4, of=2).float()), "numbers": (mse, randn(6, 3), randn(6, 3)),
    "as many numbers": (mse, randn(3, 3), randn(3, 3)), "steps": (seq, randn(6, 5, 3), labels(6, 5)), "as many steps": (seq, randn(5, 5, 3), labels(5, 5)),
    "pixels": (pixels, randn(6, 3, 7, 7), labels(6, 7, 7)), "as many rows": (pixels, randn(7, 3, 7, 5), labels(7, 7, 5)), "as many columns": (pixels, randn(5, 3, 7, 5), labels(5, 7, 5)),
    "a cube": (pixels, randn(7, 3, 7, 7), labels(7, 7, 7)),
    "flat labels": (BCEWithLogitsLossFlat(reduction="none"), randn(6, 4), labels(6, 4, of=2).float()), "as many flat labels": (BCEWithLogitsLossFlat(reduction="none"), randn(4, 4), labels(4, 4, of=2)),
    "flat numbers": (MSELossFlat(reduction="none"), randn(6, 3), randn(6, 3)), "flat number": (MSELossFlat(reduction="none"), randn(6, 1), randn(6)),
    "flat steps": (CrossEntropyLossFlat(reduction="none"), randn(6, 5, 3), labels(6, 5)), "as many flat steps": (CrossEntropyLossFlat(reduction="none"), randn(5, 5, 3), labels(5, 5)),
    "flat pixels": (CrossEntropyLossFlat(reduction="none", axis=1, ignore_index=2), randn(6, 3, 7, 7), labels(6, 7, 7)),
    "focal": (FocalLossFlat(reduction="none", axis=1), randn(6, 3, 7, 7), labels(6, 7, 7)), "dice": (DiceLoss(reduction="none"), randn(6, 3, 7, 7), labels(6, 7, 7)),
    "dice of as many classes": (DiceLoss(reduction="none"), randn(3, 3, 7, 7), labels(3, 7, 7)),
    "smoothed": (LabelSmoothingCrossEntropyFlat(reduction="none"), randn(6, 5, 3), labels(6, 5)),
    "a model that flattens its steps": (lambda p, y: ce(p, y.flatten()), randn(30, 3), labels(6, 5)),
    "one sample of 4 labels": (bce, randn(1, 4), labels(1, 4, of=2).float()), "one sample, one number": (lambda p, y: F.cross_entropy(p, y), randn(1, 3), labels(1)),
    "one sample, labels first": (lambda p, y: bce(p, y).T, randn(1, 4), labels(1, 4, of=2).float()),
}


@pytest.mark.parametrize("name", accepted)
def test_each_sample_has_the_mean_of_its_own_losses(name):
    f, pred, y = accepted[name]
    want = alone(f, pred, y) if "flattens" not in name else ce(pred, y.flatten()).view(6, 5).mean(1)
    assert torch.allclose(sample_losses(f, pred, y), want, atol=1e-6)


def test_a_second_target_and_a_pair_of_outputs_of_as_many_labels_as_samples():
    "The whole of a batch takes part where it is looked at which axis is the batch"
    pred, y, w = (randn(4, 4), randn(4, 4)), labels(4, 4, of=2).float(), randn(4, 1).abs()
    def f(pred, y, w): return bce(pred[0], y) * w + pred[1] ** 2
    want = (bce(pred[0], y) * w + pred[1] ** 2).mean(1)
    assert torch.allclose(sample_losses(f, pred, y, w), want)
    def g(pred, y, w): return f((pred["a"], pred["b"]), y, w)
    assert torch.allclose(sample_losses(g, dict(a=pred[0], b=pred[1]), y, w), want)


# --- Losses that cannot

def flat_steps_first(pred, y): return ce(pred.flatten(0, 1), y.T.flatten())


refused = {
    "labels first": (lambda p, y: bce(p, y).T, randn(6, 4), labels(6, 4, of=2).float(), "4, 6"),
    "twice as many labels first": (lambda p, y: bce(p, y).T, randn(6, 12), labels(6, 12, of=2).float(), "12, 6"),
    "as many labels first": (lambda p, y: bce(p, y).T, randn(4, 4), labels(4, 4, of=2).float(), "4, 4"),
    "steps first": (lambda p, y: seq(p, y).T, randn(6, 5, 3), labels(6, 5), "5, 6"),
    "three times as many steps first": (lambda p, y: seq(p, y).T, randn(4, 12, 3), labels(4, 12), "12, 4"),
    "as many steps first": (lambda p, y: seq(p, y).T, randn(5, 5, 3), labels(5, 5), "5, 5"),
    "as many steps first by a recurrent net": (lambda p, y: flat_steps_first(p, y).view(p.shape[:2]), randn(5, 5, 3), labels(5, 5), "5, 5"),
    "flat steps first": (flat_steps_first, randn(8, 4, 3), labels(4, 8), "32,"),
    "pixels first": (lambda p, y: pixels(p, y).permute(1, 2, 0), randn(6, 3, 7, 7), labels(6, 7, 7), "7, 7, 6"),
    "as many rows first": (lambda p, y: pixels(p, y).transpose(0, 1), randn(7, 3, 7, 5), labels(7, 7, 5), "7, 7, 5"),
    "of two shapes": (lambda p, y: mse(p, y[:, None].expand(-1, 6).T), randn(6, 1), randn(6), "6, 6"),
    "every sample with every other": (lambda p, y: (p @ p.T).sigmoid(), randn(6, 3), labels(6), "6, 6"),
    "outputs in a row": (lambda p, y: p.flatten() ** 2, randn(6, 4), labels(6), "24,"),
    "steps in a row, labels apart": (lambda p, y: bce(p, y).flatten(0, 1), randn(6, 5, 4), labels(6, 5, 4, of=2).float(), "30, 4"),
    "one number": (lambda p, y: ce(p, y).mean(), randn(6, 3), labels(6), ""), "one number in a row": (lambda p, y: ce(p, y).mean()[None], randn(6, 3), labels(6), "1,"),
    "too few": (lambda p, y: ce(p, y)[:4], randn(6, 3), labels(6), "4,"), "too many": (lambda p, y: ce(p, y).repeat(2), randn(6, 3), labels(6), "12,"),
}


@pytest.mark.parametrize("name", refused)
def test_losses_that_cannot_be_told_apart_are_refused(name):
    f, pred, y, shape = refused[name]
    with pytest.raises(ValueError, match=rf"{len(y)} samples.*shape \({shape}\).*first axis"): sample_losses(f, pred, y)


@pytest.mark.parametrize("cb", [lambda f: MetaRisk.first_edition(every=1, loss_func=f), lambda f: BatchRisk("cvar", loss_func=f), lambda f: RiskMetric("cvar", f)], ids=["meta", "batch", "metric"])
@pytest.mark.parametrize("loss", [lambda p, y: F.one_hot(y, 3).T * p.T ** 2, lambda p, y: ce(p, y).expand(7, -1), lambda p, y: p.flatten() ** 2], ids=["classes first", "7 first", "flat"])
def test_a_learner_refuses_them_and_says_what_to_pass(cb, loss):
    o = cb(loss)
    learn = learner(None if isinstance(o, RiskMetric) else o, metrics=o if isinstance(o, RiskMetric) else None, loss=lambda p, y: loss(p, y).mean())
    with pytest.raises(ValueError, match="samples.*shape.*first axis.*loss_func"): fit(learn, 1)


class Counts(nn.Module):
    "A loss that remembers: calls, a moving average, and what it has seen"
    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []
        self.register_buffer("mean", torch.zeros(()))
    def forward(self, pred, y):
        l = bce(pred, y)
        self.calls += 1
        self.seen.append(len(y))
        self.mean.lerp_(l.detach().mean(), .1)
        return l


class Plain:
    "The same without a module, called through a bound method"
    def __init__(self): self.calls, self.seen, self.mean = 0, [], torch.zeros(())
    forward = Counts.forward
    __call__ = forward


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize("kind", ["module", "object", "method", "partial"])
def test_a_loss_that_remembers_is_called_once(kind, n):
    o, other = (Counts(), Counts()) if kind == "module" else (Plain(), Plain())
    f = {"module": o, "object": o, "method": o.forward, "partial": partial(o)}[kind]
    pred, y = randn(n, 4).requires_grad_(), labels(n, 4, of=2).float()
    l = sample_losses(f, pred, y)
    l.sum().backward()
    other(pred, y)
    assert o.calls == other.calls == 1 and o.seen == other.seen == [n] and torch.equal(o.mean, other.mean)


def test_random_streams_and_gradients_are_those_of_one_call():
    def f(pred, y): torch.rand(3); return bce(pred, y)
    pred, y = randn(4, 4).requires_grad_(), labels(4, 4, of=2).float()
    torch.manual_seed(0)
    l, after = sample_losses(f, pred, y), torch.rand(1)
    torch.manual_seed(0)
    want = bce(pred, y).mean(1)
    torch.rand(3)
    assert torch.equal(l, want) and torch.equal(after, torch.rand(1)) and l.requires_grad
    assert torch.equal(torch.autograd.grad(l.sum(), pred, retain_graph=True)[0], torch.autograd.grad(want.sum(), pred)[0])


# --- Batches whose first axis is not the sample

class Steps(nn.Module):
    "(n, 6) points to (T, n, 3) or (n, T, 3) logits: a class for each step"
    def __init__(self, first=True, n=7): super().__init__(); self.out, self.first, self.n = nn.Linear(6, 3 * n), first, n
    def forward(self, x):
        o = self.out(x).view(len(x), self.n, 3)
        return o.transpose(0, 1) if self.first else o


def steps_data(n): return [(x, torch.randint(0, 3, (7,), generator=torch.Generator().manual_seed(i))) for i, x in enumerate(randn(n, 6))]


def steps_first(samples):
    x, y = zip(*samples)
    return torch.stack(x), torch.stack(y, 1)


def lengths_too(samples):
    x, y = steps_first(samples)
    return x, torch.full((len(x),), 7), y


class WithLengths(Steps):
    def forward(self, x, lengths): return super().forward(x)


def steps_learner(cbs=None, collate=steps_first, first=True, bs=10, **kwargs):
    set_seed(0)
    dls = DataLoaders(*[TorchLoader(steps_data(40), bs, shuffle=not i, collate_fn=collate) for i in (0, 1)])
    return Learner(dls, (WithLengths if collate is lengths_too else Steps)(first), CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs, **kwargs)


@pytest.mark.parametrize("cbs", [dict(cbs=MetaRisk.first_edition(every=1)), dict(cbs=BatchRisk("cvar")), dict(metrics=RiskMetric("cvar"))], ids=["meta", "batch", "metric"])
@pytest.mark.parametrize("collate", [steps_first, lengths_too], ids=["one input", "lengths too"])
@pytest.mark.parametrize("bs", [10, 5])
def test_targets_with_the_steps_first_are_refused(cbs, collate, bs):
    fit(steps_learner(collate=collate, bs=bs), 1)
    with pytest.raises(ValueError, match=rf"inputs.* {bs} samples.*targets.*shape \(7, {bs}\).*first axis"): fit(steps_learner(**cbs, collate=collate, bs=bs), 1)


def test_the_same_targets_with_the_batch_first_are_learned_on():
    learn = fit(steps_learner(MetaRisk.first_edition("cvar:.5", every=1, warmup=0, meta_lr=.3), collate=None, first=False))
    assert not learn.meta_risk.uniform and len(learn.meta_risk.weights) == 10


class Recurrent(nn.Module):
    "A net of sequences whose steps come first, as torch's own: it notes what it is given"
    seen = []
    def __init__(self): super().__init__(); self.rnn, self.out = nn.RNN(3, 8), nn.Linear(8, 3)
    def forward(self, x):
        self.seen.append(x[0, :, 0].tolist())
        return self.out(self.rnn(x.float())[0][-1])


def sequences(samples):
    x, y = zip(*samples)
    return torch.stack(x, 1), torch.tensor(y)


class Graphs(nn.Module):
    "The mean of a graph's nodes, of which each graph has a number of its own"
    seen = []
    def __init__(self): super().__init__(); self.up, self.out = nn.Linear(3, 8), nn.Linear(8, 3)
    def forward(self, x, of):
        n = int(of.max()) + 1
        self.seen.append([x[of == i][0, 0].item() for i in range(n)])
        h = self.up(x)
        return self.out(h.new_zeros(n, 8).index_add(0, of.long(), h))


def nodes(samples):
    x, y = zip(*samples)
    return torch.cat(x), torch.cat([torch.full((len(o),), float(i)) for i, o in enumerate(x)]), torch.tensor(y)


class Bags(nn.Module):
    "Tokens in a row and the places where texts begin, as in torch's tutorial of text classification"
    seen = []
    def __init__(self): super().__init__(); self.embed, self.out = nn.EmbeddingBag(100, 8), nn.Linear(8, 3)
    def forward(self, tokens, offsets):
        self.seen.append(tokens[offsets].tolist())
        return self.out(self.embed(tokens, offsets))


def bags(samples):
    x, y = zip(*samples)
    return torch.cat(x), torch.tensor([0, *map(len, x)][:-1]).cumsum(0), torch.tensor(y)


def numbered(i): return torch.full((7, 3), float(i))
def graph(i): return torch.full((1 + i % 4, 3), float(i))
def text(i): return torch.full((1 + i % 4,), i)


packed = {"sequences": (Recurrent, sequences, numbered), "graphs": (Graphs, nodes, graph), "texts": (Bags, bags, text)}


@pytest.mark.parametrize("meta_bs", [200, 12, 9])
@pytest.mark.parametrize("name", packed)
def test_inputs_whose_first_axis_is_not_the_sample_go_with_their_own_targets(name, meta_bs):
    model, collate, sample = packed[name]
    def make(cbs=None):
        set_seed(0)
        dls = DataLoaders(*[TorchLoader([(sample(i), i) for i in range(a, b)], 10, shuffle=not a, collate_fn=collate) for a, b in ((0, 40), (40, 80))])
        return Learner(dls, model(), lambda p, y: ce(p, y % 3).mean(), opt_func=SGD, cbs=cbs)
    model.seen.clear()
    given = []
    def spy(pred, y): given.append(y.tolist()); return ce(pred, y % 3)
    fit(make(MetaRisk.first_edition(every=1, meta_bs=meta_bs, loss_func=lambda p, y: ce(p, y % 3), meta_loss=spy)), lr=1e-3)
    assert len(given) >= 8 and all(len(o) == min(meta_bs, 40) and min(o) >= 40 for o in given)
    assert all([float(i) for i in o] in [[float(i) for i in s] for s in model.seen] for o in given)
    plain, zero = fit(make(), lr=1e-3), fit(make(MetaRisk.first_edition(meta_lr=0., every=1, meta_bs=meta_bs, loss_func=lambda p, y: ce(p, y % 3), meta_loss=spy)), lr=1e-3)
    assert equal(state(plain), state(zero))


@pytest.mark.parametrize("n_classes", [20, 3])
def test_multi_label_learners_of_as_many_labels_as_samples_learn(n_classes):
    "At 20 labels the losses of a batch of 20 are square"
    def make(cbs=None):
        set_seed(0)
        y = labels(100, n_classes, of=2).float()
        sets = [list(zip(randn(100, 6), y)), list(zip(randn(100, 6), y))]
        model = nn.Sequential(net()[:4], nn.Linear(16, n_classes))
        return Learner(DataLoaders(*[TorchLoader(s, 20, drop_last=True) for s in sets]), model, nn.BCEWithLogitsLoss(), opt_func=SGD, cbs=cbs)
    learn = fit(make(MetaRisk.first_edition("cvar:.5", every=1, warmup=0, meta_lr=.3, meta_bs=20)))
    assert not learn.meta_risk.uniform and learn.meta_risk.skipped == 0
    assert equal(state(fit(make())), state(fit(make(MetaRisk.first_edition("cvar:.5", meta_lr=0., every=1, meta_bs=20)))))


def test_numbers_against_a_row_of_numbers_are_refused():
    "torch stretches (n, 1) and (n,) to (n, n), with a warning: nobody means that"
    def make(cbs=None):
        set_seed(0)
        return Learner(DataLoaders(*[TorchLoader(list(zip(randn(40, 6), randn(40))), 10) for _ in range(2)]), nn.Linear(6, 1), nn.MSELoss(), opt_func=SGD, cbs=cbs)
    for cb in MetaRisk.first_edition(every=1), BatchRisk("cvar"):
        with pytest.raises(ValueError, match=r"10 samples.*shape \(10, 10\).*first axis"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(make(cb), 1)


def test_per_sample_of_a_loss_is_taken_apart_like_the_loss():
    f = per_sample(nn.CrossEntropyLoss(ignore_index=2))
    pred, y = randn(7, 3, 7, 7), labels(7, 7, 7)
    assert torch.allclose(sample_losses(f, pred, y), pixels(pred, y).flatten(1).mean(1))
