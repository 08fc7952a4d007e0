"Property tests of the risks against their definitions, which need nobody's code"
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarisk_nb.reducer import SortedReducer
from metarisk_nb.risk import *
from metarisk_nb.risk import risks

numbers = st.floats(-50, 50, allow_nan=False, width=32)
losses = st.lists(numbers, min_size=1, max_size=60).map(lambda o: torch.tensor(o, dtype=torch.float64))
shares = st.floats(.01, 1)
spectral = st.sampled_from([ExpectedValue(), CVaR(.13), ICVaR(.37), Trimmed(.21), HumanAligned(), HumanAligned(.9, 0.), Extremile(3.5),
                            Spectral.from_weights([.1, .6, .3])])
every_risk = [as_risk(o) for o in risks] + [Spectral.from_weights([.1, .6, .3])]
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def close(a, b, eps=1e-8):
    a, b = [float(o.detach() if isinstance(o, torch.Tensor) else o) for o in (a, b)]
    assert abs(a - b) <= eps * (1 + abs(b)), (a, b)


@given(losses, shares)
def test_cvar_is_the_minimum_of_rockafellar_and_uryasev(l, a):
    close(CVaR(a)(l), min(float(c + (l - c).clamp(min=0).mean() / a) for c in l))


@given(losses, shares)
def test_cvar_and_icvar_mix_to_the_mean(l, a):
    rest = (1 - a) * ICVaR(1 - a)(l) if a < 1 else 0
    close(a * CVaR(a)(l) + rest, l.mean())


@given(losses, st.floats(.01, .49))
def test_trimmed_is_what_is_left_between_the_tails(l, a):
    close(Trimmed(a)(l), (l.mean() - a * CVaR(a)(l) - a * ICVaR(a)(l)) / (1 - 2*a), 1e-6)


@given(losses, shares)
def test_evar_is_the_worst_mean_within_a_divergence(l, a):
    value = float(EVaR(a)(l))
    assert float(CVaR(a)(l)) - 1e-6 * (1 + abs(value)) <= value <= float(l.max()) + 1e-6 * (1 + abs(value))
    ts = np.logspace(-5, 5, 2001)
    bound = [((torch.logsumexp(t * l, 0) - math.log(len(l)) - math.log(a)) / t).item() for t in ts]
    assert value <= min(bound) + 1e-5 * (1 + abs(value))


@given(losses, st.integers(1, 3))
def test_extremile_is_the_expected_maximum_of_draws(l, r):
    l = l[:12]
    draws = torch.cartesian_prod(*[l] * r).reshape(-1, r)
    close(Extremile(r)(l), draws.max(1).values.mean())


@given(spectral, losses, numbers, st.floats(0, 10))
def test_spectral_risks_are_translation_equivariant_and_homogeneous(risk, l, c, k):
    close(risk(l + c), risk(l) + c, 1e-6)
    close(risk(k * l), k * risk(l), 1e-6)


@given(spectral, st.integers(1, 300))
def test_weights_are_a_distribution(risk, n):
    w = risk.weights(n)
    assert w.dtype == torch.float64 and len(w) == n and (w >= 0).all()
    close(w.sum(), 1)


@given(spectral, losses)
def test_a_spectral_risk_is_a_mixture_of_cvars(risk, l):
    w, n = risk.weights(len(l)), len(l)
    steps = torch.arange(1, n + 1) * (w - torch.cat([w[1:], torch.zeros(1)]))
    close(sum(s * CVaR(j / n)(l) for j, s in enumerate(steps, 1)), risk(l), 1e-6)


@given(losses, losses)
def test_cvar_is_subadditive(a, b):
    n = min(len(a), len(b))
    assert CVaR(.3)(a[:n] + b[:n]) <= CVaR(.3)(a[:n]) + CVaR(.3)(b[:n]) + 1e-9


def test_icvar_is_not_subadditive():
    a, b = torch.tensor([1., 0.]), torch.tensor([0., 1.])
    assert ICVaR(.5)(a + b) > ICVaR(.5)(a) + ICVaR(.5)(b)


@given(st.sampled_from([-3., -.1, 1e-4, .5, 20.]), losses)
def test_entropic_lies_between_the_extremes(t, l):
    assert l.min() - 1e-6 <= Entropic(t)(l) <= l.max() + 1e-6


