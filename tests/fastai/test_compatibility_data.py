"MetaRisk with the losses, batches, loaders and models that people have: it trains as it should, or says what to do instead"
import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from common import Half, ce, equal, fit, learner, net, state, tensors
from fastai.basics import SGD, Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from fastai.callback.data import WeightedDL
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.load import DataLoader as FastaiLoader
from fastai.data.load import SkipItemException
from fastai.losses import FocalLossFlat, LabelSmoothingCrossEntropyFlat
from torch import nn

from metarisk_nb.callback import BatchRisk, MetaRisk
from metarisk_nb.risk import CVaR

# --- Losses of every kind: uniform weights are the Learner's own loss

y_weights = torch.tensor([.2, 1., 3.])
own_losses = {"sum": CrossEntropyLossFlat(reduction="sum"), "class weights": CrossEntropyLossFlat(weight=y_weights), "torch": nn.CrossEntropyLoss(weight=y_weights),
              "ignore": CrossEntropyLossFlat(ignore_index=2), "both": CrossEntropyLossFlat(weight=y_weights, ignore_index=1, reduction="sum")}


class Look(Callback):
    "Loss, loss that is differentiated, and sorted losses of each training batch"
    order = 100
    def before_fit(self): self.rows = []
    def after_loss(self):
        if self.training: self.rows.append((self.loss.item(), self.loss_grad.item()))


@pytest.mark.parametrize("loss", own_losses)
@pytest.mark.parametrize("cbs", [BatchRisk("expected"), MetaRisk.first_edition(meta_lr=1e-7, every=1)], ids=str)
def test_the_scale_of_the_gradient_is_the_learners(loss, cbs):
    lr = .1 if own_losses[loss].reduction == "mean" else .005
    learn = fit(learner([deepcopy(cbs), Look()], loss=own_losses[loss]), lr=lr)
    assert all(abs(a - b) <= 1e-4 * abs(a) for a, b in learn.look.rows)
    plain = fit(learner(loss=own_losses[loss]), lr=lr)
    assert all((a - b).abs().max() < 1e-3 * (1 + b.abs().max()) for a, b in zip(state(learn), state(plain)))


def test_labels_to_ignore_have_no_part_in_the_meta_step():
    a, b = [fit(learner(MetaRisk.first_edition(every=1, meta_loss=m), loss=CrossEntropyLossFlat(ignore_index=2))) for m in ("auto", "mae")]
    assert a.meta_risk.skipped == b.meta_risk.skipped == 0 and not a.meta_risk.uniform


class Pictures(nn.Module):
    def __init__(self): super().__init__(); self.body = net()
    def forward(self, x): return self.body(x.flatten(1))


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize("loss", ["mean", *(o for o in own_losses if o != "torch")])  # fastai would mix the labels of torch's own
@pytest.mark.parametrize("cbs", [MetaRisk.first_edition(every=1, meta_lr=.3), MetaRisk.paper("cvar", meta_lr=.3), BatchRisk("cvar:.3")], ids=["meta", "paper", "batch"])
def test_mixed_samples_are_weighed_by_their_mixed_losses(mix, loss, cbs):
    loss = own_losses.get(loss, CrossEntropyLossFlat())
    def run(cbs):
        learn = learner([mix(), *cbs], model=Pictures(), loss=loss)
        for dl in learn.dls.loaders: dl.dataset.x = dl.dataset.x.view(-1, 1, 2, 3)
        return fit(learn, 1, .005)
    class Check(Callback):
        order, worst = 100, 0.
        def after_loss(self):
            if not self.training: return
            f, m = deepcopy(loss), self.learn.mix_up if mix is MixUp else self.learn.cut_mix
            f.reduction = "none"
            l = torch.lerp(f(self.pred, *m.yb1), f(self.pred, *self.yb), m.lam).sort(descending=True).values
            want = (self.risk.weights(20).to(l) * l).sum() * self.loss / l.mean()
            self.worst = max(self.worst, float((self.loss_grad - want).abs() / want))
        @property
        def risk(self):
            return CVaR(.3) if hasattr(self.learn, "batch_risk") else self.learn.meta_risk.reducer.to_risk()
    learn = run([deepcopy(cbs), check := Check()])
    assert check.worst < 1e-5 and learn.loss_func is loss and loss.reduction in ("mean", "sum")
    if isinstance(cbs, MetaRisk):
        assert not learn.meta_risk.uniform
        assert equal(state(run([])), state(run([MetaRisk.first_edition(meta_lr=0., every=1)])))


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy, LabelSmoothingCrossEntropyFlat(), FocalLossFlat()], ids=lambda o: getattr(o, "__name__", str(o)))
@pytest.mark.parametrize("kw", [{}, {"n_inner": 3}, {"fresh": True}, {"knots": None}, {"method": "finite_difference"}, {"meta_bs": 30}], ids=str)
def test_meta_lr_0_is_bit_equal_to_training_without(loss, kw):
    plain, meta = fit(learner(loss=loss)), fit(learner(MetaRisk.first_edition(meta_lr=0., every=2, **kw), loss=loss))
    assert equal(state(plain), state(meta)) and plain.recorder.losses == meta.recorder.losses

