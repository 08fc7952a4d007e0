"What is learned goes to fastai's loggers as metrics"
import csv
import json

import pytest
from common import learner
from fastai.callback.progress import CSVLogger
from fastai.learner import load_learner

from metarisk_nb.callback import MetaRisk

NAMES = ["harmful", "worst_quarter", "looks"]


def logged(cb, epochs=2, **kwargs):
    "A Learner that was trained with MetaRisk and the logger `cb`"
    meta = MetaRisk.first_edition(meta_lr=5., every=2, warmup=0, floor=0)
    learn = learner(cbs=[meta, cb], **kwargs)
    learn.metrics = meta.metrics
    with learn.no_bar(): learn.fit(epochs)
    return learn


def test_csv(tmp_path):
    learn = logged(CSVLogger(tmp_path / "log.csv"))
    rows = [*csv.DictReader(open(tmp_path / "log.csv"))]
    assert len(rows) == 2 and all(o in rows[0] for o in NAMES)
    now = learn.meta_risk.curriculum.readings
    assert float(rows[-1]["harmful"]) == pytest.approx(now["harmful"], abs=1e-5) and float(rows[-1]["worst_quarter"]) == pytest.approx(now["worst_quarter"], abs=1e-5)
    assert now["harmful"] > .01 and now["worst_quarter"] != 1 and float(rows[-1]["looks"]) == learn.meta_risk.drawn > float(rows[0]["looks"]) > 0


def test_before_anything_was_learned():
    assert {m.name: m.value for m in MetaRisk().metrics} == dict(harmful=0., worst_quarter=1., looks=0)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = logged(TensorBoardCallback(tmp_path, log_preds=False, trace_model=False))
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in NAMES: assert events.Scalars(name)[-1].value == pytest.approx(float({m.name: m.value for m in learn.metrics}[name]), abs=1e-5)


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from fastai.callback import wandb as fastais
    known = fastais.init_args  # with fastcore 2.2, fastai 2.8.12 asks a number for its attributes, and fails in every Learner
    monkeypatch.setattr(fastais, "init_args", lambda o: known(o) if hasattr(o, "__dict__") else {})
    monkeypatch.setenv("WANDB_SILENT", "true")
    said = []
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(console="off")) as run:
        log = run.log
        def keep(row, *args, **kwargs):
            said.append(row)
            return log(row, *args, **kwargs)
        monkeypatch.setattr(wandb, "log", keep)
        learn = logged(fastais.WandbCallback(log_preds=False, log_model=False))
    last = [o for o in said if "harmful" in o][-1]
    assert last["harmful"] == pytest.approx(learn.meta_risk.curriculum.readings["harmful"]) and {*NAMES} <= {*last}
    assert json.dumps({k: float(last[k]) for k in NAMES}) and list(tmp_path.rglob("*.wandb"))


def test_an_exported_learner_has_them_still(tmp_path):
    learn = logged(CSVLogger(tmp_path / "log.csv"))
    learn.remove_cb(CSVLogger)
    learn.export(tmp_path / "a.pkl")
    assert [m.name for m in load_learner(tmp_path / "a.pkl").metrics] == NAMES
