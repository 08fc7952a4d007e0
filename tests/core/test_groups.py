"Risks over groups: values worked out by hand, gradients, overlaps, absent groups, state, and what is refused"
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarisk_nb.groups import ColumnGroups, GroupRisk, anew, check_groups, group_means, last_target, of_all, of_batch
from metarisk_nb.risk import CVaR, as_risk

X = torch.zeros(5, 2)
Y = torch.tensor([0, 0, 2, 2, 2])
L = torch.tensor([1., 3., 6., 0., 3.])  # means: 2 for group 0, nothing for 1, 3 for 2


def label(x, y): return y


def on(kind="worst", y=Y, of=label, **kw): return GroupRisk(of, kind, **kw).on(X[:len(y)], y)


def gradient(risk, l=L):
    l = l.clone().requires_grad_()
    return torch.autograd.grad(risk(l), l)[0]


# --- Values and gradients

def test_means_and_sizes_by_hand():
    means, n = group_means(L, Y)
    assert means.tolist() == [2, 0, 3] and n.tolist() == [2, 0, 3]


def test_the_worst_group_gets_all_the_gradient_in_equal_parts():
    assert on()(L) == 3
    assert torch.allclose(gradient(on()), torch.tensor([0, 0, 1 / 3, 1 / 3, 1 / 3]))


def test_in_the_mean_each_group_counts_alike_whatever_its_size():
    assert on("mean")(L) == 2.5
    assert torch.allclose(gradient(on("mean")), torch.tensor([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6]))


@pytest.mark.parametrize("weights,want", [([3, 9, 1], 2.25), (torch.tensor([1, 0, 1]), 2.5), ([0., 1., 1.], 3.), ([0, 5, 0], 0.)])
def test_weights_of_the_groups_that_are_there_are_normalised(weights, want): assert on("mean", weights=weights)(L) == want


def test_group_dro_is_algorithm_1_for_all_groups_of_a_batch():
    dro, q = GroupRisk(label, "dro", eta=.3), [1 / 3] * 3
    for y, l in [([0, 1, 2], [1., 2., 4.]), ([2, 2, 0], [1., 3., 5.]), ([1, 1, 1], [.5, .5, 2.])]:
        y, l = torch.tensor(y), torch.tensor(l)
        means = [l[y == g].mean().item() if (y == g).any() else None for g in range(3)]
        q = [o * math.exp(.3 * (m or 0)) for o, m in zip(q, means)]
        q = [o / sum(q) for o in q]
        want = sum(o * m for o, m in zip(q, means) if m is not None)
        assert math.isclose(dro.on(X[:3], y)(l), want, rel_tol=1e-6) and torch.allclose(dro.q, torch.tensor(q))


def test_the_weights_of_group_dro_send_no_gradient():
    dro = GroupRisk(label, "dro", eta=2.)
    g = gradient(dro.on(X, Y))
    assert torch.allclose(g, (dro.q / torch.tensor([2., 1., 3.]))[Y])


def test_a_group_that_comes_late_has_the_weight_that_it_would_have_had_from_the_beginning():
    first, later = GroupRisk(label, "dro", eta=1.), GroupRisk(label, "dro", eta=1.)
    first.on(X[:2], torch.tensor([0, 0]))(torch.tensor([1., 3.]))
    assert first.q.tolist() == [1]
    for o in (first, later): o.learn(torch.tensor([2., 0., 0.]) if o is later else torch.zeros(3))
    assert torch.allclose(first.q, later.q)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 9, width=32)), min_size=1, max_size=30))
def test_the_mean_lies_between_all_groups_and_the_worst_is_at_the_top(rows):
    y, l = torch.tensor([o[0] for o in rows]), torch.tensor([o[1] for o in rows])
    means = [l[y == g].mean() for g in y.unique()]
    worst, mean = (GroupRisk(label, k).on(X, y)(l) for k in ("worst", "mean"))
    assert torch.isclose(worst, max(means)) and torch.isclose(mean, torch.stack(means).mean(), atol=1e-5)


def test_influence_is_sorted_by_loss_and_belongs_to_the_right_samples():
    assert torch.allclose(on("mean").influence(L), torch.tensor([1 / 6, 1 / 4, 1 / 6, 1 / 4, 1 / 6]))  # of the losses 6, 3, 3, 1, 0


def test_one_group_of_all_is_the_mean_of_the_losses():
    for k in ("worst", "mean", "dro"): assert torch.isclose(GroupRisk(lambda x, y: 0 * y, k).on(X, Y)(L), L.mean())


# --- Who is in which group

OVER = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [0, 0]]).bool()


def test_a_sample_counts_in_each_of_its_groups():
    assert group_means(L, OVER)[0].tolist() == [2, 3.5] and group_means(L, OVER)[1].tolist() == [2, 2]
    risk = on("mean", of=lambda x, y: OVER)
    assert risk(L) == 2.75 and gradient(risk).tolist() == [.5, .25, .25, 0, 0]


