"Learners drawn out of everything that fastai people put together, three steps or a few more each: they train, or say what to do instead"
import re
import tempfile
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from common import Half, autocast_closed, held
from fastai.basics import SGD, Adam, CrossEntropyLossFlat, DataLoaders, Learner, OptimWrapper, RMSProp, params, ranger, set_seed
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.data import WeightedDL
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import TfmdDL
from fastai.losses import BCEWithLogitsLossFlat, FocalLossFlat, L1LossFlat, LabelSmoothingCrossEntropyFlat, MSELossFlat
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchLoader

from metarisk_nb.callback import BatchRisk, MetaRisk

KNOWN = [r"meta_loss='\w+' needs logits", r"method='finite_difference', which runs ordinary passes only"]

# --- Tasks: targets of n samples, a loss for each way to have one, and how many outputs

C = 3
w3 = torch.tensor([.2, 1., 3.])
classes = [CrossEntropyLossFlat(), CrossEntropyLossFlat(weight=w3), CrossEntropyLossFlat(ignore_index=1), CrossEntropyLossFlat(reduction="sum"), LabelSmoothingCrossEntropyFlat(),
           FocalLossFlat(), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=.1), F.cross_entropy]
tasks = dict(
    classes=(lambda g, n: torch.randint(0, C, (n,), generator=g), classes),
    labels=(lambda g, n: torch.randint(0, 2, (n, C), generator=g).float(), [BCEWithLogitsLossFlat(), BCEWithLogitsLossFlat(pos_weight=w3), nn.BCEWithLogitsLoss()]),
    numbers=(lambda g, n: torch.randn(n, C, generator=g), [MSELossFlat(), L1LossFlat(), nn.SmoothL1Loss(), F.mse_loss]),
    pixels=(lambda g, n: torch.randint(0, C, (n, 6, 6), generator=g), [CrossEntropyLossFlat(axis=1), CrossEntropyLossFlat(axis=1, ignore_index=0), FocalLossFlat(axis=1), nn.CrossEntropyLoss()]))


class Two(nn.Module):
    "Two inputs, one of them frozen on its way"
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(108, 8), nn.Linear(108, 8).requires_grad_(False); self.head = nn.Linear(8, C)
    def forward(self, x, x2): return self.head((self.a(x.flatten(1)) + self.b(x2.flatten(1))).relu())


class Attention(nn.Module):
    def __init__(self): super().__init__(); self.qkv, self.head = nn.Linear(36, 24), nn.Linear(24, C)
    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


nets = dict(
    mlp=lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8, C)),
    layers=lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(108), nn.Linear(108, 8), nn.GELU(), nn.Linear(8, C)),
    cnn=lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, C)),
    frozen=lambda: nn.Sequential(nn.Conv2d(3, 8, 3).requires_grad_(False), nn.ReLU(), nn.Flatten(), nn.Linear(128, C)),
    attention=Attention, two=Two)
seg = dict(seg=lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, C, 1)),
           up=lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.ConvTranspose2d(8, C, 2, 2)))


companions = dict(mixup=MixUp, cutmix=CutMix, accumulate=lambda: GradientAccumulation(8), clip=lambda: GradientClip(.1), last=ChannelsLast, half=Half, fp16=MixedPrecision,
                  save=SaveModelCallback, early=EarlyStoppingCallback, plateau=ReduceLROnPlateau)
optimizers = dict(sgd=SGD, adam=Adam, rms=RMSProp, ranger=ranger, torch=lambda ps, **kw: OptimWrapper(ps, torch.optim.AdamW, **kw), groups=SGD)


