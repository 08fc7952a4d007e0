"MetaRisk with each kind of task that fastai trains: its own loaders and learners, on small made-up data"
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import equal, state
from fastai.basics import SGD, Adam, Callback, DataBlock, DataLoaders, Learner, load_learner, set_seed
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.rnn import ModelResetter, rnn_cbs
from fastai.callback.schedule import ParamScheduler  # noqa: F401 (adds fit_one_cycle and fine_tune)
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, MultiCategoryBlock, RegressionBlock
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLossFlat, L1LossFlat, MSELossFlat
from torch import nn

from metarisk_nb.callback import BatchRisk, MetaRisk, RiskMetric
from metarisk_nb.data import TensorDL, TensorSet
from metarisk_nb.risk import as_risk

Image = pytest.importorskip("PIL.Image")
pd = pytest.importorskip("pandas")
pytest.importorskip("torchvision")

from fastai.collab import CollabDataLoaders, collab_learner  # noqa: E402
from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_config, tabular_learner  # noqa: E402
from fastai.text.all import AWD_LSTM, BaseTokenizer, TextBlock, get_language_model, language_model_learner, text_classifier_learner  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    ImageBlock,
    ImageDataLoaders,
    MaskBlock,
    PointBlock,
    RandomResizedCrop,
    TensorPoint,
    aug_transforms,
    resnet18,
    unet_learner,
    vision_learner,
)
from fastai.vision.gan import GANLearner  # noqa: E402

# --- Made-up data

SIDE, TRAIN, VALID, BS, CPU = 32, 24, 10, 8, torch.device("cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "PNGs of a bright square on noise, a mask of each (2: void, along the edge of the square), and a table of what is where"
    folder, g, rows = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for i in range(TRAIN + VALID):
        size, top, left = (int(g.integers(*o)) for o in ((8, 16), (0, 16), (0, 16)))
        x, mask = g.integers(0, 90, (SIDE, SIDE, 3)), np.zeros((SIDE, SIDE))
        x[top:top + size, left:left + size, i % 2] += 150
        mask[top:top + size, left:left + size] = 2
        mask[top + 1:top + size - 1, left + 1:left + size - 1] = 1
        for name, o in (f"{i:02}.png", x), (f"{i:02}_mask.png", mask): Image.fromarray(o.astype(np.uint8)).save(folder/name)
        tags = [*("rg"[i % 2]), *["big"] * (size > 11), *["top"] * (top < 8)]
        rows.append(dict(name=f"{i:02}.png", mask=f"{i:02}_mask.png", colour="rg"[i % 2], tags=" ".join(tags), size=size / 16,
                         top=top, left=left, bottom=top + size, right=left + size, valid=i >= TRAIN))
    return folder, pd.DataFrame(rows)


def loaders(drawn, block, get_y, bs=BS, n=TRAIN + VALID, **kwargs):
    "DataLoaders of the last `n` pictures through a DataBlock"
    folder, table = drawn
    blocks = [ImageBlock, *(block if isinstance(block, list) else [block])]
    data = DataBlock(blocks, n_inp=1, get_x=ColReader("name", pref=f"{folder}/"), get_y=get_y, splitter=ColSplitter("valid"), **kwargs)
    return data.dataloaders(table[-n:], bs=bs, num_workers=0, device=CPU)


def conv_net(n_out, pool=True):
    body = [nn.Conv2d(3, 8, 3, 2 if pool else 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.2)]
    return nn.Sequential(*body, *([nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, n_out)] if pool else [nn.Conv2d(8, n_out, 3, 1, 1)]))


# --- What each case is asked

def quiet(learn, train):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(learn)


def one_cycle(learn, n=1, lr=.01): learn.fit_one_cycle(n, lr)


def run(make, *cbs, train=one_cycle):
    "A Learner from `make`, trained from the same seed each time"
    set_seed(0)
    learn = make().add_cbs(cbs)
    set_seed(1)
    quiet(learn, train)
    return learn


def row(o, i):
    "Sample `i` of a tensor or of a tuple of them, as a batch of one"
    return type(o)(row(x, i) for x in o) if isinstance(o, (tuple, list)) else o[i:i + 1].as_subclass(torch.Tensor)


def alone(learn, pred, yb):
    "The Learner's own loss of each sample by itself"
    return torch.stack([learn.loss_func(row(pred, i), *row(tuple(yb), i)).as_subclass(torch.Tensor) for i in range(len(yb[0]))])


class Weighed(Callback):
    "Is what is differentiated the weighted sum of the sorted losses of single samples?"
    order, run_valid = -4, False
    def __init__(self, alone=alone): self.alone, self.steps, self.worst, self.moved = alone, 0, 0., 0.
    def after_loss(self):
        meta = self.learn.meta_risk
        l = self.alone(self.learn, self.pred, self.yb).detach().sort(descending=True).values
        w = meta.weights if len(l) == len(meta.weights) else meta.reducer.weights(len(l)).detach()
        want, loss = float((w.to(l) * l).sum() * self.loss / l.mean()), float(self.loss)
        self.steps, self.worst = self.steps + 1, max(self.worst, abs(float(self.loss_grad) - want) / abs(want))
        self.moved = max(self.moved, abs(float(self.loss_grad) - loss) / abs(loss))