@pytest.mark.parametrize("loss", [LabelSmoothingCrossEntropyFlat(eps=.2), FocalLossFlat(), FocalLossFlat(weight=y_weights), nn.CrossEntropyLoss(label_smoothing=.1, weight=y_weights)], ids=repr)
def test_smoothed_and_focal_losses_are_weighed_sample_by_sample(loss):
    class Check(Callback):
        order, worst = 100, 0.
        def after_loss(self):
            if not self.training: return
            f = deepcopy(loss)
            f.reduction = "none"
            l = f(self.pred, *self.yb).flatten().sort(descending=True).values
            want = (self.learn.meta_risk.weights * l).sum() * self.loss / l.mean()
            self.worst = max(self.worst, float((self.loss_grad - want).abs() / want))
    learn = fit(learner([MetaRisk.first_edition(every=1, meta_lr=.3), check := Check()], loss=loss))
    assert check.worst < 1e-5 and learn.loss_func is loss and loss.reduction == "mean" and not learn.meta_risk.uniform


def test_the_loss_function_is_as_before_after_fit_lr_find_and_a_second_fit():
    loss = CrossEntropyLossFlat()
    learn = learner([MetaRisk.first_edition(every=1), MixUp()], model=Pictures(), loss=loss)
    for dl in learn.dls.loaders: dl.dataset.x = dl.dataset.x.view(-1, 1, 2, 3)
    fit(learn, 1)
    assert learn.loss_func is loss
    with learn.no_bar(): learn.lr_find(show_plot=False)
    assert learn.loss_func is loss
    fit(learn, 1)
    assert learn.loss_func is loss and loss.reduction == "mean"


# --- Any batch, any loader, company

@pytest.mark.parametrize("kw", [{"n": 207, "drop_last": False}, {"bs": 1, "model": nn.Linear(6, 3)}, {"bs": 8}, {"n": 15, "bs": 64, "drop_last": False}], ids=str)
def test_batches_of_any_size(kw):
    learn = fit(learner(MetaRisk.first_edition(every=3), **kw))
    assert len(learn.meta_risk.weights) == kw.get("bs", 20) and abs(learn.meta_risk.weights.sum() - 1) < 1e-5


def test_another_batch_size_in_a_later_fit():
    learn = fit(learner(MetaRisk.first_edition(every=2)))
    learn.dls = learner(bs=33).dls
    fit(learn)
    assert len(learn.meta_risk.weights) == 20 and torch.isfinite(learn.meta_risk.weights).all()


@pytest.mark.parametrize("cbs", [MetaRisk.first_edition(every=2, n_inner=2), MetaRisk.paper("cvar"), BatchRisk("cvar:.3")], ids=["meta", "paper", "batch"])
def test_plain_torch_loaders(cbs):
    learn = learner(deepcopy(cbs))
    learn.dls = DataLoaders(*[torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors(100, i)), batch_size=20, shuffle=not i) for i in (0, 1)])
    fit(learn)


