"Which labels are wrong: the record of a run, the share of wrong labels, and a probability for each label"
import io

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from metarisk_nb.audit import label_report, wrong_probability, wrong_shares
from metarisk_nb.order import LabelDoubt
from metarisk_nb.record import LabelRecord, believed


def watched(y, true, visits=10, sharp=4., C=4, seed=0, bs=50, record=None):
    "The record of a network that sees through the labels `y`, most of the time"
    g, record = torch.Generator().manual_seed(seed), record or LabelRecord()
    for _ in range(visits):
        p = (sharp * F.one_hot(true, C) + torch.randn(len(y), C, generator=g)).softmax(1)
        for i in torch.randperm(len(y), generator=g).split(bs): record.note(p[i], y[i], i, len(y))
    record.catch_up()
    return record


def noisy(n=1000, share=.3, C=4, kind="uniform", seed=0):
    g = torch.Generator().manual_seed(seed)
    true = torch.randint(0, C, (n,), generator=g)
    wrong = torch.rand(n, generator=g) < share
    step = torch.randint(1, C, (n,), generator=g) if kind == "uniform" else 1
    return torch.where(wrong, (true + step) % C, true), true, wrong


# --- The record

def test_the_mean_loss_is_that_of_all_visits():
    record, g = LabelRecord(), torch.Generator().manual_seed(0)
    y, ids, ps = torch.tensor([0, 2, 1]), torch.tensor([4, 0, 7]), []
    for _ in range(7):
        ps.append(torch.randn(3, 3, generator=g).softmax(1))
        record.note(ps[-1], y, ids, 9)
    record.catch_up()
    mean = torch.stack([-p.log().gather(1, y[:, None])[:, 0] for p in ps]).mean(0)
    assert torch.allclose(record.samples["loss"][ids], mean, atol=1e-5)
    assert record.samples["visits"].tolist() == [7, 0, 0, 0, 7, 0, 0, 7, 0]


@pytest.mark.parametrize("C", [2, 10, 100])
def test_sixteen_bytes_per_sample_whatever_the_number_of_classes(C):
    doubt = LabelDoubt()
    doubt(torch.randn(20, C), torch.randint(0, C, (20,)), torch.arange(20), 500)
    doubt.record.catch_up()
    per_sample = [t for t in [doubt.seen, *doubt.record.samples.values()] if len(t) == 500]
    assert len(per_sample) == 7 and sum(t.element_size() for t in per_sample) == 16


def test_the_class_that_was_believed_most_often():
    record = LabelRecord()
    for k in [1, 1, 2, 1, 0, 1, 2, 1, 1]:
        record.note(F.one_hot(torch.tensor([k]), 3).float(), torch.tensor([2]), torch.tensor([0]), 1)
    record.catch_up()
    assert record.samples["believed"].tolist() == [1]


def test_a_decoy_is_never_the_label():
    record = watched(*noisy(share=.3)[:2])
    assert (record.decoys != record.samples["label"]).all() and record.decoys.unique().tolist() == [0, 1, 2, 3]


def test_decoys_are_wrong_as_labels_are():
    y, true, wrong = noisy(kind="pairs")
    record = watched(y, true)
    assert (record.decoys == (y + 1) % 4)[~wrong].float().mean() > .95


def test_a_label_that_was_mended_begins_anew():
    y, true, wrong = noisy()
    record = watched(y, true)
    watched(true, true, visits=2, record=record)
    assert (record.samples["visits"][wrong] == 2).all() and (record.samples["visits"][~wrong] == 12).all()


def test_another_data_set_begins_anew():
    record = watched(*noisy(n=200)[:2])
    watched(*noisy(n=150)[:2], visits=3, record=record)
    assert len(record) == 150 and (record.samples["visits"] == 3).all()
    watched(*noisy(n=150, C=6)[:2], visits=2, C=6, record=record)
    assert record.n_classes == 6 and (record.samples["visits"] == 2).all()


def test_labels_that_are_none_are_left_out():
    record = LabelRecord()
    record.note(torch.full((4, 3), 1 / 3), torch.tensor([-100, 0, 3, 2]), torch.arange(4), 4)
    record.catch_up()
    assert record.samples["visits"].tolist() == [0, 1, 0, 1]
    assert label_report(record)["index"].tolist() == [1, 3] or label_report(record)["index"].tolist() == [3, 1]