def phi_moved(learn):
    meta, n = learn.meta_risk, learn.dls.train.bs
    w = meta.weights
    assert meta.skipped == 0 and meta.method == "exact" and not meta.uniform and (w - 1 / n).abs().max() > 1e-3
    assert w.shape == (n,) and w.isfinite().all() and w.min() >= 0 and abs(float(w.sum()) - 1) < 1e-5
    assert np.isfinite(float(meta.value)) and meta.history.values.isfinite().all()


def loss_is_as_before(learn, loss, reduction):
    assert learn.loss_func is loss and getattr(loss, "reduction", None) == reduction


def predicts(learn):
    before, n = state(learn), learn.dls.valid.n
    values, (preds, *_) = quiet(learn, lambda o: (o.validate(), o.get_preds()))
    assert np.isfinite(values[0]) and all(len(p) == n for p in (preds if isinstance(preds, (tuple, list)) else [preds]))
    assert equal(before, state(learn))


def finite(learn): assert all(v.isfinite().all() for v in state(learn) if v.is_floating_point())


def trains(make, *cbs, train=one_cycle, alone=alone, **kwargs):
    "All that is asked of a task: phi moves, the loss stays the Learner's own, meta_lr=0 changes no bit, and the Learner goes on to predict"
    kwargs = {"risk": "cvar:.5", "every": 1, "warmup": 0, **kwargs}
    make_mixed = lambda: make().add_cbs([cb() for cb in cbs])  # noqa: E731
    look, loss = Weighed(alone), []
    def noted():
        learn = make_mixed()
        loss.extend((learn.loss_func, getattr(learn.loss_func, "reduction", None)))
        return learn
    learn = run(noted, MetaRisk(meta_lr=.3, **kwargs), *[look] * bool(alone), train=train)
    phi_moved(learn)
    finite(learn)
    loss_is_as_before(learn, *loss)
    if alone: assert look.steps > 1 and look.worst < 1e-4 and look.moved > 1e-3
    predicts(learn)
    plain, zero = run(make_mixed, train=train), run(make_mixed, MetaRisk(meta_lr=0., **kwargs), train=train)
    assert equal(state(plain), state(zero)) and plain.recorder.losses == zero.recorder.losses, "meta_lr=0 is not training without the callback"
    assert zero.meta_risk.uniform and not equal(state(plain), state(learn))
    return learn