def test_gradient_accumulation_makes_one_meta_step_an_optimizer_step():
    learn, count = learner(MetaRisk.first_edition(every=1)), []
    class Count(Callback):
        def after_batch(self):
            if self.training: count.append(self.learn.meta_risk.reducer.logits.detach().clone())
    fit(learn.add_cbs([GradientAccumulation(40), Count()]), 1)
    moves = sum(not torch.equal(a, b) for a, b in zip([torch.zeros_like(count[0]), *count], count))
    assert len(count) == 10 and moves == 5 == learn.meta_risk.n_step == len(learn.meta_risk.history)

@pytest.mark.parametrize("n", [200, 190])
def test_accumulated_gradients_are_those_of_the_weighed_losses(n):
    learn = fit(learner([MetaRisk.first_edition(every=2), GradientAccumulation(40)], n=n, drop_last=False))
    assert learn.meta_risk.n_step == n // 20 and not learn.meta_risk.uniform


# --- Loaders of every kind: what is learned on is what the loader gives

def numbered(ids, n=100, **kwargs):
    "A torch loader over (a point, its number in the data set) that gives `ids` alone"
    x, _ = tensors(n, 0)
    data = torch.utils.data.TensorDataset(x, torch.arange(n))
    return torch.utils.data.DataLoader(data, **(kwargs or {"batch_size": 20, "sampler": torch.utils.data.SubsetRandomSampler(ids)}))


def by_number(pred, y): return ce(pred, y % 3)


def learned_on(dls, **kwargs):
    "The numbers of the samples that MetaRisk learns on, and the meta_risk"
    seen = set()
    def spy(pred, y): seen.update(y.tolist()); return by_number(pred, y)
    learn = learner(MetaRisk.first_edition(every=1, loss_func=by_number, meta_loss=spy, **kwargs), loss=lambda p, y: by_number(p, y).mean())
    learn.dls = dls
    fit(learn)
    return seen


@pytest.mark.parametrize("meta_bs", [500, 7])
@pytest.mark.parametrize("sampler", [torch.utils.data.SubsetRandomSampler, list], ids=["random", "in order"])
def test_it_never_learns_on_training_data_when_both_loaders_share_a_data_set(meta_bs, sampler):
    train, valid = range(60), range(60, 100)
    dls = DataLoaders(numbered(train), numbered(None, batch_size=10, sampler=sampler(valid)))
    seen = learned_on(dls, meta_bs=meta_bs)
    assert seen <= set(valid) and len(seen) > 30 if meta_bs == 7 else seen == set(valid)


@pytest.mark.parametrize("fresh", [False, True])
def test_batch_samplers_and_streams(fresh):
    batches = torch.utils.data.BatchSampler(torch.utils.data.SubsetRandomSampler(range(60)), 20, drop_last=True)
    assert learned_on(DataLoaders(numbered(None, batch_sampler=batches), numbered(range(60, 100))), fresh=fresh) == set(range(60, 100))
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return ((torch.zeros(6) + i, i) for i in range(60, 100))
    stream = torch.utils.data.DataLoader(Stream(), batch_size=10)
    assert learned_on(DataLoaders(numbered(range(60)), numbered([0])), fresh=fresh, meta_dl=stream) == set(range(60, 100))


def test_fresh_batches_come_as_the_training_loader_draws_them():
    seen = set()
    def spy(pred, y): seen.update(y.tolist()); return ce(pred, y)
    learn = learner(MetaRisk.paper("expected", loss_func=spy, meta_loss=ce))
    x, y = tensors(200, 0)
    learn.dls.loaders[0] = WeightedDL(list(zip(x, y)), bs=20, wgts=(y != 2).float(), shuffle=True, drop_last=True)
    fit(learn, 1)
    assert seen == {0, 1}


