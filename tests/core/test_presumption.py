"Innocent until proven harmful: the order, the evidence of the last layer, the gap, and what they do to the weights"
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarisk_nb.curriculum import Curriculum
from metarisk_nb.evidence import Places
from metarisk_nb.guard import Guard
from metarisk_nb.head import LastLinear
from metarisk_nb.hypergrad import hypergradient
from metarisk_nb.losses import class_weights, gce_loss, mae_loss
from metarisk_nb.order import LabelDoubt, Population
from metarisk_nb.presumption import Gap, Presumption
from metarisk_nb.risk import CVaR, ExpectedValue


def ce(pred, y): return F.cross_entropy(pred, y, reduction="none")


# --- The order

def test_a_history_finds_wrong_labels_better_than_one_glance():
    g = torch.Generator().manual_seed(0)
    true = torch.randint(0, 5, (400,), generator=g)
    wrong = torch.rand(400, generator=g) < .3
    y = torch.where(wrong, (true + 1) % 5, true)
    doubt, today = LabelDoubt(), LabelDoubt()
    for _ in range(8):
        pred = 1.5 * F.one_hot(true, 5) + 1.5 * torch.randn(400, 5, generator=g)
        d, t = doubt(pred, y, ids=torch.arange(400), n_items=400), today(pred, y)
    def auroc(s): return (s[wrong][:, None] > s[~wrong][None]).float().mean()
    assert auroc(d) > .95 > .9 > auroc(t)


def test_a_rare_class_is_not_doubted_for_being_rare():
    doubt = LabelDoubt()
    for _ in range(6000): d = doubt(torch.tensor([[3., 0.]]).expand(20, 2), torch.tensor([0] * 19 + [1]))
    assert d[-1] - d[:-1].mean() < .3  # their losses differ by 3


def test_a_run_whose_order_nobody_asks_for_keeps_few_batches():
    doubt, kept = LabelDoubt(), []
    for i in range(100):
        doubt.note(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([i, i + 1]), 101)
        kept.append(len(doubt.noted))
    doubt.catch_up()
    assert max(kept) == doubt.most and not doubt.seen.isnan().any()


def test_numbers_that_no_longer_match_begin_anew():
    doubt = LabelDoubt()
    doubt(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([5, 9]), 10)
    doubt(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([1, 2]), 4)
    assert len(doubt.seen) == 4 and doubt.seen.isnan().tolist() == [True, False, False, True]


def test_batches_that_are_noted_count_as_if_their_order_had_been_asked_for():
    g, asked, noted = torch.Generator().manual_seed(0), LabelDoubt(), LabelDoubt()
    for _ in range(3):
        ids = torch.randperm(40, generator=g).split(10)
        batches = [(torch.randn(10, 3, generator=g), torch.randint(0, 3, (10,), generator=g), i, 40) for i in ids]
        for b in batches: d = asked(*b)
        for b in batches[:3]: noted.note(*b)
        assert torch.allclose(noted(*batches[3]), d, atol=1e-3)
        assert torch.equal(asked.seen, noted.seen) and torch.allclose(asked.expected, noted.expected, atol=1e-5)


def test_what_was_noted_of_another_data_set_is_forgotten():
    doubt = LabelDoubt()
    doubt.note(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([5, 9]), 10)
    doubt(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([1, 2]), 4)
    assert doubt.seen.isnan().tolist() == [True, False, False, True]


# --- The population

def test_a_batch_ranks_among_the_last_ones():
    p = Population(4)
    assert p.rank(torch.tensor([3., 1, 2, 0])).tolist() == [1 / 8, 5 / 8, 3 / 8, 7 / 8]  # nothing else is known: its own order
    assert p.rank(torch.tensor([9., 9, 9, 9])).tolist() == [4 / 16] * 4  # equal numbers share a place
    for _ in range(20): p.rank(torch.full((4,), 5.))
    assert len(p.known) == 64 and p.rank(torch.tensor([6., float("nan"), -torch.inf])).tolist() == pytest.approx([1.5 / 64, .5 / 64, 1 - .5 / 64])