class ByHand:
    "Value and gradient of the first meta-steps, by an SGD step on the model itself and a backward pass a sample"
    def __init__(self, learn, steps=2):
        self.learn, self.seen, meta = learn, [], learn.meta_risk
        def meta_step(batch, step=meta.meta_step):
            want = self.want() if len(self.seen) < steps else None
            step(batch)
            if want: self.seen.append((*want, float(meta.value), meta.reducer.logits.grad.clone()))
        meta.meta_step = meta_step
    def out(self, x):
        p = self.learn.model(*x)
        return p[0] if hasattr(self.learn, "rnn") else p
    def want(self):
        learn, meta, model = self.learn, self.learn.meta_risk, self.learn.model
        rates = {p: h["lr"] for ps, h in zip(learn.opt.param_lists, learn.opt.hypers) for p in ps}
        ps = [p for p in model.parameters() if p.requires_grad]
        before, buffers = [p.data for p in ps], [(m._buffers, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
        for d, n, b in buffers: d[n] = b.clone()
        xb, yb = learn.xb, learn.yb  # `_split` sets them
        dl = learn.dls.valid.new(bs=learn.dls.valid.n, shuffle=False, drop_last=False)
        xv, yv = learn._split(dl.one_batch()) or (learn.xb, learn.yb)
        l = alone(learn, self.out(xb), yb)
        order = l.detach().argsort(descending=True)
        phi = meta.reducer.logits
        w = meta.reducer.weights()
        each = [torch.autograd.grad(o, ps, retain_graph=True, allow_unused=True) for o in l]
        each = [[torch.zeros_like(p) if g is None else g for p, g in zip(ps, gs)] for gs in each]
        for k, p in enumerate(ps): p.data = p.data - rates[p] * sum(w[j].item() * each[i][k] for j, i in enumerate(order))
        value = meta.risk(alone(learn, self.out(xv), yv))
        lam = torch.autograd.grad(value, ps, allow_unused=True)
        dw = torch.stack([-sum((rates[p] * v * g).sum() for p, v, g in zip(ps, lam, each[i]) if v is not None) for i in order])
        grad, = torch.autograd.grad(w, phi, dw.to(w))
        for p, v in zip(ps, before): p.data = v
        for d, n, b in buffers: d[n] = b
        learn.xb, learn.yb = xb, yb
        return float(value), grad
    def check(self, of=1e-3):
        assert self.seen
        for value, grad, got, got_grad in self.seen:
            assert got == pytest.approx(value, rel=1e-4)
            assert F.cosine_similarity(grad, got_grad, 0) > 1 - of and float(got_grad.norm()) == pytest.approx(float(grad.norm()), rel=.02)


def as_by_hand(make, train=one_cycle, **kwargs):
    "The meta-step's value and gradient are those of an inner step made by hand; for models without dropout"
    set_seed(0)
    learn = make().add_cb(MetaRisk(**{"risk": "cvar:.5", "every": 1, "warmup": 0, "meta_lr": .3, "meta_loss": "own", **kwargs}))
    hand = ByHand(learn)
    quiet(learn, train)
    hand.check()


# --- Images

class TestSingleLabelImages:
    @staticmethod
    def dls(drawn, num_workers=0, **kwargs):
        folder, table = drawn
        kwargs = dict(fn_col="name", label_col="colour", valid_col="valid", bs=BS, num_workers=num_workers, device=CPU) | kwargs
        return ImageDataLoaders.from_df(table, folder, **kwargs)

    def test_convolutional_net(self, drawn):
        trains(lambda: Learner(self.dls(drawn), conv_net(2), opt_func=SGD))

    @pytest.mark.parametrize("kw", [{}, {"fresh": True, "n_inner": 2}], ids=["this batch", "fresh batches"])
    def test_random_item_and_batch_transforms(self, drawn, kw):
        tfms = dict(item_tfms=RandomResizedCrop(SIDE, min_scale=.5), batch_tfms=aug_transforms(max_rotate=20., xtra_tfms=None))
        trains(lambda: Learner(self.dls(drawn, **tfms), conv_net(2), opt_func=SGD), **kw)

    def test_worker_processes(self, drawn):
        tfms = dict(item_tfms=RandomResizedCrop(SIDE, min_scale=.5), batch_tfms=aug_transforms(), num_workers=2)
        trains(lambda: Learner(self.dls(drawn, **tfms), conv_net(2), opt_func=SGD), fresh=True)

    def test_the_default_risk_with_mae_as_meta_loss(self, drawn):
        trains(lambda: Learner(self.dls(drawn), conv_net(2), opt_func=SGD), risk="expected")

    def test_predict_and_test_time_augmentation(self, drawn):
        folder, table = drawn
        learn = run(lambda: Learner(self.dls(drawn, batch_tfms=aug_transforms()), conv_net(2), opt_func=SGD), MetaRisk(every=1))
        w, step = learn.meta_risk.weights, learn.meta_risk.n_step
        label, _, p = quiet(learn, lambda o: o.predict(folder/table.name[0]))
        assert label in "rg" and abs(float(p.sum()) - 1) < 1e-5 and len(quiet(learn, lambda o: o.tta(n=2))[0]) == VALID
        assert torch.equal(learn.meta_risk.weights, w) and learn.meta_risk.n_step == step

    def test_vision_learner_frozen(self, drawn):
        def make():
            learn = vision_learner(self.dls(drawn), resnet18, pretrained=False, opt_func=SGD)
            learn.freeze()
            return learn
        before = run(make, train=lambda o: None)
        frozen = {n for n, p in before.model.named_parameters() if not p.requires_grad}
        learn = trains(make)
        was, now = [dict(o.model.named_parameters()) for o in (before, learn)]
        assert frozen and all(torch.equal(was[n], now[n]) for n in frozen) and not set(learn.meta_risk.rates()) & frozen
        assert any(not torch.equal(was[n], now[n]) for n in now)
        assert any(n.startswith("0.") for n in learn.meta_risk.rates())  # batch norms of the body train along

    def test_vision_learner_fine_tune(self, drawn):
        seen = []
        class Rates(Callback):
            order, run_valid = 1, False
            def after_loss(self): seen.append(sorted({f"{v:.1e}" for v in self.learn.meta_risk.rates().values()}))
        def make(): return vision_learner(self.dls(drawn), resnet18, pretrained=False, opt_func=SGD)
        learn = trains(make, train=lambda o: o.fine_tune(1, .01))
        assert learn.meta_risk.n_step == 6
        learn = run(make, MetaRisk(every=1), Rates(), train=lambda o: o.fine_tune(1, .01))
        assert len(seen[-1]) == 3  # one rate a parameter group, smaller towards the input

    def test_the_meta_step_of_a_frozen_vision_learner_by_hand(self, drawn):
        def make():
            learn = vision_learner(self.dls(drawn), resnet18, pretrained=False, opt_func=SGD, ps=0.)
            learn.freeze()
            return learn
        as_by_hand(make)


class TestMultiLabel:
    def make(self, drawn, **kwargs):
        dls = loaders(drawn, MultiCategoryBlock, ColReader("tags", label_delim=" "))
        return Learner(dls, conv_net(dls.c), opt_func=SGD, **kwargs)

    def test_losses_of_the_labels_are_averaged(self, drawn):
        learn = trains(lambda: self.make(drawn))
        assert isinstance(learn.loss_func, BCEWithLogitsLossFlat) and learn.dls.c == 4

    def test_weighted_labels(self, drawn):
        trains(lambda: self.make(drawn, loss_func=BCEWithLogitsLossFlat(pos_weight=torch.tensor([1., 2., 3., 4.]))))


class TestRegression:
    def make(self, drawn, loss_func=None, names="size", n_out=1):
        names = [names] if isinstance(names, str) else names
        dls = loaders(drawn, RegressionBlock(n_out=n_out), ColReader(names if len(names) > 1 else names[0]))
        return Learner(dls, conv_net(n_out), loss_func, opt_func=SGD)

    @pytest.mark.parametrize("loss", [None, L1LossFlat], ids=["the block's own", "L1"])
    def test_one_number(self, drawn, loss):
        learn = trains(lambda: self.make(drawn, loss and loss()))
        assert loss or "MSELoss" in repr(learn.loss_func)

    def test_several_numbers(self, drawn):
        trains(lambda: self.make(drawn, MSELossFlat(), ["size", "top", "left"], 3), train=partial(one_cycle, lr=1e-4))

    @pytest.mark.parametrize("loss", [MSELossFlat, L1LossFlat], ids=["MSE", "L1"])
    def test_points(self, drawn, loss):
        def get_y(r): return TensorPoint.create([[r.left, r.top], [r.right, r.bottom]])
        dls = partial(loaders, drawn, PointBlock, get_y, batch_tfms=aug_transforms(max_rotate=10.))
        trains(lambda: Learner(dls(), conv_net(4), loss(), opt_func=SGD))

    def test_vision_learner_with_a_range(self, drawn):
        def make():
            return vision_learner(loaders(drawn, RegressionBlock, ColReader("size")), resnet18, pretrained=False, opt_func=SGD, y_range=(0, 1.1), n_out=1)
        trains(make)


# --- Segmentation

def masked(drawn, **kwargs): return loaders(drawn, MaskBlock(["background", "square", "void"]), ColReader("mask", pref=f"{drawn[0]}/"), **kwargs)


def void_aside(learn, pred, yb):
    "Sum of the losses of the pixels that are not void, over all pixels"
    pred, y = pred.as_subclass(torch.Tensor), yb[0].as_subclass(torch.Tensor).long()
    return F.cross_entropy(pred, y, reduction="none", ignore_index=2).flatten(1).mean(1)


class TestSegmentation:
    losses = {"cross entropy": lambda: CrossEntropyLossFlat(axis=1), "focal": lambda: FocalLossFlat(axis=1), "dice": DiceLoss,
              "dice, mean": lambda: DiceLoss(reduction="mean"), "torch": nn.CrossEntropyLoss}

    @pytest.mark.parametrize("loss", losses)
    def test_losses_of_the_pixels_are_averaged(self, drawn, loss):
        torchs = loss == "torch"  # it wants whole numbers of 64 bits
        f = self.losses[loss]() if not torchs else None
        class Long(nn.CrossEntropyLoss):
            def forward(self, pred, y): return super().forward(pred, y.long())
        trains(lambda: Learner(masked(drawn), conv_net(3, False), f or Long(), opt_func=SGD), train=partial(one_cycle, lr=.001 if loss == "dice" else .1))

    def test_void_pixels(self, drawn):
        loss = CrossEntropyLossFlat(axis=1, ignore_index=2)
        learn = trains(lambda: Learner(masked(drawn), conv_net(3, False), loss, opt_func=SGD), alone=void_aside, train=partial(one_cycle, lr=.1))
        assert learn.meta_risk.plain_loss.ignore_index == 2

    def test_weighted_classes(self, drawn):
        def by_image(learn, pred, yb):
            pred, y = pred.as_subclass(torch.Tensor), yb[0].as_subclass(torch.Tensor).long()
            return F.cross_entropy(pred, y, torch.tensor([1., 4., 0.]), reduction="none").flatten(1).mean(1)
        loss = CrossEntropyLossFlat(axis=1, weight=torch.tensor([1., 4., 0.]))
        trains(lambda: Learner(masked(drawn), conv_net(3, False), loss, opt_func=SGD), alone=by_image, train=partial(one_cycle, lr=.1))

    def test_a_sum_of_losses_without_a_reduction(self, drawn):
        "fastai's own example: refused with what to pass instead, which is then used"
        class Combined:
            def __init__(self): self.focal, self.dice = FocalLossFlat(axis=1), DiceLoss(reduction="mean")
            def __call__(self, pred, y): return self.focal(pred, y) + self.dice(pred, y)
            def activation(self, x): return x.softmax(1)
            def decodes(self, x): return x.argmax(1)
        def make(): return Learner(masked(drawn), conv_net(3, False), Combined(), opt_func=SGD)
        for cb in MetaRisk(), BatchRisk("cvar"):
            with pytest.raises(TypeError, match="loss_func Combined has no `reduction`.*pass loss_func="): run(make, cb)
        def by_image(pred, y):
            return FocalLossFlat(axis=1, reduction="none")(pred, y).view(len(y), -1).mean(1) + DiceLoss(reduction="none")(pred, y).mean(1)
        trains(make, loss_func=by_image, train=partial(one_cycle, lr=.1))

    def test_transforms_of_image_and_mask(self, drawn):
        dls = partial(masked, drawn, batch_tfms=aug_transforms(max_rotate=20.))
        trains(lambda: Learner(dls(), conv_net(3, False), opt_func=SGD), fresh=True)

    @pytest.mark.parametrize("kw", [{}, pytest.param({"self_attention": True}, marks=pytest.mark.slow)], ids=["plain", "self-attention"])
    def test_unet_learner(self, drawn, kw):
        def make(): return unet_learner(masked(drawn, bs=4, n=VALID + 8), resnet18, pretrained=False, opt_func=SGD, n_out=3, **kw)
        learn = trains(make)
        assert type(learn.model).__name__ == "DynamicUnet"

    def test_the_meta_step_of_unet_learner_by_hand(self, drawn):
        as_by_hand(lambda: unet_learner(masked(drawn, bs=4, n=VALID + 4), resnet18, pretrained=False, opt_func=SGD, n_out=3))


# --- Tables

class TestTabular:
    @staticmethod
    def make(y, ps=.2, **kwargs):
        g = np.random.default_rng(0)
        n = 120
        df = pd.DataFrame({"kind": g.choice(list("abc"), n), "place": g.choice(list("xyzw"), n), "age": g.normal(size=n), "income": g.normal(size=n)})
        score = (df.kind == "a") + df.age + .3 * g.normal(size=n)
        df["class"], df["number"] = np.where(score > 0, "yes", "no"), score
        df["number 2"] = -score
        df.loc[::17, "income"] = np.nan
        set_seed(0)
        dls = TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=["kind", "place"], cont_names=["age", "income"],
                                         y_names=y, valid_idx=list(range(90, n)), bs=16, device=CPU)
        return tabular_learner(dls, layers=[16, 8], config=tabular_config(ps=ps, embed_p=ps), opt_func=SGD, **kwargs)

    def test_classification(self):
        learn = trains(lambda: self.make("class"))
        assert isinstance(learn.loss_func, CrossEntropyLossFlat)

    def test_classification_by_the_default_risk(self): trains(lambda: self.make("class"), risk="expected")

    def test_regression(self):
        learn = trains(lambda: self.make("number"))
        assert "MSELoss" in repr(learn.loss_func)

    def test_regression_of_several_numbers(self): trains(lambda: self.make(["number", "number 2"]))

    def test_draws_of_a_large_validation_set(self): trains(lambda: self.make("class"), meta_bs=8)

    def test_the_meta_step_by_hand(self): as_by_hand(lambda: self.make("class", ps=0.))


# --- Text

def sentences(n=60):
    "Made-up words: of two classes, one more often says `bim`, the other `bam`; of several lengths"
    g, rows = np.random.default_rng(0), []
    for i in range(n):
        words = g.choice(["lo", "la", "lu", *["bim", "bam"][i % 2:i % 2 + 1] * 3], int(g.integers(4, 14)))
        rows.append(dict(text=" ".join(words), label=["bims", "bams"][i % 2], valid=i >= n - 16))
    return pd.DataFrame(rows)


def texts(is_lm=False, seq_len=8):
    block = TextBlock.from_df("text", tok=BaseTokenizer(), n_workers=0, min_freq=1, is_lm=is_lm, seq_len=seq_len)
    data = DataBlock([block, *[CategoryBlock] * (not is_lm)], get_x=ColReader("text"), get_y=None if is_lm else ColReader("label"), splitter=ColSplitter("valid"))
    return data.dataloaders(sentences(), bs=BS, seq_len=seq_len, num_workers=0, device=CPU)


SMALL = dict(emb_sz=12, n_hid=16, n_layers=2, pad_token=1, bidir=False, hidden_p=.3, input_p=.4, embed_p=.1, weight_p=.5)


class TestText:
    @staticmethod
    def make(**kwargs):
        kwargs = {"drop_mult": 1., **kwargs}
        return text_classifier_learner(texts(), AWD_LSTM, seq_len=8, config={**SMALL, "output_p": .4}, pretrained=False, **kwargs)

    @pytest.mark.parametrize("kw", [{}, {"risk": "expected"}], ids=["cvar", "expected"])
    def test_classifier(self, kw): trains(self.make, **kw)

    def test_the_callbacks_of_a_classifier_stay(self):
        learn = trains(self.make, every=2)
        assert [hasattr(learn, o) for o in ("model_resetter", "rnn", "rnn_regularizer")] == [True] * 3

    def test_regularizer(self):
        "What RNNRegularizer adds to the loss is of the training batch, not of the meta-step's"
        seen = []
        class Before(Callback):
            order, run_valid = -1, False
            def after_pred(self): self.out3 = self.pred
            def after_loss(self): self.weighed = self.loss_grad.detach().clone()
        class After(Callback):
            order, run_valid = 2, False
            def after_loss(self):
                _, raw, out = self.learn.before.out3
                assert self.rnn.out is out and self.rnn.raw_out is raw
                seen.append((float(self.loss_grad - self.learn.before.weighed), float(2 * out.pow(2).mean() + 3 * (raw[:, 1:] - raw[:, :-1]).pow(2).mean())))
        make = partial(self.make, alpha=2., beta=3.)
        run(make, MetaRisk(every=1, fresh=True), Before(), After())
        assert len(seen) > 3 and all(a == pytest.approx(b, abs=1e-5) and b > 1e-3 for a, b in seen)
        trains(make, alone=None)

    def test_bidirectional_and_long_texts(self):
        def make():
            return text_classifier_learner(texts(), AWD_LSTM, seq_len=4, config={**SMALL, "bidir": True, "output_p": .4}, pretrained=False, opt_func=Adam)
        trains(make)

    def test_frozen_but_for_the_head(self):
        def make():
            learn = self.make()
            learn.freeze()
            return learn
        learn = trains(make)
        assert all(n.startswith("1.") for n in learn.meta_risk.rates())

    def test_the_meta_step_by_hand(self): as_by_hand(partial(self.make, drop_mult=1e-9, ps=[0.]))

    def test_export(self, tmp_path):
        learn = run(self.make, MetaRisk(every=1, risk="cvar"))
        learn.export(tmp_path/"learn.pkl")
        again = load_learner(tmp_path/"learn.pkl")
        quiet(again, lambda o: o.get_preds(dl=again.dls.test_dl(sentences()["text"][:5], num_workers=0)))

    def test_batch_risk(self):
        learn = run(self.make, BatchRisk("cvar:.5"))
        predicts(learn)
        plain, same = run(self.make), run(self.make, BatchRisk("expected"))
        assert all((a - b).abs().max() < 1e-4 for a, b in zip(state(plain), state(same))) and not equal(state(plain), state(learn))


class Remembers(nn.Module):
    "A recurrent net that goes on from its last hidden state, kept as a plain attribute until `reset`"
    def __init__(self): super().__init__(); self.rnn, self.out, self.h = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3), None
    def reset(self): self.h = None
    def forward(self, x):
        y, h = self.rnn(x[:, None], None if self.h is None or self.h.shape[1] != len(x) else self.h)
        self.h = h.detach()
        return self.out(y[:, 0])


