"A small Learner and what tests ask of it"
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from fastai.basics import SGD, Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import ParamScheduler  # noqa: F401 (adds fit_one_cycle)
from torch import nn

from metarisk_nb.batches import Whole
from metarisk_nb.data import TensorDL, TensorSet

CPU = torch.device("cpu")


def tensors(n, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    return torch.randn(n, 6, generator=g).to(dtype) + F.one_hot(y, 6).to(dtype), y


def net(): return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 3))


def learner(cbs=None, n=200, n_valid=60, bs=20, model=None, shuffle=True, drop_last=True, dtype=torch.float32, loss=None, **kwargs):
    set_seed(0)
    sets = [TensorSet(*tensors(m, i, dtype)) for i, m in enumerate((n, n_valid))]
    dls = DataLoaders(*[TensorDL(s, bs, shuffle=shuffle and not i, drop_last=drop_last and not i, device=CPU) for i, s in enumerate(sets)])
    dls.device, dls.n_inp = CPU, 1
    kwargs = {"opt_func": SGD, **kwargs}
    return Learner(dls, (model or net()).to(dtype), loss or CrossEntropyLossFlat(), cbs=cbs, **kwargs)


def fit(learn, n=2, lr=.1):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit_one_cycle(n, lr)
    return learn


def state(learn): return [v.clone() for v in learn.model.state_dict().values()]


def equal(a, b): return all(torch.equal(x, y) for x, y in zip(a, b))


def held(cb):
    "What a callback still holds of the data: batches, or the iterators that give them"
    def of(o): return [v for v in vars(o).values() if isinstance(v, (Whole, Iterator))]
    return of(cb) + (of(cb.batches) if getattr(cb, "batches", None) else [])


def ce(pred, y): return F.cross_entropy(pred, y, reduction="none")


class Half(Callback):
    "bfloat16 autocast on the CPU from the forward pass to the loss, as fastai's MixedPrecision does on a GPU: an error in between leaves it open"
    order = MixedPrecision.order
    def before_batch(self): self.autocast = torch.autocast("cpu", torch.bfloat16); self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)


def autocast_depth():
    "How many autocasts are open"
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


@contextmanager
def autocast_closed():
    "Close on leaving what was left open within"
    depth, was = autocast_depth(), torch.is_autocast_enabled("cpu")
    try: yield
    finally:
        while autocast_depth() > depth: torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cpu", was)
        torch.clear_autocast_cache()