@given(losses, st.floats(-323, -8), st.sampled_from([-1, 1]))
def test_entropic_of_a_small_tilt_is_the_mean_and_half_the_variance(l, e, sign):
    t = sign * 10.**e
    close(Entropic(t)(l), l.mean() + t/2 * l.var(unbiased=False), 1e-10)
    first = (1 + t * (l.sort(descending=True).values - l.mean())) / len(l)
    assert (Entropic(t).influence(l) - first).abs().max() < 1e-10


@pytest.mark.parametrize("t", [-2., -1e-20, 1e-20, 2.])
def test_entropic_of_infinite_losses(t):
    inf = float("inf")
    assert Entropic(t)(torch.full((3,), inf)) == inf and Entropic(t)(torch.full((3,), -inf)) == -inf
    assert Entropic(t)(torch.tensor([inf, 1.])).isinf() == (t > 0)


@pytest.mark.parametrize("risk", every_risk, ids=str)
def test_every_risk(risk):
    l = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = l.detach().clone()
    value = risk(l)
    assert value.shape == () and value.dtype == l.dtype and torch.equal(l, before)
    torch.autograd.gradcheck(risk, l)
    close(risk.influence(l).sum(), torch.autograd.grad(value, l)[0].sum(), 1e-6)
    close(risk(torch.full((9,), .7)), .7, 1e-6)
    blind = isinstance(risk, Spectral) and risk.weights(3)[0] == 0  # the worst of three has no weight
    assert risk(torch.tensor([1., float("nan"), 2.])).isnan() != blind and risk(torch.rand(8).half()).dtype == torch.half
    with pytest.raises(ValueError, match="losses is empty"): risk(torch.empty(0))
    with pytest.raises(TypeError, match="losses must be a floating-point tensor, not list"): risk([1., 2.])
    with pytest.raises(TypeError, match="not a tensor of torch.int64"): risk(torch.tensor([1, 2]))


@pytest.mark.parametrize("risk,where", [(ICVaR(a), 0) for a in (.1, .3, .7, .9)] + [(Trimmed(a), 0) for a in (.1, .2, .3)], ids=str)
@pytest.mark.parametrize("n", [10, 100, 1000])
def test_an_infinite_loss_of_zero_weight_adds_nothing(risk, where, n):
    l = torch.rand(n).sort(descending=True).values
    l[where] = float("inf")
    l.requires_grad_()
    value = risk(l)
    assert value.isfinite() and torch.autograd.grad(value, l)[0].isfinite().all()


@pytest.mark.parametrize("make,says", [
    (lambda: CVaR(0), "alpha must be a tail share in"), (lambda: CVaR(float("nan")), "alpha"), (lambda: ICVaR(-.1), "alpha"),
    (lambda: EVaR(2), "alpha"), (lambda: Trimmed(.5), "alpha must be a share in"), (lambda: HumanAligned(b=2), "b must be in"),
    (lambda: MeanVariance(-1), "c must be at least 0"), (lambda: Entropic(0), "t must be a finite number other than 0"),
    (lambda: Extremile(.5), "r must be at least 1"), (lambda: as_risk("cvar:x"), "must be numbers"), (lambda: as_risk("cvar:.1,.2"), "takes no 2 values"),
    (lambda: as_risk(""), "unknown"), (lambda: CVaR().weights(0), "n must be a whole number of at least 1, got 0")])
def test_bad_values_are_named(make, says):
    with pytest.raises(ValueError, match=says): make()


@pytest.mark.parametrize("f", [CVaR().weights, Spectral.from_weights([.5, .5]).weights, Spectral.from_weights([1.]).weights,
                               SortedReducer(4).weights, SortedReducer(1).weights, SortedReducer])
@pytest.mark.parametrize("n,error", [(0, ValueError), (-1, ValueError), (2.5, TypeError), (2., TypeError), (True, TypeError), ("3", TypeError)])
def test_a_number_of_losses_is_a_whole_one(f, n, error):
    with pytest.raises(error, match=f"n must be a whole number of at least 1, got {n!r}"): f(n)