def test_many_visits_do_not_overflow():
    record = LabelRecord()
    for _ in range(600): record.note(torch.tensor([[.9, .1]]), torch.tensor([1]), torch.tensor([0]), 1)
    record.catch_up()
    s = record.samples
    assert s["visits"].tolist() == s["votes"].tolist() == [255] and s["loss"][0] == pytest.approx(-np.log(.1), rel=1e-4)


def test_saved_and_loaded():
    y, true, _ = noisy()
    a = watched(y, true, visits=4)
    f = io.BytesIO()
    torch.save(a.state_dict(), f)
    f.seek(0)
    b = LabelRecord()
    b.load_state_dict(torch.load(f, weights_only=True))
    for o in (a, b): watched(y, true, visits=3, seed=1, record=o)
    pd.testing.assert_frame_equal(label_report(a), label_report(b))


# --- Learned by heart

def by_heart(share, slowest=6, visits=30, n=1000, C=4):
    "The record of a network that comes to believe every label, each after another number of visits"
    y, true, wrong = noisy(n, share, C)
    g, record = torch.Generator().manual_seed(1), LabelRecord()
    until = torch.rand(n, generator=g) * slowest
    for k in range(visits):
        p = (9 * F.one_hot(torch.where(k < until, true, y), C) + torch.randn(n, C, generator=g)).softmax(1)
        for i in torch.randperm(n, generator=g).split(50): record.note(p[i], y[i], i, n)
    record.catch_up()
    return record, wrong


@pytest.mark.parametrize("share", [0., .3])
def test_a_record_of_labels_that_were_learned_by_heart_says_that_it_cannot_tell(share):
    report = label_report(by_heart(share)[0])
    assert report.attrs["by_heart"] and "cannot be told" in report.attrs["summary"] and report.attrs["wrong_share"] < .03
    assert label_report(by_heart(0.)[0], judged=True).attrs["summary"].startswith("Found little: ")  # validation data have judged


@pytest.mark.parametrize("valid, known", [(.4, True), (.7, True), (.8, False), (.95, False)])
def test_validation_labels_that_it_hardly_knows_show_that_it_knows_the_others_by_heart(valid, known):
    record = by_heart(.3)[0]
    record.look(valid)
    report = label_report(record, judged=True)
    assert report.attrs["by_heart"] == known
    if known: assert f"knows 100% of them, but only {valid:.0%} of the validation labels" in report.attrs["summary"]
    else: assert report.attrs["summary"].startswith("Found little: ")


def test_labels_that_are_found_wrong_need_not_be_known_on_validation_data_either():
    y, true, wrong = noisy(share=.3)
    record = watched(y, true, 20)
    record.look(1 - float(wrong.float().mean()))
    assert label_report(record, judged=True).attrs["summary"].startswith("About ")
    record.look(float("nan"))  # no label of the batch counted
    assert not label_report(record, judged=True).attrs["by_heart"]


def test_the_last_look_is_saved_and_records_without_one_can_be_read():
    record = by_heart(.3)[0]
    record.look(torch.tensor(.4))
    state = record.state_dict()
    assert state["known"] == pytest.approx([1 - float(record.doubted), .4])
    other = LabelRecord()
    other.load_state_dict(state)
    assert label_report(other, judged=True).attrs == label_report(record, judged=True).attrs
    other.load_state_dict({k: v for k, v in state.items() if k != "known"})
    assert other.known is None and not label_report(other, judged=True).attrs["by_heart"]


def test_labels_that_are_no_class_are_not_counted_as_unknown():
    out = torch.eye(3)[[0, 1, 2, 0]]
    assert believed(out, torch.tensor([0, 1, 0, -100])).item() == pytest.approx(2 / 3)
    assert believed(out, torch.tensor([[0], [1], [2], [3]])).item() == 1
    assert believed(out, torch.full((4,), -100)).isnan()


def test_two_groups_that_can_still_be_seen_are_counted():
    y, true, wrong = noisy(share=.3)
    record = watched(y, y, 10, sharp=9., record=watched(y, true, 20))
    report = label_report(record)
    assert float(record.doubted) < .02 and not report.attrs["by_heart"]
    assert report.attrs["wrong_share"] == pytest.approx(float(wrong.float().mean()), abs=.05)


def test_of_few_labels_more_may_be_wrong():
    for n, more in ((500, True), (1200, False)):
        y, true, _ = noisy(n)
        assert label_report(watched(y, true)).attrs["summary"].endswith("there may well be more.") == more