class TestHiddenState:
    "Models whose hidden state outlives a batch: AWD_LSTM itself, or one's own"
    @staticmethod
    def make(model, n_valid=8, tokens=False, cbs=None):
        def sets(i, n):
            g = torch.Generator().manual_seed(i)
            x, y = torch.randint(2, 9, (n, 7), generator=g), torch.randint(0, 3, (n,), generator=g)
            return (x[:, :-1], x[:, 1:]) if tokens else (torch.randn(n, 6, generator=g) + F.one_hot(y, 6), y)
        dls = DataLoaders(*[TensorDL(TensorSet(*sets(i, n)), BS, shuffle=not i, device=CPU) for i, n in enumerate((40, n_valid))])
        dls.device, dls.n_inp = CPU, 1
        return Learner(dls, model(), CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)

    @staticmethod
    def unconnected():
        "A language model on sequences that have nothing to do with each other, as the refusal of LMDataLoader advises"
        def model(): return get_language_model(AWD_LSTM, 10, config={**SMALL, "output_p": .4, "tie_weights": True, "out_bias": True})
        return TestHiddenState.make(model, tokens=True, cbs=rnn_cbs(2., 1.))

    @pytest.mark.parametrize("n_valid", [8, 12], ids=["as many", "more"])
    def test_a_net_that_remembers(self, n_valid): trains(lambda: self.make(Remembers, n_valid, cbs=ModelResetter()), alone=None)

    def test_a_language_model_on_unconnected_sequences(self): trains(self.unconnected, alone=None)