def test_a_batch_with_many_wrong_labels_loses_more_weight():
    "Places are those of the population: of 100 samples, whatever the batch, those beyond the cut lose their weight"
    c, g = learned(cut(.4)), torch.Generator().manual_seed(1)
    def batch(wrong): return torch.where(torch.arange(100) < wrong, 5., 0.) + torch.rand(100, generator=g)
    for _ in range(16): c.places(batch(40))
    got = [float(c.weights_at(c.places(batch(n))).sum()) for n in (30, 40, 50)]
    assert got[0] > 1.1 and got[1] == pytest.approx(1, abs=.04) and got[2] < .9
    assert c.weights_at(c.places(batch(20)[:50])).sum() == pytest.approx(2 * 30 / 60, abs=.05)  # a batch of another size


def test_weights_by_place_are_those_of_the_sorted_batch():
    c, l = learned(cut(.4)), torch.rand(100, generator=torch.Generator().manual_seed(2))
    assert torch.equal(c.places(l).sort().values, torch.arange(100)) and c.order(l).tolist() == l.argsort(descending=True).tolist()
    c.population.known = None
    assert c.weigh(l, scale=3., places=c.places(l)).item() == pytest.approx(c.weigh(l, scale=3.).item(), rel=1e-5)


# --- The last layer

class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.other, self.out = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
    def forward(self, x): return self.out(self.other(self.norm(self.body(x)).tanh()).tanh())


@pytest.mark.parametrize("meta_loss", [ce, mae_loss, gce_loss])
@pytest.mark.parametrize("loss", [ce, gce_loss], ids=["ce", "gce"])
@pytest.mark.parametrize("risk", [ExpectedValue(), CVaR(.3)], ids=str)
def test_for_a_network_that_is_its_head_the_alignment_is_the_hypergradient(loss, meta_loss, risk):
    "Up to the mean of the features, which the bias carries: they are centred here"
    torch.manual_seed(0)
    model, (x, xv) = nn.Linear(5, 4, bias=False).double(), torch.randn(2, 12, 5).double()
    xv = xv - xv.mean(0)
    y, yv = torch.randint(4, (2, 12))
    head = LastLinear(model)
    head.listen()
    assert head.heard(out := model(x)) and head.found is model
    at_start, value = head.validation((xv,), lambda out: risk(meta_loss(out, yv)), 0)
    l = loss(out, y)
    a, order = head.alignments(l, at_start), l.detach().argsort(descending=True, stable=True)
    want, harm = hypergradient(model, Places(torch.full((12,), 1 / 12)).double(), risk, loss, [(x, y)], (xv, yv), 1e-6, meta_loss=meta_loss)
    assert value == pytest.approx(want.item(), abs=1e-5) and torch.allclose(-a[order].double(), harm / 1e-6, rtol=1e-3, atol=1e-5)


def test_the_head_is_found_and_the_model_left_as_it_was():
    torch.manual_seed(0)
    model, x = TwoHeads(), torch.randn(6, 4)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    head = LastLinear(model)
    head.listen()
    out = model(x)
    state.update({k: v.clone() for k, v in model.state_dict().items()})
    assert head.heard(out) and head.found is model.out and not any(m._forward_hooks for m in model.modules())
    rng = torch.get_rng_state()
    head.validation((torch.randn(9, 4, generator=torch.Generator().manual_seed(1)),), lambda out: out.square().mean(), 3)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items()) and torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("model,shape", [(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (6, 4)), (nn.Linear(4, 3), (6, 2, 4)), (nn.Conv1d(4, 3, 1), (6, 4, 5))])
def test_a_model_without_such_a_head(model, shape):
    head = LastLinear(model)
    head.listen()
    assert not head.heard(model(torch.randn(shape))) and not any(m._forward_hooks for m in model.modules())


# --- The gap

def looked(gap, train, valid, looks=6):
    for _ in range(looks):
        for _ in range(20): gap.train(torch.tensor(train))
        gap.look(valid)
    return gap


def test_the_gap_opens_when_training_data_are_learned_by_heart():
    assert not looked(Gap(), 1., 1.).open and not looked(Gap(), 1.3, 1.).open and looked(Gap(), .9, 1.1).open
    assert not looked(Gap(), .9, 1.1, looks=2).open and not looked(Gap(), 1., 1.02).open
    assert not looked(Gap(), 1., float("nan")).open
    gap = looked(Gap(), .5, 1.)
    assert looked(gap, 1., .5).open  # it stays


# --- The weights

def learned(against, steps=600, n=100, open=True, **kwargs):
    "A curriculum after evidence in which a share `against[k]` of the samples at each place points against validation"
    c, g = Presumption(n, **kwargs), torch.Generator().manual_seed(0)
    c.gap.open = open
    size = 1 + 2 * (against > .7)  # wrong labels pull harder
    for _ in range(steps): c.update(0., size * ((torch.rand(n, generator=g) < against).float() - .5))
    return c