def test_what_is_believed_of_late_is_followed_over_about_a_pass():
    y, true, wrong = noisy(share=.3)
    record = watched(y, true, 5)
    assert float(record.doubted) == pytest.approx(float(wrong.float().mean()), abs=.1)
    assert float(watched(true, true, 5, sharp=9., record=record).doubted) < .02
    other = LabelRecord()
    other.load_state_dict(record.state_dict())
    assert float(other.doubted) == float(record.doubted)


# --- How many

@pytest.mark.parametrize("share", [0., .1, .3, .5])
@pytest.mark.parametrize("kind", ["uniform", "pairs"])
def test_the_share_of_wrong_labels(share, kind):
    if share == .5 and kind == "pairs": share = .4  # half of them would leave no class that is meant
    y, true, wrong = noisy(2000, share, kind=kind)
    report = label_report(watched(y, true))
    assert report.attrs["wrong_share"] == pytest.approx(float(wrong.float().mean()), abs=.03)
    assert report.score.mean() == pytest.approx(report.attrs["wrong_share"], abs=.01)


def test_the_share_in_each_class():
    y, true, wrong = noisy(3000, .5)
    y, wrong = torch.where(y == 2, y, true), wrong & (y == 2)  # only labels 2 are wrong
    of_class = label_report(watched(y, true)).attrs["of_class"]
    for k in range(4): assert of_class[k] == pytest.approx(float(wrong[y == k].float().mean()), abs=.05)


def test_a_network_that_knows_nothing_yet_is_no_reason_for_an_error():
    y, true, _ = noisy(100)
    report = label_report(watched(y, true, visits=1, sharp=0.))
    assert 0 <= report.attrs["wrong_share"] <= 1 and report.score.between(0, 1).all()


def test_shares_of_classes_without_labels_or_decoys():
    overall, of_class = wrong_shares(np.array([1., 2., 9.]), np.array([0, 0, 3]), np.array([]), np.array([], int), 5)
    assert overall == 0 and of_class.tolist() == [0] * 5


# --- Which

def test_wrong_labels_come_first_and_scores_are_probabilities():
    y, true, wrong = noisy(4000, .3)
    report = label_report(watched(y, true, sharp=1.5, visits=6))
    is_wrong = wrong.numpy()[report["index"]]
    assert is_wrong[:800].mean() > .97 and is_wrong[-2000:].mean() < .03 and report.score.round(3).is_monotonic_decreasing
    for low, high in [(0, .1), (.1, .5), (.5, .9), (.9, 1)]:
        here = report.score.between(low, high).to_numpy()
        if here.sum() > 50: assert low - .12 < is_wrong[here].mean() < high + .12


def test_what_was_meant_is_suggested_and_counted():
    y, true, wrong = noisy(2000, .3, kind="pairs")
    report = label_report(watched(y, true), names=["a", "b", "c", "d"])
    first = report[:300]
    assert (np.array(list("abcd"))[true.numpy()[first["index"]]] == first.suggested).mean() > .95
    confusion = report.attrs["confusion"]
    assert confusion["b"]["a"] == pytest.approx(int((wrong & (y == 1)).sum()), rel=.2) and confusion["b"]["d"] < 10


def test_a_higher_loss_is_never_less_probable_within_a_class():
    rng = np.random.default_rng(0)
    loss, label, decoy = rng.exponential(1., 500), rng.integers(0, 3, 500), 2 + rng.exponential(1., 400)
    p = wrong_probability(loss, label, decoy, wrong_shares(loss, label, decoy, rng.integers(0, 3, 400), 3))
    for k in range(3):
        order = loss[label == k].argsort()
        assert (np.diff(p[label == k][order]) >= 0).all()


def test_a_report_of_n_rows_with_items():
    y, true, _ = noisy(100)
    report = label_report(watched(y, true), items=[f"{i}.png" for i in range(100)], n=7)
    assert list(report.columns) == ["index", "item", "label", "suggested", "score", "seen"] and len(report) == 7
    assert (report["item"] == report["index"].astype(str) + ".png").all() and (report.seen == 10).all()
    assert len(pd.concat([report, report])) == 14  # pandas compares what goes with a table


def test_too_early_and_too_many_classes():
    with pytest.raises(RuntimeError, match="before the first training batch"): label_report(LabelRecord())
    record = LabelRecord()
    record.note(torch.full((2, 2001), 1 / 2001), torch.tensor([0, 1]), torch.arange(2), 2)
    with pytest.raises(ValueError, match="at most 2000 classes, got 2001"): label_report(record)