def test_the_training_order_is_untouched_by_a_loader_with_a_generator_of_its_own():
    def run(cbs):
        set_seed(0)
        def loader(i): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors(100, i)), 20, shuffle=not i,
                                                          generator=torch.Generator().manual_seed(0))
        return state(fit(Learner(DataLoaders(loader(0), loader(1)), net(), CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)))
    assert equal(run(None), run(MetaRisk.first_edition(meta_lr=0., every=1, n_inner=3, fresh=True, meta_bs=30)))


# --- Models of every kind

class Attention(nn.Module):
    "Six numbers as a sequence of three: fused attention, dropout, tied weights"
    def __init__(self, dropout=0.):
        super().__init__()
        self.up, self.back, self.head, self.dropout = nn.Linear(2, 8), nn.Linear(2, 8), nn.Linear(24, 3), dropout
        self.back.weight = self.up.weight
    def forward(self, x):
        q, k = self.up(x.view(-1, 3, 2)), self.back(x.view(-1, 3, 2))
        return self.head(F.scaled_dot_product_attention(q, k, q, dropout_p=self.dropout if self.training else 0.).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind): super().__init__(); self.body, self.head = kind(2, 8, batch_first=True), nn.Linear(8, 3)
    def forward(self, x): return self.head(self.body(x.view(-1, 3, 2))[0][:, -1])


class Calls(nn.Module):
    "A compiled function in the middle of a forward pass"
    def __init__(self): super().__init__(); self.body, self.head, self.act = nn.Linear(6, 16), nn.Linear(16, 3), torch.compile(torch.tanh, backend="aot_eager")
    def forward(self, x): return self.head(self.act(self.body(x)))


def compiled(model, in_place): return model.compile(backend="aot_eager") or model if in_place else torch.compile(model, backend="aot_eager")


def with_norm(norm):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    norm(model[0])
    return model


models = {"attention": Attention, "attention with dropout": lambda: Attention(.2), "lstm": lambda: Recurrent(nn.LSTM), "gru": lambda: Recurrent(nn.GRU),
          "weight norm": lambda: with_norm(nn.utils.parametrizations.weight_norm), "spectral norm": lambda: with_norm(nn.utils.parametrizations.spectral_norm),
          "transformer": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.TransformerEncoderLayer(2, 1, 8, batch_first=True), nn.Flatten(), nn.Linear(6, 3)),
          "layer norm": lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)),
          "compiled": lambda: compiled(net(), False), "compiled in place": lambda: compiled(net(), True), "compiled function": Calls}


def seeded(make): set_seed(0); return make()


@pytest.mark.parametrize("kw", [{}, {"n_inner": 2}, {"n_inner": 2, "method": "first_order"}, {"n_inner": 2, "method": "finite_difference"}], ids=str)
@pytest.mark.parametrize("model", models)
def test_a_model_of_any_kind_has_the_hypergradient_of_its_plain_kernels(model, kw):
    if kw and "compiled" in model and kw.get("method"): pytest.skip("as without a method")
    learn = fit(learner(MetaRisk.first_edition(every=1, **kw), model=seeded(models[model])), 1)
    assert not learn.meta_risk.uniform and learn.meta_risk.skipped == 0 and learn.meta_risk.method == kw.get("method", "exact")
    assert equal(state(fit(learner(model=seeded(models[model])), 1)), state(fit(learner(MetaRisk.first_edition(every=1, meta_lr=0., **kw), model=seeded(models[model])), 1)))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_learns_what_the_same_model_learns_uncompiled(in_place):
    a, b = [fit(learner(MetaRisk.first_edition(every=1, n_inner=2), model=m)) for m in (seeded(net), compiled(seeded(net), in_place))]
    assert (a.meta_risk.weights - b.meta_risk.weights).abs().max() < 1e-5


