"One of several processes that train one model: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which; `python distributed_worker.py OUT '[settings, ...]'`"
import json
import os
import sys
import warnings
from pathlib import Path

import fastai.distributed as fd
import torch
from common import fit, learner, state, tensors
from fastai.basics import Callback, CrossEntropyLossFlat
from torch import nn

from metarisk_nb.batches import MetaBatches
from metarisk_nb.callback import BatchRisk, MetaRisk, RiskMetric
from metarisk_nb.groups import GroupRisk

warnings.filterwarnings("ignore")
torch.set_num_threads(1)


def _broadcast(self, t, rank):
    "fastai sends the order of the samples over CUDA; here over the CPU"
    t = torch.tensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()


fd.DistributedDL._broadcast = _broadcast


class Look(Callback):
    "phi after every step, and a save after every epoch"
    order = 100
    def __init__(self, die): self.die, self.rows = die, []
    def after_batch(self):
        if not self.training: return
        if hasattr(self.learn, "meta_risk"): self.rows.append(self.learn.meta_risk.reducer.logits.detach().clone())
        if self.learn.train_iter == self.die: os._exit(9)
    def after_epoch(self):
        if not fd.rank_distrib():
            self.learn.save("model")
            if hasattr(self.learn, "meta_risk"): self.learn.meta_risk.save("meta")


def label(x, y): return y


def model(): torch.manual_seed(0); return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def joined(n, bs, world):
    "Order in which one process sees in one batch what `world` processes see in their parts"
    return torch.arange(n).view(world, -1, bs).transpose(0, 1).flatten()


class Apart(MetaBatches):
    "Fresh batches from a loader other than the one that trains"
    def __init__(self, cb, dl): super().__init__(cb); self.dl = dl
    train_dl = property(lambda self: self.dl)


def run(out, risk="expected", kind="meta", epochs=2, start=0, die=-1, sync_bn=False, join=0, bn=False, reduction="mean", weight=None, **kw):
    if risk.startswith("groups:"): risk = GroupRisk(label, risk[7:], eta=.5)
    cbs = {"meta": [MetaRisk(risk, every=1, warmup=0, **kw)], "batch": [BatchRisk(risk)], "plain": [], "default": [MetaRisk()]}[kind]
    loss = CrossEntropyLossFlat(reduction=reduction, weight=weight and torch.tensor(weight))
    learn = learner(cbs, model=model(), shuffle=False, bs=10 * (join or 1), loss=loss, metrics=[RiskMetric(risk if getattr(risk, "kind", "") == "worst" else "cvar:.3")])
    if bn: learn.model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    learn.path, look = Path(out), Look(die)
    learn.add_cb(look)
    if join:
        order = joined(200, 10, join)
        x, y = tensors(200, 0)
        data = learn.dls.train.dataset
        whole = learn.dls.train.new()
        learn.dls.train.dataset = type(data)(x[order], y[order])
        if hasattr(learn, "meta_risk"): learn.meta_risk.batches = Apart(learn.meta_risk, whole)
        fit(learn, epochs)
        with learn.no_bar(): risk = learn.validate()[1]
    else:
        with learn.distrib_ctx(sync_bn=sync_bn, cpu=True):
            if start: learn.load("model"); learn.meta_risk.load("meta")
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, .1, start_epoch=start)
            with learn.no_bar(): risk = learn.validate()[1]
    told = dict(samples=recorded(learn)) if kind == "default" else {}
    return dict(theta=state(learn), phi=look.rows, risk=torch.tensor([risk]), **told)


def recorded(learn):
    "What the record has of each sample"
    doubt = learn.meta_risk.curriculum.doubt
    doubt.catch_up()
    doubt.record.catch_up()
    return dict(doubt.record.samples, seen=doubt.seen)


if __name__ == "__main__":
    out, rank = Path(sys.argv[1]), os.environ["RANK"]
    for i, settings in enumerate(json.loads(sys.argv[2])): torch.save(run(out, **settings), out / f"{i} rank {rank}.pth")