def test_whole_numbers_may_be_those_of_numpy():
    assert len(CVaR().weights(np.int64(7))) == len(SortedReducer(np.int64(9), np.int64(3)).weights(np.int32(7))) == 7
    assert type(SortedReducer(np.int64(9)).n) is int
    for k, error in ((1, ValueError), (11, ValueError), (True, TypeError), (2.5, TypeError)):
        with pytest.raises(error, match="knots must be"): SortedReducer(10, knots=k)


def test_what_weights_gives_is_a_copy():
    risk = Spectral.from_weights([.25, .75])
    risk.weights(2).zero_()
    assert risk.weights(2).tolist() == [.25, .75]


def test_bad_types_are_named():
    with pytest.raises(TypeError, match="alpha must be a number"): CVaR("a")
    with pytest.raises(TypeError, match="risk must be a name, a Risk or a function, not int"): as_risk(3)


@pytest.mark.parametrize("knots", [None, 6])
def test_reducer_works_in_its_own_precision_under_autocast(knots):
    g, half = [SortedReducer(20, knots) for _ in range(2)]
    for o in g, half: o.logits.data.copy_(torch.linspace(-2, 2, len(o.logits)))
    for o in g, half:
        with torch.autocast("cpu", torch.bfloat16, enabled=o is half): o.seen = [o.weights(), o.weights(7), o.keep_ess(.8) or o.logits]
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(g.seen, half.seen))


@given(st.integers(2, 40), st.integers(1, 90), st.integers(0, 9))
def test_reducer_keeps_total_weight_for_any_batch(n, m, seed):
    g = SortedReducer(n, 2 + seed % (n - 1))
    torch.nn.init.normal_(g.logits, generator=torch.Generator().manual_seed(seed))
    close(g.weights(m).sum(), 1, 1e-5)
    l = torch.rand(m)
    close(g(l), g.to_risk()(l), 1e-5)


def test_the_core_needs_torch_alone():
    code = "import sys, metarisk_nb.hypergrad, metarisk_nb.reducer; print([m for m in ('fastai', 'matplotlib', 'seaborn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("odd", ["inf", "nan"])
@pytest.mark.parametrize("risk", [ICVaR(.5), Trimmed(.2), Spectral.from_weights([0., .25, .25, .25, .25])], ids=str)
def test_a_loss_of_zero_weight_that_is_not_finite_adds_nothing(risk, odd):
    l = torch.tensor([3., float(odd), 1., 2., 0.], requires_grad=True)
    finite = torch.tensor([3., 9., 1., 2., 0.], requires_grad=True)
    value, want = risk(l), risk(finite)
    assert value == want and torch.equal(torch.autograd.grad(value, l)[0], torch.autograd.grad(want, finite)[0])
    assert not risk(torch.tensor([float(odd)] * 5)).isfinite()  # with weight it shows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("risk", [CVaR(.1), ExpectedValue(), ICVaR(.9), Trimmed(.1), MeanVariance(.1), Extremile(3.), HumanAligned(), Entropic(.5), EVaR(.2)], ids=str)
@pytest.mark.parametrize("n,size", [(5000, 1.), (70_000, 200.), (64, 300.), (1000, 2e-4)])
def test_half_precision_costs_only_the_rounding_of_the_result(risk, dtype, n, size):
    if isinstance(risk, EVaR) and n > 10_000: n = 10_000  # the reference searches a grid
    l = (size * torch.rand(n, generator=torch.Generator().manual_seed(0))).to(dtype)
    value, want = risk(l), risk(l.double())
    assert value.dtype == dtype and abs(value.double() - want) <= 1.01 * max(torch.finfo(dtype).eps * abs(want), torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps), (value, want)


def test_weights_for_another_batch_size_need_no_matrix():
    w = torch.rand(16_384, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t): out = rebin(w, 12_000)
    assert sum(kept) < 50 * 16_384 and abs(out.sum() - w.sum()) < 1e-2


@pytest.mark.parametrize("n,m", [(1, 7), (7, 1), (3, 5), (5, 3), (8, 8), (64, 100), (100, 64), (12, 97)])
def test_weights_for_another_batch_size_are_those_of_the_overlap(n, m):
    w = torch.rand(m, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
    new = rebin(w, n)
    assert torch.allclose(new, overlap(n, m) @ w, atol=1e-12)
    g = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    assert torch.allclose(torch.autograd.grad(new, w, g)[0], overlap(n, m).T @ g, atol=1e-12)