def test_once_differentiable_functions_are_named_and_first_order_needs_none_of_the_second():
    class Double(torch.autograd.Function):
        "Forward mode, and a backward pass that cannot be differentiated"
        generate_vmap_rule = False
        @staticmethod
        def forward(ctx, x): return 2 * x
        @staticmethod
        def jvp(ctx, dx): return 2 * dx
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g): return 2 * g
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.body = nn.Linear(6, 3)
        def forward(self, x): return Double.apply(self.body(x))
    def run(**kw):
        learn = learner(MetaRisk.first_edition(every=1, n_inner=2, **kw), model=seeded(Net))
        with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            learn.fit(1, .1)
        return learn.meta_risk, [str(o.message) for o in said if "MetaRisk goes on" in str(o.message)]
    meta, said = run()
    assert meta.method == "finite_difference" and len(said) == 1 and not meta.uniform
    meta, said = run(method="first_order")
    assert meta.method == "first_order" and not said and not meta.uniform


# --- Precision

@pytest.mark.parametrize("kw", [{}, {"n_inner": 3}, {"n_inner": 3, "method": "finite_difference"}], ids=str)
def test_bfloat16_learns_the_same_weights_within_its_precision(kw):
    a, b = fit(learner(MetaRisk.first_edition(every=2, **kw))), fit(learner([MetaRisk.first_edition(every=2, **kw), Half()]))
    assert b.meta_risk.weights.dtype == torch.float32 and (a.meta_risk.weights - b.meta_risk.weights).abs().max() < .1 / 20 and not b.meta_risk.uniform


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["to_fp16", "to_bf16"])
def test_mixed_precision_on_a_gpu(how):
    def run(mixed):
        learn = learner(MetaRisk.first_edition(every=2))
        learn.dls.device = torch.device("cuda")
        return fit(getattr(learn, how)() if mixed else learn).meta_risk.weights
    assert (run(True) - run(False)).abs().max() < .1 / 20


@pytest.mark.parametrize("kw", [{"n_valid": 1}, {"meta_bs": 1}], ids=str)
def test_batch_norm_needs_two_validation_samples(kw):
    meta = MetaRisk.first_edition(every=1, meta_bs=kw.get("meta_bs", 200))
    with pytest.raises(ValueError, match="batch norm needs at least 2 samples at a time"): fit(learner(meta, n_valid=kw.get("n_valid", 60)))
    fit(learner(MetaRisk.first_edition(every=1, meta_bs=kw.get("meta_bs", 200)), n_valid=kw.get("n_valid", 60), model=nn.Linear(6, 3)))


def test_mae_is_for_class_labels():
    with pytest.raises(ValueError, match="meta_loss='mae' needs logits of several classes and one label per sample: pass meta_loss='own'"):
        learn = learner(MetaRisk.first_edition(meta_loss="mae"), loss=nn.MSELoss(), model=nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)))
        for dl in learn.dls.loaders: dl.dataset.y = dl.dataset.y.float()
        fit(learn)


class Some(torch.utils.data.Dataset):
    "Every third sample is left out by fastai's loader"
    def __init__(self, n, seed): self.x, self.y = tensors(n, seed)
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        if i % 3 == 0: raise SkipItemException
        return self.x[i], self.y[i]


@pytest.mark.parametrize("meta_bs", [30, 55])
def test_a_loader_that_leaves_samples_out(meta_bs):
    learn = learner(MetaRisk.first_edition(every=1, meta_bs=meta_bs))
    learn.dls = DataLoaders(FastaiLoader(Some(100, 0), bs=10, shuffle=True, num_workers=0), FastaiLoader(Some(90, 1), bs=10, num_workers=0))
    assert not fit(learn).meta_risk.uniform


def test_a_loader_of_ready_batches():
    batches = [[o[i:i + 20] for o in tensors(200, 0)] for i in range(0, 200, 20)]
    learn = learner(MetaRisk.first_edition(every=1, meta_bs=30))
    learn.dls = DataLoaders(*[FastaiLoader(batches, bs=None, num_workers=0) for _ in range(2)])
    meta = fit(learn).meta_risk
    assert not meta.uniform and meta.passes == pytest.approx(2) and meta.reducer.n == 20