def test_a_negative_number_is_no_group_and_its_loss_may_be_anything():
    for bad in (float("inf"), float("nan")):
        l, y = torch.tensor([1., 3., 6., 0., bad]), torch.tensor([0, 0, 2, 2, -1])
        for kind, want in [("worst", 3.), ("mean", 2.5)]:
            assert on(kind, y)(l) == want and gradient(on(kind, y), l)[4] == 0


def test_an_absent_group_with_the_highest_number_is_no_nan():
    none = torch.zeros(5, 3, dtype=torch.bool)
    none[:, 0] = True
    for k in ("worst", "mean", "dro"): assert on(k, of=lambda x, y: none)(L).isfinite()


def test_a_loss_that_is_not_finite_does_not_move_group_dro():
    dro = GroupRisk(label, "dro", eta=1.)
    assert dro.on(X, Y)(torch.tensor([1., 3., float("nan"), 0., 3.])).isnan()
    assert torch.allclose(dro.q, torch.tensor([2., 0., 0.]).softmax(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_of_any_kind_in_a_column_or_a_row(dtype):
    for shape in ((5,), (5, 1)):
        if dtype == torch.bool and len(shape) == 2: continue  # a matrix of one group
        y = torch.tensor([1, 0, 1, 1, 0]).to(dtype).view(shape)
        assert on(y=y)(L) == 3 and torch.isclose(on('mean', y)(L), torch.tensor((3 + 7 / 3) / 2))


def test_half_precision_losses_keep_their_dtype():
    r = on("mean")(L.half())
    assert r.dtype == torch.half and r == 2.5


# --- State

def test_state_is_kept_saved_loaded_pickled_and_forgotten():
    dro = GroupRisk(label, "dro", eta=1.)
    dro.on(X, Y)(L)
    other = GroupRisk(label, "dro", eta=1.)
    other.load_state_dict(dro.state_dict())
    again = pickle.loads(pickle.dumps(dro))
    assert torch.equal(other.q, dro.q) and torch.equal(again.q, dro.q) and dro.q[2] > dro.q[0] > dro.q[1]
    other.on(X, Y)(L)
    assert not torch.equal(other.q, dro.q), "a loaded state is a copy"
    new = anew(dro)
    assert not len(new.q) and new.eta == 1. and new.of is label and len(dro.q) == 3


def test_other_risks_are_left_as_they_are():
    risk = CVaR(.3)
    assert of_batch(risk, (X,), (Y,)) is risk and anew(risk) is risk and of_all(risk, []) is risk and as_risk(g := GroupRisk(label)) is g


def test_several_batches_together():
    r = of_all(GroupRisk(label), [Y[:2], Y[2:]])
    assert r(L) == 3


# --- What is refused

@pytest.mark.parametrize("kw,error,says", [
    (dict(of=3), TypeError, "of must be a function"), (dict(kind="best"), ValueError, "kind must be one of worst, mean, dro, got 'best'"),
    (dict(kind="dro", eta=0), ValueError, "eta must be above 0, got 0"), (dict(weights=[1, 2]), ValueError, "weights are for kind='mean'"),
    *[(dict(kind="mean", weights=w), ValueError, "weights must be a row") for w in ([], [0, 0], [1, -1], [[1, 2]], [1, float("nan")])]])
def test_bad_arguments(kw, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(")): GroupRisk(**dict(dict(of=label), **kw))


@pytest.mark.parametrize("groups,error,says", [
    ([0, 1], TypeError, "not list"), (torch.zeros(5), TypeError, "torch.float32"), (torch.zeros(5, 2).long(), ValueError, r"shape \(5, 2\)"),
    (torch.tensor(1), ValueError, r"shape \(\)"), (torch.zeros(5, 2, 2).bool(), ValueError, r"shape \(5, 2, 2\)"),
    (torch.tensor([0, 1]), ValueError, "groups of 5 samples, got those of 2"), (torch.full((5,), -1), ValueError, "no group to any sample"),
    (torch.zeros(5, 2).bool(), ValueError, "no group to any sample")])
def test_bad_groups(groups, error, says):
    with pytest.raises(error, match=says): on(of=lambda x, y: groups)(L)


def test_a_group_without_a_weight_and_a_risk_without_a_batch():
    with pytest.raises(ValueError, match="weights are of 2 groups, but there is a group 2"): on("mean", weights=[1, 1])(L)
    with pytest.raises(TypeError, match="must be told the batch"): GroupRisk(label)(L)


# --- Columns

class Table:
    cat_names, classes = ["job", "sex"], {"job": ["#na#", "a"], "sex": ["#na#", "f", "m"]}


def test_a_column_gives_its_codes_and_names():
    of = ColumnGroups(Table(), "sex")
    assert of(torch.tensor([[7, 1], [8, 2]]), torch.zeros(2, 3), torch.zeros(2)).tolist() == [1, 2] and of.names == ["#na#", "f", "m"]
    assert pickle.loads(pickle.dumps(of)).column == 1
    with pytest.raises(ValueError, match="one of job, sex, got 'age'"): ColumnGroups(Table(), "age")
    with pytest.raises(ValueError, match="one of none, got 'age'"): ColumnGroups(object(), "age")


def test_the_last_target():
    assert on(of=last_target)(L) == 3 and check_groups(last_target(X, L, Y)) is not None
