"Risks over groups in a Learner: training and validation groups, two kinds of loaders, a table, state, the report"
import io
import pickle
import warnings

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from common import CPU, equal, fit, learner, net, state, tensors
from fastai.basics import SGD, DataLoaders, Learner, set_seed
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from torch import nn
from torch.utils.data import TensorDataset

from metarisk_nb.by_group import group_report
from metarisk_nb.callback import BatchRisk, MetaRisk, RiskMetric
from metarisk_nb.groups import ColumnGroups, GroupRisk, last_target

warnings.filterwarnings("ignore")


def label(x, y): return y
def sign(x, y): return (x[:, 0] > 0).long()
def overlapping(x, y): return x[:, :3] > 0
def own(kind="worst", **kw): return GroupRisk(label, kind, **{"eta": .5, **kw} if kind == "dro" else kw)


def loss(pred, y, group, reduction="mean"): return F.cross_entropy(pred, y, reduction=reduction)


def two_targets(cbs=None, n=120, torchs=False, **kw):
    "A Learner whose loaders give (x, y, group)"
    set_seed(0)
    sets = [TensorDataset(x, y, (x[:, 0] > 0).long()) for x, y in (tensors(m, i) for i, m in enumerate((n, 60)))]
    if torchs: dls = DataLoaders(*[torch.utils.data.DataLoader(s, 20, shuffle=not i) for i, s in enumerate(sets)])
    else: dls = DataLoaders.from_dsets(*sets, bs=20, device=CPU, n_inp=1)
    dls.n_inp = 1
    return Learner(dls, net(), loss, cbs=cbs, opt_func=SGD, **kw)


# --- BatchRisk

@pytest.mark.parametrize("of", [label, sign, overlapping])
@pytest.mark.parametrize("kind", ["worst", "mean"])
def test_batch_risk_trains_on_the_groups_of_each_batch(of, kind):
    "The same as a loop that works out the groups itself"
    learn = learner(BatchRisk(GroupRisk(of, kind)), shuffle=False, model=nn.Linear(6, 3))
    mine = nn.Linear(6, 3)
    mine.load_state_dict(learn.model.state_dict())
    opt = torch.optim.SGD(mine.parameters(), .1)
    for x, y in learn.dls.train:
        l, g = F.cross_entropy(mine(x), y, reduction="none"), of(x, y)
        means = [l[m].mean() for m in (g.unbind(1) if g.ndim == 2 else [g == k for k in g.unique()]) if m.any()]
        (max(means) if kind == "worst" else torch.stack(means).mean()).backward()
        opt.step(); opt.zero_grad()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1, wd=0.)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(learn.model.parameters(), mine.parameters()))


def test_group_dro_learns_in_training_alone_and_starts_anew_in_another_learner():
    risk = own("dro")
    learn = fit(learner(BatchRisk(risk)), 1)
    q = learn.batch_risk.risk.q
    assert len(q) == 3 and not torch.allclose(q, torch.full((3,), 1 / 3)) and not len(risk.q), "what is learned stays in the callback"
    with learn.no_bar(): learn.validate(); learn.get_preds()
    assert torch.equal(learn.batch_risk.risk.q, q)
    cb = pickle.loads(pickle.dumps(learn.batch_risk))
    assert torch.equal(cb.risk.q, q)
    other = learner(learn.batch_risk)
    assert not len(other.batch_risk.risk.q) and torch.equal(learn.batch_risk.risk.q, q)


def test_group_dro_goes_on_from_a_saved_state():
    whole, first = (learner(BatchRisk(own("dro")), shuffle=False) for _ in range(2))
    for o in (whole, first):
        set_seed(0)
        with o.no_bar(), o.no_logging(): o.fit(1, .1)
    second = learner(BatchRisk(own("dro")), shuffle=False)
    second.model.load_state_dict(first.model.state_dict())
    second.batch_risk.risk.load_state_dict(first.batch_risk.risk.state_dict())
    for o in (whole, second):
        set_seed(1)
        with o.no_bar(), o.no_logging(): o.fit(1, .1, wd=0.)
    assert torch.allclose(whole.batch_risk.risk.q, second.batch_risk.risk.q)


class Edits(nn.Module):
    "A model that edits its inputs in place"
    def __init__(self): super().__init__(); self.net = net()
    def forward(self, x): return self.net(x.abs_())