# --- Recommendations

class TestCollab:
    @pytest.mark.parametrize("kw", [{}, {"use_nn": True, "layers": [8]}], ids=["dot product", "net"])
    def test_ratings(self, kw):
        g = np.random.default_rng(0)
        user, item = g.integers(0, 8, 100), g.integers(0, 6, 100)
        ratings = pd.DataFrame(dict(user=user, item=item, rating=np.clip(1 + user / 2 + item / 6 + g.normal(size=100), 0, 5)))
        def make():
            dls = CollabDataLoaders.from_df(ratings, valid_pct=.2, seed=0, bs=16, device=CPU)
            return collab_learner(dls, n_factors=5, y_range=(0, 5.5), opt_func=SGD, **kw)
        trains(make)


# --- What is refused

class TestRefused:
    @staticmethod
    def language_model(): return language_model_learner(texts(is_lm=True), AWD_LSTM, config={**SMALL, "output_p": .4, "tie_weights": True, "out_bias": True}, pretrained=False)

    def test_language_model(self):
        with pytest.raises(TypeError, match="a language model's batches go on where the last one stopped.*use it for the classifier"): run(self.language_model, MetaRisk(every=1))

    def test_language_model_is_as_before_the_refusal(self):
        set_seed(0)
        learn = self.language_model()
        before, loss = state(learn), learn.loss_func
        meta = MetaRisk(every=1)
        with pytest.raises(TypeError): quiet(learn.add_cb(meta), one_cycle)
        assert equal(before, state(learn)) and learn.loss_func is loss
        quiet(learn.remove_cb(meta), one_cycle)
        finite(learn)

    def test_language_model_by_batch_risk(self):
        learn = run(self.language_model, BatchRisk("cvar:.5"))
        finite(learn)
        assert learn.batch_risk.n_step > 1

    @pytest.mark.parametrize("how", ["wgan", "two losses"])
    @pytest.mark.parametrize("cb", [MetaRisk, partial(BatchRisk, "cvar")], ids=["meta", "batch"])
    def test_gan(self, how, cb):
        def make():
            real, noise = torch.rand(16, 1, 4, 4), torch.randn(16, 5)
            dls = DataLoaders(*[TensorDL(TensorSet(noise, real), BS, device=CPU)] * 2)
            dls.device, dls.n_inp = CPU, 1
            generator, critic = nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (1, 4, 4))), nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
            if how == "wgan": return GANLearner.wgan(dls, generator, critic, opt_func=SGD, show_img=False)
            return GANLearner(dls, generator, critic, lambda p, out, y: F.mse_loss(out, y), lambda real, fake: (fake - real).mean(), opt_func=SGD, show_img=False)
        with pytest.raises(TypeError, match="a GAN trains on two losses that take turns: not supported"): run(make, cb())
        finite(run(make))


