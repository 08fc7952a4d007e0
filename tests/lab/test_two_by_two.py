"The task with a shortcut: its groups, just train twice, what is stored and how it is read"
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from metarisk_nb.lab import two_by_two as lab


@pytest.fixture(scope="module")
def stored(request): return pd.read_csv(request.config.rootpath / "nbs/results/two_by_two.csv")


def test_the_mark_agrees_with_the_label_in_training_and_tells_nothing_in_the_test_set():
    dls = lab.two_by_two(3)
    train, valid, hyper, test = (lab.four_groups(o.dataset.x, o.dataset.y).bincount() for o in dls.loaders)
    assert [int(o.sum()) for o in (train, valid, hyper, test)] == [2400, 1200, 1200, 8000] and test.tolist() == [2000] * 4
    for n in (train, valid, hyper): assert .92 < (n[0] + n[3]) / n.sum() < .97
    x = dls[3].dataset.x
    assert torch.equal(x[:4000, :, 3:], x[4000:, :, 3:]) and (x[:4000, :, :3, :3] == -1).all() and (x[4000:, :, :3, :3] == 3).all()


def test_just_train_twice_repeats_what_is_wrong():
    s = lab.two_by_two().train_ds
    ones = nn.Sequential(nn.Flatten(), nn.Linear(196, 2))
    with torch.no_grad(): ones[1].weight.zero_(); ones[1].bias.copy_(torch.tensor([0., 1.]))
    more = lab.repeated(ones, s, 4)
    assert len(more) == len(s) + 3 * (s.y == 0).sum() and (more.y[len(s):] == 0).all() and torch.equal(more.x[:len(s)], s.x)


def test_a_run_is_looked_at_twelve_times_and_repeats():
    a, b = (lab.fitted(lab.two_by_two(), seed=1, steps=96).looks.rows for _ in range(2))
    assert a == b and [o[0] for o in a] == [48, 96] and all(len(o) == len(lab.columns) for o in a)


def test_every_setting_and_seed_is_stored_and_the_default_was_plain_training(stored):
    want = {(w, s, i) for w in lab.ways for s in lab.ways[w] for i in range(5)}
    found = stored.groupby(["way", "setting", "seed"]).step.apply(list)
    assert set(found.index) == want and all(o == list(range(48, 577, 48)) for o in found)
    plain, default = (stored[stored.way == w].drop(columns="way").reset_index(drop=True) for w in ("plain", "learned, default"))
    assert plain.equals(default)


def test_what_is_stored_is_not_run_again(tmp_path, monkeypatch):
    calls = []
    def way(dls, seed): calls.append(seed); return SimpleNamespace(looks=SimpleNamespace(rows=[[48, *range(8)]]))
    monkeypatch.setattr(lab, "ways", {"some": {"only": way}})
    monkeypatch.setattr(lab, "two_by_two", lambda seed: None)
    for seeds in ([0], [0, 1]): t = lab.study(seeds, tmp_path / "t.csv")
    assert calls == [0, 1] and t.seed.tolist() == [0, 1] and t.test_3.tolist() == [7, 7] and len(pd.read_csv(tmp_path / "t.csv")) == 2


def test_the_choice_asks_hyper_and_never_test():
    def look(way, step, hyper, test, setting="only", seed=0): return dict(zip(lab.columns, [step, *[hyper, 90, 90, 90], *[test, 80, 80, 80]]), way=way, setting=setting, seed=seed)
    t = pd.DataFrame([look("plain", 48, 30, 10), look("plain", 96, 20, 40), look("group DRO", 48, 50, 60, "a"), look("group DRO", 96, 40, 99, "b")])
    c = lab.chosen(t).set_index("way")
    assert c.worst.to_dict() == {"plain": 40, "plain, stopped": 10, "group DRO": 60} and c["mean"]["group DRO"] == 75


def test_the_comparison_is_paired_by_seed():
    t = pd.DataFrame([dict(way=w, seed=i, worst=50 + 10 * i + d) for i in range(5) for w, d in (("a", 0), ("b", 5 + .1 * i))])
    row = lab.compared(t, "a").loc["b"]
    assert abs(row["diff"] - 5.2) < 1e-9 and row.here == "better" and 5 < row.lo < 5.2 < row.hi < 5.4