@st.composite
def learners(draw):
    task = draw(st.sampled_from(list(tasks)))
    d = dict(task=task, loss=draw(st.sampled_from(range(len(tasks[task][1])))), net=draw(st.sampled_from(list(seg if task == "pixels" else nets))),
             loader=draw(st.sampled_from(["fastai", "torch", "weighted", "batch sampler"])), n_valid=draw(st.integers(2, 40)), bs=draw(st.integers(1, 12)), batches=draw(st.integers(1, 3)), rest=draw(st.integers(0, 11)),
             drop_last=draw(st.booleans()), cbs=draw(st.lists(st.sampled_from(list(companions)), unique=True, max_size=3)), opt=draw(st.sampled_from(list(optimizers))),
             kind=draw(st.sampled_from(["meta", "meta", "meta", "meta", "paper", "batch"])), risk=draw(st.sampled_from(["expected", "cvar:.3", "icvar", "trimmed", "meanvar", "entropic", "human"])))
    d["n"] = d["batches"] * d["bs"] - min(d["rest"], d["bs"] - 1)
    mixed = [o for o in d["cbs"] if "mix" in o]  # what fastai itself mixes: one way at a time, no masks, one input, no batch of one, losses of its own
    own = not (task == "classes" and getattr(tasks[task][1][d["loss"]], "__module__", "").startswith("torch"))
    assume(not mixed or (len(mixed) == 1 and task != "pixels" and own and d["bs"] > 1 and d["n"] % d["bs"] != 1 and (d["net"] != "two")))
    assume(d["net"] not in ("mlp", "cnn") or (d["n"] > 1 and d["bs"] > 1 and (d["drop_last"] or d["n"] % d["bs"] != 1)))  # batch norm
    if d["kind"] != "batch":
        d["kw"] = draw(st.fixed_dictionaries({}, optional=dict(
            n_inner=st.integers(1, 3), every=st.integers(1, 3), knots=st.sampled_from([None, 2, 5]), method=st.sampled_from(["exact", "first_order", "finite_difference"]),
            fresh=st.booleans(), meta_bs=st.integers(2, 50), meta_loss=st.sampled_from(["auto", "own", "mae", "gce"] if task == "classes" else ["auto", "own"] * 5 + ["mae"]), floor=st.sampled_from([0., .6, 1.]), inner_lr=st.just(.1),
            warmup=st.integers(0, 2), relax=st.integers(0, 2), meta_lr=st.sampled_from([0., .1]))))
    return d


def loaders(d, bs):
    "Training and validation loader of `d`"
    g = torch.Generator().manual_seed(0)
    def items(n):
        x = [torch.randn(n, 3, 6, 6, generator=g) for _ in range(1 + (d["net"] == "two"))]
        return list(zip(*x, tasks[d["task"]][0](g, n)))
    train, valid = items(d["n"]), items(d["n_valid"])
    if d["loader"] in ("torch", "batch sampler"):
        sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(train), bs, d["drop_last"])
        how = dict(batch_sampler=sampler) if d["loader"] != "torch" else dict(batch_size=bs, shuffle=True, drop_last=d["drop_last"])
        return TorchLoader(train, **how), TorchLoader(valid, batch_size=bs)
    kw = dict(bs=bs, num_workers=0)
    one = TfmdDL(train, shuffle=True, drop_last=d["drop_last"], **kw) if d["loader"] == "fastai" else WeightedDL(train, wgts=range(1, d["n"] + 1), shuffle=True, drop_last=d["drop_last"], **kw)
    return one, TfmdDL(valid, **kw)


def make(d, cbs, path):
    set_seed(0)
    dls = DataLoaders(*loaders(d, min(d["bs"], d["n"])), device=torch.device("cpu"))
    dls.n_inp = 1 + (d["net"] == "two")
    dls.path = path
    splitter = (lambda m: [params(o) for o in m.children() if params(o)]) if d["opt"] == "groups" else None
    kw = dict(splitter=splitter) if splitter else {}
    loss = tasks[d["task"]][1][d["loss"]]
    learn = Learner(dls, {**nets, **seg}[d["net"]](), loss, opt_func=optimizers[d["opt"]], cbs=[*cbs, *[companions[o]() for o in d["cbs"]]], path=path, **kw)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(), autocast_closed():
        warnings.simplefilter("ignore")
        learn.fit(-(-3 // max(1, len(dls.train))), slice(1e-3, 1e-2))
    return learn


def outcome(d, path):
    "'trained', a known message, or 'plain training fails too'"
    cb = BatchRisk(d["risk"]) if d["kind"] == "batch" else (MetaRisk if d["kind"] == "meta" else MetaRisk.paper)(d["risk"], **d["kw"])
    loss = tasks[d["task"]][1][d["loss"]]
    try: learn = make(d, [cb], path)
    except Exception as e:
        for known in KNOWN:
            if re.search(known, str(e)): return known
        try: make(d, [], path)
        except Exception: return "plain training fails too"
        raise
    assert learn.loss_func is loss and getattr(loss, "reduction", "mean") in ("mean", "sum")
    if d["kind"] != "batch" and cb.reducer is not None:
        assert cb.weights.isfinite().all() and abs(cb.weights.sum() - 1) < 1e-4 and (cb.weights >= 0).all()
        assert cb.skipped == 0 and not held(cb)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    return "trained"


def fuzz(n):
    seen = Counter()
    @given(learners())
    @settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def go(d):
        with tempfile.TemporaryDirectory() as path: seen[outcome(d, path)] += 1
    go()
    return seen


@pytest.mark.parametrize("n", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_drawn_learners_train_or_say_what_to_do(n):
    seen = fuzz(n)
    print(dict(seen))
    assert seen["trained"] >= .9 * n, seen