# --- Several inputs, several targets

class Pair(nn.Module):
    "Two pictures in, the two answers' logits out"
    def __init__(self, *n_out): super().__init__(); self.body, self.heads = conv_net(12), nn.ModuleList(nn.Linear(12, n) for n in n_out)
    def forward(self, a, b=None):
        h = self.body(a) if b is None else self.body(a) - self.body(b)
        out = tuple(o(h) for o in self.heads)
        return out if len(out) > 1 else out[0]


class TwoHeads:
    "Cross entropy of the first head and mean squared error of the second"
    def __init__(self, reduction="mean"): self.reduction = reduction
    def __call__(self, pred, y1, y2):
        l = F.cross_entropy(pred[0], y1.long(), reduction="none") + F.mse_loss(pred[1].flatten(), y2.float(), reduction="none")
        return l if self.reduction == "none" else getattr(l, self.reduction)()
    def activation(self, o): return o
    def decodes(self, o): return o


class TestSeveralInputsAndTargets:
    def pairs(self, drawn, blocks, n_inp, getters):
        folder, table = drawn
        return DataBlock(blocks, n_inp=n_inp, getters=getters, splitter=ColSplitter("valid")).dataloaders(table, bs=BS, num_workers=0, device=CPU)

    def test_two_inputs(self, drawn):
        name = ColReader("name", pref=f"{drawn[0]}/")
        def make():
            dls = self.pairs(drawn, (ImageBlock, ImageBlock, CategoryBlock), 2, [name, ColReader("mask", pref=f"{drawn[0]}/"), ColReader("colour")])
            return Learner(dls, Pair(2), opt_func=SGD)
        assert run(make, train=lambda o: None).dls.n_inp == 2
        trains(make)
        trains(make, risk="expected", fresh=True, n_inner=2)

    def heads(self, drawn, reduction="mean"):
        getters = [ColReader("name", pref=f"{drawn[0]}/"), ColReader("colour"), ColReader("size")]
        return Learner(self.pairs(drawn, (ImageBlock, CategoryBlock, RegressionBlock), 1, getters), Pair(2, 1), TwoHeads(reduction), opt_func=SGD)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_two_heads(self, drawn, reduction): trains(partial(self.heads, drawn, reduction), train=partial(one_cycle, lr=.01 if reduction == "mean" else .001))

    def test_two_inputs_and_two_heads(self, drawn):
        name = ColReader("name", pref=f"{drawn[0]}/")
        def make():
            blocks, getters = (ImageBlock, ImageBlock, CategoryBlock, RegressionBlock), [name, ColReader("mask", pref=f"{drawn[0]}/"), ColReader("colour"), ColReader("size")]
            return Learner(self.pairs(drawn, blocks, 2, getters), Pair(2, 1), TwoHeads(), opt_func=SGD)
        trains(make)

    def test_a_pair_as_one_input(self, drawn):
        "Siamese: one input that is itself a tuple of two pictures"
        class Siamese(nn.Module):
            def __init__(self): super().__init__(); self.pair = Pair(2)
            def forward(self, x): return self.pair(*x)
        def make():
            g = torch.Generator().manual_seed(0)
            a, b = torch.randn(2, TRAIN + VALID, 3, 8, 8, generator=g)
            items = [((p, q), (p.mean() > q.mean()).long()) for p, q in zip(a, b)]
            dls = DataLoaders.from_dsets(items[:TRAIN], items[TRAIN:], bs=BS, num_workers=0, device=CPU)
            return Learner(dls, Siamese(), CrossEntropyLossFlat(), opt_func=SGD)
        trains(make)