def test_groups_are_those_of_the_inputs_before_the_model_edits_them():
    seen = []
    def of(x, y): seen.append((x[:, 0] < 0).any().item()); return sign(x, y)
    fit(learner(BatchRisk(GroupRisk(of)), model=Edits()), 1)
    assert seen and all(seen[:5])


# --- MetaRisk

@pytest.mark.parametrize("kind", ["worst", "mean", "dro"])
def test_meta_risk_learns_by_merit_for_the_groups_of_validation_data(kind):
    learn = learner(MetaRisk(own(kind), every=1, warmup=0))
    fit(learn)
    m = learn.meta_risk
    assert (m.settings["rule"], m.settings["method"], m.settings["rank"]) == ("merit", "exact", "loss") and "risk" not in m.settings
    assert m.weights.isfinite().all() and m.reducer.logits.abs().max() > .05 and m.history.values[-1].isfinite()
    assert len(m.risk.q) == (3 if kind == "dro" else 0)


def test_the_value_is_the_worst_group_of_the_validation_set():
    learn = learner(MetaRisk(own(), every=1, inner_lr=1e-9, meta_bs=100), model=nn.Linear(6, 3))
    values = []
    old = learn.meta_risk.meta_step
    def step(batch=None):
        s = learn.dls.valid.dataset
        l = F.cross_entropy(learn.model(s.x), s.y, reduction="none")
        old(batch)
        values.append((learn.meta_risk.value, max(l[s.y == k].mean() for k in range(3)).item()))
    learn.meta_risk.meta_step = step
    fit(learn, 1)
    assert len(values) == 10 and all(abs(a - b) < 1e-5 for a, b in values)


def test_state_holds_the_weights_of_group_dro_and_survives_a_safe_load():
    learn = fit(learner(MetaRisk(own("dro"), every=1)), 1)
    f = io.BytesIO()
    torch.save(learn.meta_risk.state_dict(), f)
    f.seek(0)
    other = learner(MetaRisk(own("dro"), every=1))
    other.meta_risk.load_state_dict(torch.load(f, weights_only=True))
    assert torch.equal(other.meta_risk.risk.q, learn.meta_risk.risk.q) and len(other.meta_risk.risk.q) == 3
    learn.meta_risk.reset()
    assert not len(learn.meta_risk.risk.q) and len(other.meta_risk.risk.q) == 3
    assert "risk" not in fit(learner(MetaRisk()), 1).meta_risk.state_dict()


def test_an_exported_learner_keeps_its_groups(tmp_path):
    learn = fit(learner(MetaRisk(own("dro"), every=1)), 1)
    learn.path = tmp_path
    learn.export()
    again = torch.load(tmp_path / "export.pkl", weights_only=False)
    assert torch.equal(again.meta_risk.risk.q, learn.meta_risk.risk.q)


def test_what_is_refused():
    with pytest.raises(ValueError, match="a risk over groups is for rule='merit', got 'presumption'"): MetaRisk(own(), rule="presumption")
    with pytest.raises(ValueError, match="kind='dro' learns from the batches"): RiskMetric(own("dro"))
    with pytest.raises(TypeError, match="got a tensor of torch.float32"): fit(learner(BatchRisk(GroupRisk(lambda x, y: x[:, 0]))), 1)


# --- RiskMetric and the report

@pytest.mark.parametrize("of", [label, overlapping])
def test_the_metric_is_exact_over_uneven_batches(of):
    learn = learner(n_valid=53, metrics=[RiskMetric(GroupRisk(of)), RiskMetric(GroupRisk(of, "mean"))])
    with learn.no_bar(): _, worst, mean = learn.validate()
    s = learn.dls.valid.dataset
    with torch.no_grad(): l = F.cross_entropy(learn.model.eval()(s.x), s.y, reduction="none")
    g = of(s.x, s.y)
    means = [l[m].mean().item() for m in (g.unbind(1) if g.ndim == 2 else [g == k for k in range(3)])]
    assert abs(worst - max(means)) < 1e-6 and abs(mean - sum(means) / 3) < 1e-6
    assert [str(o.name) for o in learn.metrics] == ["GroupRisk(worst)", "GroupRisk(mean)"]


