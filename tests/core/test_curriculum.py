"Curriculum in a loop of one's own: what it weighs, skips, keeps and gives back"
import copy
import io
import warnings

import pytest
import torch
from reference import ce
from torch import nn

from metarisk_nb.curriculum import Curriculum
from metarisk_nb.hypergrad import hypergradient
from metarisk_nb.risk import CVaR, ess_share, weigh


def data(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    return torch.randn(n, 6, generator=g) + nn.functional.one_hot(y, 6), torch.where(torch.rand(n, generator=g) < .4, (y + 1) % 3, y)


def learn(curriculum, model, steps, start=0):
    "A few steps of a plain loop"
    (x, y), valid = data(200, 0), data(60, 1)
    for i in range(start, steps):
        xb, yb = x[20 * (i % 10):][:20], y[20 * (i % 10):][:20]
        curriculum.seen(20, of=200)
        curriculum.update(*hypergradient(model, curriculum.reducer, CVaR(.3), ce, [(xb, yb)], valid, .1))
        curriculum.record(i)
        loss = curriculum.weigh(ce(model(xb), yb))
        with torch.no_grad():
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, [*model.parameters()])): p -= .1 * g
    return curriculum, model


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize("knots", [12, 5, None])
def test_a_loop_that_goes_on_from_a_saved_state_ends_with_the_same_bits(knots):
    whole, theta = learn(Curriculum(20, knots), net(), 30)
    first, model = learn(Curriculum(20, knots), net(), 13)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    rest = Curriculum(20, knots)
    rest.load_state_dict(torch.load(file, weights_only=True))
    learn(rest, model, 30, start=13)
    assert torch.equal(rest.weights, whole.weights) and not whole.uniform
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theta.parameters()))
    assert rest.history.steps == whole.history.steps and torch.equal(rest.history.weights, whole.history.weights) and rest.passes == whole.passes


@pytest.mark.parametrize("n", [20, 7, 33, 1])
def test_the_batch_is_weighed_as_the_reducer_says(n):
    curriculum, _ = learn(Curriculum(20), net(), 10)
    l = torch.randn(n, generator=torch.Generator().manual_seed(n)).requires_grad_()
    value, want = curriculum.weigh(l), weigh(l, curriculum.reducer.weights(n).detach())
    assert torch.allclose(value, want, rtol=1e-6) and torch.allclose(curriculum.weigh(l, scale=3.), 3 * want, rtol=1e-6)
    assert torch.allclose(torch.autograd.grad(value, l)[0], torch.autograd.grad(want, l)[0])
    assert curriculum.weigh(l, order=torch.arange(n)).item() == pytest.approx((curriculum.reducer.weights(n) * l).sum().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1., 400.])
def test_half_precision_is_summed_in_float32(dtype, size):
    curriculum, _ = learn(Curriculum(512), net(), 0)
    l = (size * torch.rand(512, generator=torch.Generator().manual_seed(0))).to(dtype)
    value, want = curriculum.weigh(l), l.double().mean()
    eps = torch.finfo(dtype)
    assert value.dtype == dtype and abs(value.double() - want) <= 1.01 * max(eps.eps * want, eps.smallest_normal * eps.eps)


def test_what_is_not_finite_is_skipped_counted_and_said_once():
    curriculum, (before, _) = Curriculum(20, patience=3), learn(Curriculum(20), net(), 4)
    curriculum.load_state_dict(before.state_dict())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for bad in "nan", "inf", "-inf", "nan": curriculum.update(0., torch.full((12,), float(bad)))
    assert torch.equal(curriculum.weights, before.weights) and curriculum.skipped == 4 and not curriculum.willing
    assert len(said) == 2 and "not finite" in str(said[0].message) and "no more meta-steps" in str(said[1].message)
    curriculum.try_again()
    assert curriculum.willing
    curriculum.update(0., torch.arange(12.))
    assert not torch.equal(curriculum.weights, before.weights)


@pytest.mark.parametrize("floor", [0., .5, .9])
def test_the_floor_holds_until_its_passes_are_over(floor):
    curriculum = Curriculum(20, meta_lr=1., floor=floor, relax=2, warmup=0)
    seen = []
    for _ in range(40):
        curriculum.seen(20, of=200)
        curriculum.update(0., torch.linspace(1, -1, 12))
        seen.append(float(ess_share(curriculum.weights)))
    for i, share in enumerate(seen): assert share >= floor * (1 - min(1, (i + 1) / 20)) - 1e-4
    assert seen[-1] < .5


@pytest.mark.parametrize("change,says", [(dict(n=7, knots=None), "state has logits of shape"), (dict(knots=5), "state has logits"), (dict(optimizer={}), ""), (dict(history=dict(steps=[0], every=1)), "")])
def test_a_state_that_does_not_fit_changes_nothing(change, says):
    curriculum, _ = learn(Curriculum(20), net(), 5)
    before = copy.deepcopy(curriculum.state_dict())
    with pytest.raises((ValueError, KeyError), match=says): curriculum.load_state_dict({**curriculum.state_dict(), **change})
    after = curriculum.state_dict()
    assert torch.equal(before["logits"], after["logits"]) and before["history"]["steps"] == after["history"]["steps"] and str(before["optimizer"]) == str(after["optimizer"])
    with pytest.raises(ValueError, match="state lacks"): curriculum.load_state_dict({})