def cut(share, n=100, harm=.9, rest=.3): return torch.where(torch.arange(n) < share * n, harm, rest)


@pytest.mark.parametrize("share", [.1, .2, .45, .6])
def test_the_weights_are_a_soft_cut_at_the_share_that_harms(share):
    c = learned(cut(share, rest=.4))
    assert c.harmful == pytest.approx(share, abs=.04) and c.weights[:round(100 * share) - 6].max() < 1e-3 / 100
    assert c.weights.sum() == pytest.approx(1, abs=1e-5) and (c.weights.diff() >= 0).all()


@pytest.mark.parametrize("against", [torch.full((100,), .5), torch.linspace(.55, .2, 100), cut(.03, harm=.8), torch.linspace(.2, .9, 100)],
                         ids=["even", "hard samples", "too few", "the best end"])
def test_where_nothing_is_proven_all_stay_uniform(against):
    c = learned(against)
    assert c.uniform and c.harmful == 0 and torch.equal(c.weights, torch.full((100,), .01))


def test_hard_samples_whose_strongest_pulls_help_are_no_case():
    "Most of the worst point against validation, a little; the others pull the other way, and harder"
    c, g = Presumption(100), torch.Generator().manual_seed(0)
    c.gap.open = True
    for _ in range(600):
        against = torch.rand(100, generator=g) < cut(.3, harm=.65)
        c.update(0., torch.where(against, 1., -1.5))
    assert c.uniform and .5 < c.case.pull < .6 and c.case.shares[:20].min() > .53


def test_a_case_needs_more_than_a_few_samples():
    "The same shares of samples and of pull: 3 places of 12 are too few to be sure of, 25 of 100 are not"
    def case(n):
        c, g = Presumption(n), torch.Generator().manual_seed(3)
        c.gap.open = True
        for _ in range(200): c.update(0., torch.where(torch.rand(n, generator=g) < .6, 2., -1.), steps=4)
        return c.convicted
    assert case(100) and not case(12)


def test_nothing_is_judged_before_the_gap_has_opened(): assert learned(cut(.4), open=False).uniform


def test_a_verdict_is_given_once():
    "No case soon after the gap has opened: then there is none, whatever a network makes of its training data later"
    right = torch.linspace(.55, .2, 100)
    assert not learned(right, steps=60).acquitted
    c = learned(right, steps=120)
    assert c.acquitted
    for _ in range(200): c.update(0., cut(.4) - .5)
    assert c.case.made and c.uniform and not c.convicted
    c.new_trial()
    assert not c.acquitted and not c.gap.open
    c.gap.open = True
    for _ in range(200): c.update(0., cut(.4) - .5)
    assert c.convicted and c.harmful > .3


def test_what_is_evident_waits_for_no_gap():
    def judged(passes, harm):
        c, g = Presumption(100), torch.Generator().manual_seed(0)
        c.passes = passes
        for _ in range(300): c.update(0., (torch.rand(100, generator=g) < cut(.4, harm=harm)).float() - .5)
        return c
    assert judged(4., .97).harmful == pytest.approx(.4, abs=.05)
    assert judged(3., .97).uniform and judged(4., .8).uniform


def test_weight_falls_gradually_and_comes_back():
    c = learned(cut(.4), steps=70)
    some = c.harmful
    assert 0 < some < .3 < learned(cut(.4), steps=400).harmful
    for _ in range(1500): c.update(0., torch.full((100,), -1.))
    assert c.uniform and not c.convicted


def test_evidence_every_few_steps_counts_for_all_of_them():
    c, g = Presumption(100), torch.Generator().manual_seed(0)
    c.gap.open = True
    for _ in range(40): c.update(0., (torch.rand(100, generator=g) < cut(.4)).float() - .5, steps=20)
    assert c.harmful == pytest.approx(.4, abs=.06)


def test_evidence_that_is_not_finite_is_skipped_and_counted():
    c = Presumption(4)
    with pytest.warns(UserWarning, match="not finite"): c.update(0., torch.tensor([1., float("nan"), 0., 0.]))
    assert c.skipped == 1 and c.case.weight == 0 and c.uniform


# --- The benefit of the doubt