@pytest.mark.parametrize("of", [label, overlapping])
def test_the_report_counts_each_group(of):
    learn = fit(learner(MetaRisk(own(), every=5), n_valid=53))
    was = state(learn)
    r = group_report(learn, of)
    s = learn.dls.valid.dataset
    with torch.no_grad(): pred = learn.model.eval()(s.x)
    l, right, g = F.cross_entropy(pred, s.y, reduction="none"), (pred.argmax(1) == s.y).float(), of(s.x, s.y)
    assert list(r.columns) == ["group", "samples", "loss", "accuracy"] and r.loss.is_monotonic_decreasing and len(r) == 3
    for row in r.itertuples():
        m = g[:, row.group] if g.ndim == 2 else g == row.group
        assert row.samples == m.sum() and abs(row.loss - l[m].mean()) < 1e-5 and abs(row.accuracy - right[m].mean()) < 1e-5
    assert equal(was, state(learn)) and not any("Collected" in type(o).__name__ for o in learn.cbs)


def test_the_report_leaves_out_empty_groups_and_samples_without_one_and_takes_a_loader():
    learn = learner()
    r = group_report(learn, lambda x, y: torch.where(y == 1, -1, 2 * y), learn.dls.train)
    y = learn.dls.train.dataset.y
    assert sorted(r.group) == [0, 4] and r.samples.sum() <= (y != 1).sum() and r.samples.min() > 0


def test_groups_that_have_no_name_have_their_number():
    def of(x, y): return y
    of.names = ["zero"]
    assert set(group_report(learner(), of).group) == {"zero", 1, 2}


def test_the_report_of_a_regression_has_no_accuracy():
    learn = learner(model=nn.Linear(6, 1), loss=nn.MSELoss())
    for dl in learn.dls.loaders: dl.dataset.y = dl.dataset.y[:, None].float()
    assert list(group_report(learn, sign).columns) == ["group", "samples", "loss"]


# --- Where groups come from

@pytest.mark.parametrize("torchs", [False, True])
def test_the_second_target_is_the_group(torchs):
    learn = two_targets([BatchRisk(GroupRisk(last_target))], torchs=torchs)
    fit(learn, 1)
    r = group_report(learn, last_target)
    assert sorted(r.group) == [0, 1] and r.samples.sum() == 60 and r.accuracy.between(0, 1).all()
    learn = fit(two_targets([MetaRisk(GroupRisk(last_target), every=1)], torchs=torchs), 1)
    assert learn.meta_risk.reducer.logits.abs().max() > .01


@pytest.fixture(scope="module")
def table():
    g = torch.Generator().manual_seed(0)
    n = 200
    df = pd.DataFrame(dict(age=torch.randn(n, generator=g).numpy(), sex=[("f", "m")[i] for i in torch.randint(2, (n,), generator=g)],
                           job=[("a", "b", "c")[i] for i in torch.randint(3, (n,), generator=g)]))
    df["rich"] = ["y" if a + (s == "m") > .5 else "n" for a, s in zip(df.age, df.sex)]
    return df


def rows(df, **kw):
    return TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=["sex", "job"], cont_names=["age"], y_names="rich",
                                      y_block=CategoryBlock, valid_idx=[*range(60)], bs=20, device=CPU, **kw)


def test_the_groups_of_a_table_are_a_column(table):
    dls = rows(table)
    sex = ColumnGroups(dls, "sex")
    learn = fit(tabular_learner(dls, layers=[8], cbs=[MetaRisk(GroupRisk(sex), every=1)]), 1)
    r = group_report(learn, sex)
    first = table.iloc[:60]
    assert dict(zip(r.group, r.samples)) == {"f": (first.sex == "f").sum(), "m": (first.sex == "m").sum()}
    fit(tabular_learner(dls, layers=[8], cbs=[BatchRisk(GroupRisk(sex, "dro"))]), 1)
    with pytest.raises(ValueError, match="one of sex, job, got 'rich'"): ColumnGroups(dls, "rich")


def test_a_label_and_a_column_make_four_groups(table):
    dls = rows(table)
    sex = ColumnGroups(dls, "sex")
    learn = fit(tabular_learner(dls, layers=[8], cbs=[BatchRisk(GroupRisk(lambda *b: 2 * b[-1].flatten().long() + sex(*b) - 1, "mean"))]), 1)
    assert learn.batch_risk.n_step == 7