class Auxiliary(nn.Module):
    "Two outputs of one kind, for a callback to choose from"
    def __init__(self, both): super().__init__(); self.body, self.heads, self.both = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 3) for _ in range(2)), both
    def forward(self, x): return tuple(o(self.body(x)) for o in self.heads) if self.both else self.heads[1](self.body(x))


class TestChosenOutput:
    def test_a_callback_that_takes_the_second_output(self):
        class Second(Callback):
            def after_pred(self): self.learn.pred = self.pred[1] if isinstance(self.pred, tuple) else self.pred
        def make(both): return TestHiddenState.make(partial(Auxiliary, both), cbs=Second())
        two, one = [run(partial(make, both), MetaRisk("cvar:.5", every=1, warmup=0, meta_lr=.3)) for both in (True, False)]
        phi_moved(two)
        assert torch.allclose(two.meta_risk.weights, one.meta_risk.weights, atol=1e-6)


# --- Mixed samples: fastai mixes the targets itself where the loss cannot

def mixed_loss(learn, pred, yb):
    mix = learn.loss_func.__self__
    f = mix.old_lf
    one, other = (torch.stack([f(row(pred, i), row(y, i)).as_subclass(torch.Tensor) for i in range(len(y))]) for y in (yb[0], mix.yb1[0]))
    return torch.lerp(other, one, mix.lam)