def watched(steps, w, y=torch.tensor([7] * 25 + [0] * 75)):
    guard = Guard()
    for _ in range(steps): guard.watch(y, w)
    return guard


STARVED, FULL = (torch.arange(100) >= 25) / .75, torch.ones(100)


def test_a_class_that_is_about_to_starve_moves_to_better_places():
    c, y = learned(cut(.3)), torch.tensor([7] * 25 + [0] * 75)
    doubtful = torch.linspace(5, 0, 100)
    first = c.places(doubtful, y)
    for _ in range(300): c.guard(y, places := c.places(doubtful, y))
    assert c.guarded and c.classes.starving == {7} and c.classes.received[7] > .2
    assert places[:25].float().mean() > first[:25].float().mean() + 5
    assert places[:25].argsort().tolist() == first[:25].argsort().tolist()  # the least doubtful of the class come first
    assert float(c.harmful) == learned(cut(.3)).harmful  # no other class has lost or gained


def test_classes_that_share_the_weight_alike_get_no_benefit():
    c = learned(cut(.3))
    for _ in range(200): c.guard(torch.arange(100) % 10, torch.arange(100))
    assert not c.guarded and not c.classes.benefit.any()


def test_the_benefit_fades_once_a_class_is_fed():
    guard = watched(100, STARVED)
    most = float(guard.benefit[7])
    assert most == pytest.approx(guard.step / (1 - guard.keep), rel=.1)
    for _ in range(200): guard.watch(torch.tensor([7] * 25 + [0] * 75), FULL)
    assert guard.benefit[7] < .05 * most and guard.received[7] > .99 and 100 > guard.steps > 50


def test_labels_that_are_none_get_no_benefit():
    guard = watched(100, STARVED)
    assert guard.benefit_of(torch.tensor([7, 0, 3, -1, 99])).tolist() == [float(guard.benefit[7]), 0, 0, 0, 0]
    assert Guard().benefit_of(torch.tensor([0, 4])).tolist() == [0, 0]


def test_a_class_that_appears_late_has_starved_nowhere():
    guard = watched(100, STARVED)
    guard.watch(torch.tensor([12]), torch.ones(1))
    assert len(guard.benefit) == 13 and guard.starving == {7} and guard.received[12] == 1 and guard.received[8] == 1


def test_a_batch_without_labels_starves_nobody():
    c = learned(cut(.3))
    c.guard(torch.full((100,), -1), torch.arange(100))
    assert not len(c.classes.received) and not c.guarded


def test_hooks_that_an_interrupted_pass_leaves_keep_little():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    head = LastLinear(model)
    head.listen()
    for _ in range(50): model(torch.randn(2, 4))
    assert len(head.passes) <= 16 and head.heard(model(torch.randn(2, 4)))


def test_saved_and_loaded():
    c = learned(cut(.4), steps=300)
    c.order(torch.zeros(100), torch.arange(100) % 5, torch.randn(100, 5), torch.arange(100), 150)
    for _ in range(20): c.guard(torch.arange(100) // 20, torch.arange(100))
    f = io.BytesIO()
    torch.save(c.state_dict(), f)
    f.seek(0)
    new = Presumption(100)
    new.load_state_dict(torch.load(f, weights_only=True))
    for o in (c, new): o.update(0., cut(.4) - .5)
    assert torch.equal(c.weights, new.weights) and torch.equal(c.case.shares, new.case.shares) and new.gap.open and new.convicted
    assert torch.equal(c.doubt.seen.nan_to_num(-1), new.doubt.seen.nan_to_num(-1))
    assert c.guarded == new.guarded > 0 and c.classes.starving == new.classes.starving
    assert torch.equal(c.classes.received, new.classes.received) and torch.equal(c.classes.benefit, new.classes.benefit)
    with pytest.raises(ValueError, match="first edition"): new.load_state_dict(Curriculum(100, None).state_dict())
    assert torch.equal(c.weights, new.weights)


def test_the_share_of_weight_taken_away():
    c = Curriculum(10, None)
    assert c.harmful == 0
    with torch.no_grad(): c.reducer.logits[:3] = -30
    c._moved()
    assert c.harmful == pytest.approx(.3, abs=1e-5)


def test_classes_count_alike():
    w = class_weights(torch.tensor([0, 0, 0, 1, -1]), torch.tensor([30, 10]))
    assert w.tolist() == pytest.approx([1 / 6] * 3 + [.5, 0])