class TestMixed:
    @pytest.mark.parametrize("mix", [MixUp, CutMix])
    def test_single_label(self, drawn, mix):
        trains(lambda: Learner(TestSingleLabelImages.dls(drawn), conv_net(2), opt_func=SGD), mix, alone=mixed_loss)

    @pytest.mark.parametrize("mix", [MixUp, CutMix])
    def test_multi_label(self, drawn, mix): trains(partial(TestMultiLabel().make, drawn), mix)

    @pytest.mark.parametrize("mix", [MixUp, CutMix])
    @pytest.mark.parametrize("names", ["size", ["size", "top", "left"]], ids=["one number", "several"])
    def test_regression(self, drawn, mix, names):
        n = 1 if isinstance(names, str) else len(names)
        trains(lambda: TestRegression().make(drawn, MSELossFlat(), names, n), mix, train=partial(one_cycle, lr=1e-4))

    def test_segmentation_by_cut_mix(self, drawn):
        trains(lambda: Learner(masked(drawn), conv_net(3, False), opt_func=SGD), CutMix, alone=mixed_loss, train=partial(one_cycle, lr=.1))

    def test_segmentation_by_mix_up_is_not_for_fastai_either(self, drawn):
        def make(): return Learner(masked(drawn), conv_net(3, False), opt_func=SGD, cbs=MixUp())
        with pytest.raises(RuntimeError, match="must match the size"): run(make)  # a share a sample, a loss a pixel


# --- The metric, and the loader that is learned on

class TestMetric:
    @pytest.mark.parametrize("task", ["multi-label", "points", "segmentation", "two heads", "table", "text"])
    def test_risk_of_a_validation_set(self, drawn, task):
        "Over uneven batches: the CVaR of the losses of single samples"
        def corners(r): return TensorPoint.create([[r.left, r.top], [r.right, r.bottom]])
        make = {"multi-label": partial(TestMultiLabel().make, drawn), "segmentation": lambda: Learner(masked(drawn), conv_net(3, False)),
                "points": lambda: Learner(loaders(drawn, PointBlock, corners), conv_net(4), MSELossFlat()), "table": lambda: TestTabular.make("class"),
                "two heads": lambda: TestSeveralInputsAndTargets().heads(drawn), "text": TestText.make}[task]
        learn = run(make, train=lambda o: o.model.eval())
        learn.metrics, losses, dl = RiskMetric("cvar:.3"), [], learn.dls.valid
        value, batches = quiet(learn, lambda o: o.validate())[1], list(dl)
        with torch.no_grad():
            for b in batches:
                x, y = b[:dl.n_inp], b[dl.n_inp:]
                pred = learn.model(*x)
                losses.append(alone(learn, pred[0] if task == "text" else pred, y))
        assert len({len(l) for l in losses}) == 2 or dl.n % dl.bs == 0
        assert value == pytest.approx(float(as_risk("cvar:.3")(torch.cat(losses))), rel=1e-4)


class TestLoaders:
    def test_a_meta_loader_leaves_the_valid_loader_unread(self):
        "Four parts: train, meta, valid, test"
        read = {}
        class Noted(TensorSet):
            def __init__(self, name, n):
                g = torch.Generator().manual_seed(len(name) + n)
                y = torch.randint(0, 3, (n,), generator=g)
                super().__init__(torch.randn(n, 6, generator=g) + F.one_hot(y, 6), y)
                self.name = name
            def __getitem__(self, i): read[self.name] = read.get(self.name, 0) + 1; return super().__getitem__(i)
        parts = {n: TensorDL(Noted(n, k), 10, shuffle=n == "train", device=CPU) for n, k in dict(train=40, meta=20, valid=16, test=12).items()}
        dls = DataLoaders(parts["train"], parts["valid"], parts["test"])
        dls.device, dls.n_inp = CPU, 1
        seen = []
        class Look(Callback):
            order = 100
            def before_batch(self): seen.append(dict(read) if self.training else None)
        learn = run(lambda: Learner(dls, nn.Linear(6, 3), CrossEntropyLossFlat(), opt_func=SGD), MetaRisk(every=1, warmup=0, meta_dl=parts["meta"]), Look())
        phi_moved(learn)
        in_training = [o for o in seen if o is not None]
        assert len(in_training) == 4 and all("valid" not in o and "test" not in o for o in in_training) and read["meta"] > 0 and read["valid"] > 0 and "test" not in read

    def test_a_meta_loader_from_test_dl(self, drawn):
        "Items of their own through `dls.test_dl(..., with_labels=True)`"
        _, table = drawn
        def make(): return Learner(TestSingleLabelImages.dls(drawn), conv_net(2), opt_func=SGD)
        read = []
        def spy(pred, y): read.append(len(y)); return F.cross_entropy(pred, y, reduction="none")
        learn = run(lambda: (o := make()).add_cb(MetaRisk(every=1, warmup=0, meta_loss=spy, meta_dl=o.dls.test_dl(table[:7], with_labels=True))))
        phi_moved(learn)
        predicts(learn)
        assert set(read) == {7}
