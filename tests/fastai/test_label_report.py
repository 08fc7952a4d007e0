"`learn.meta_risk.label_report()`: which training labels are wrong, in a fastai Learner"
import io
import json
import warnings
from contextlib import redirect_stdout

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from common import fit, learner, tensors
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataBlock, Learner, MSELossFlat, load_learner, set_seed
from fastai.callback.mixup import MixUp
from fastai.data.block import CategoryBlock, TransformBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.tabular.all import Categorify, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.data import TextDataLoaders
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageDataLoaders
from torch import nn

from metarisk_nb import reporting
from metarisk_nb.callback import MetaRisk
from metarisk_nb.cleaning import clean_dls
from metarisk_nb.data import TensorSet, fashion_mini
from metarisk_nb.samples import item_names


def big(): return nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 3))


def noisy(cb, share=.3, n=400, n_valid=200, **kwargs):
    "Three clouds; a share of the labels names another one"
    g = torch.Generator().manual_seed(0)
    def labelled(n, s):
        x, y = tensors(n, s)
        drawn = torch.where(torch.rand(n, generator=g) < share, (y + torch.randint(1, 3, (n,), generator=g)) % 3, y)
        return TensorSet(x + 2 * F.one_hot(y, 6), drawn, y)
    set_seed(0)
    learn = learner(cb, model=big(), bs=40, opt_func=Adam, **kwargs)
    for i, s in enumerate([labelled(n, 5), labelled(n_valid, 6)]): learn.dls.loaders[i] = learn.dls[i].new(s)
    return learn


def wrong(learn, report):
    s = learn.dls.train_ds
    return (s.y != s.clean).numpy()[report["index"]]


# --- What it is there for

def test_it_finds_wrong_labels_and_says_how_many():
    learn = fit(noisy(MetaRisk()), 8, .01)
    report = learn.meta_risk.label_report()
    w = wrong(learn, report)
    assert len(report) == 400 and report.attrs["wrong_share"] == pytest.approx(w.mean(), abs=.05)
    assert w[:80].mean() > .95 and w[200:].mean() < .05
    meant = learn.dls.train_ds.clean.numpy()[report["index"]]
    assert (meant[:80] == report.suggested[:80]).mean() > .9
    most = max(report.attrs["of_class"], key=report.attrs["of_class"].get)
    assert report.attrs["summary"].startswith(f"About {report.attrs['wrong_share']:.0%} of 400 labels look wrong: most often those that say {most} (")


def test_right_labels_are_left_alone():
    report = fit(noisy(MetaRisk(), share=0.), 8, .01).meta_risk.label_report()
    assert report.attrs["wrong_share"] < .03 and report.attrs["summary"].startswith("Found little: ")


def test_each_visit_counts_whether_the_callback_had_anything_to_do_or_not():
    learn = fit(noisy(MetaRisk(), share=0.), 7, .01)
    assert learn.meta_risk.uniform and (learn.meta_risk.label_report().seen == 7).all()


@pytest.mark.parametrize("n_valid, says", [(40, "nearly all were learned by heart"), (200, "of the validation labels")])
def test_validation_labels_that_mean_nothing_are_no_judges(n_valid, says):
    "They find no harm, so all labels are learned by heart; few of them are not even asked"
    learn = noisy(MetaRisk(), share=.3, n=80, n_valid=n_valid)
    valid = learn.dls.valid_ds
    valid.y = torch.randint(0, 3, valid.y.shape, generator=torch.Generator().manual_seed(0))
    report = fit(learn, 60, .02).meta_risk.label_report()
    assert learn.meta_risk.uniform and report.attrs["by_heart"] and says in report.attrs["summary"]
    assert wrong(learn, report)[:20].mean() > .6  # the order still counts


@pytest.mark.parametrize("share", [0., .3])
def test_the_report_changes_nothing(share):
    def trained(asks):
        learn = noisy(MetaRisk(), share)
        for _ in range(3):
            fit(learn, 2, .01)
            if asks: learn.meta_risk.label_report()
        return learn.model[0].weight.detach()
    assert torch.equal(trained(True), trained(False))


# --- Several fits, a saved run, a model that went out into the world

def test_several_fits_and_a_saved_state(tmp_path):
    learn = noisy(MetaRisk(), path=tmp_path)
    fit(learn, 3, .01)
    learn.meta_risk.save("weights")
    new = noisy(MetaRisk(), path=tmp_path)
    new.model.load_state_dict(learn.model.state_dict())
    new.meta_risk.load("weights")
    pd.testing.assert_frame_equal(new.meta_risk.label_report(), learn.meta_risk.label_report())
    assert (fit(new, 2, .01).meta_risk.label_report().seen == 5).all()


def test_an_exported_learner_still_knows(tmp_path):
    learn = fit(table_of_clouds(tmp_path), 3, .01)
    learn.export("learn.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = load_learner(tmp_path/"learn.pkl").meta_risk.label_report()
    old = learn.meta_risk.label_report()
    pd.testing.assert_frame_equal(new, old.drop(columns="item"))


def table_of_clouds(path, **kwargs):
    "A data block that reads rows of a DataFrame whose index is no range"
    x, y = tensors(120, 5)
    df = pd.DataFrame(dict(row=[o.numpy() for o in x], name=np.array(["cat", "dog", "eel"])[y], is_valid=torch.arange(120) % 4 == 0), index=range(500, 620))
    block = DataBlock((TransformBlock, CategoryBlock), get_x=ColReader("row"), get_y=ColReader("name"), splitter=ColSplitter(),
                      item_tfms=[], batch_tfms=None)
    dls = block.dataloaders(df, bs=15, path=path)
    return Learner(dls, nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), path=path, cbs=MetaRisk(), **kwargs)


# --- Names of samples and classes

def test_rows_of_a_table_are_named(tmp_path):
    report = fit(table_of_clouds(tmp_path), 3, .01).meta_risk.label_report(n=10)
    assert list(report.columns) == ["index", "item", "label", "suggested", "score", "seen"] and len(report) == 10
    assert set(report.label) <= {"cat", "dog", "eel"} and set(report.attrs["of_class"]) == {"cat", "dog", "eel"}
    assert report["item"].between(500, 619).all() and ((report["item"] - 500) % 4 != 0).all()


def test_a_tabular_learner(tmp_path):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(age=rng.normal(size=300), kind=rng.choice(["a", "b"], 300)), index=range(1000, 1300))
    df["rich"] = np.where(df.age + (df.kind == "a") > .5, "yes", "no")
    df.loc[1000:1019, "rich"] = np.where(df.loc[1000:1019, "rich"] == "yes", "no", "yes")
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, Normalize], cat_names=["kind"], cont_names=["age"], y_names="rich",
                                     valid_idx=list(range(100, 300)), bs=25, path=tmp_path)
    learn = fit(tabular_learner(dls, layers=[20], cbs=MetaRisk(), path=tmp_path), 15, .01)
    report = learn.meta_risk.label_report()
    assert report["item"][:15].between(1000, 1019).mean() > .7 and set(report.label) == {"yes", "no"}
    learn.meta_risk.show_suspects(5)


# --- A look at them

def shown(learn, **kwargs):
    "What `show_suspects` draws or prints"
    plt.close("all")
    with redirect_stdout(out := io.StringIO()): learn.meta_risk.show_suspects(6, **kwargs)
    return [ax.get_title() for f in map(plt.figure, plt.get_fignums()) for ax in f.axes if ax.get_title()] or out.getvalue()


def test_images_show_the_given_label_and_the_suggested_one():
    learn = Learner(fashion_mini(noise=.4, device="cpu"), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), nn.CrossEntropyLoss(), cbs=MetaRisk())
    fit(learn, 1, .1)
    report = learn.meta_risk.label_report(6)
    assert shown(learn, nrows=2) == [f"{a}\n{b}" for a, b in zip(report.label, report.suggested)]


def test_images_in_files_are_shown_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        (folder := tmp_path/"train"/["cat", "dog"][i % 2]).mkdir(parents=True, exist_ok=True)
        PILImage.create(np.full((16, 16, 3), 200 * (i % 2), np.uint8) + rng.integers(0, 40, (16, 16, 3), np.uint8)).save(folder/f"{i}.png")
    dls = ImageDataLoaders.from_folder(tmp_path, train=".", valid_pct=.25, seed=0, bs=10, item_tfms=Resize(16), batch_tfms=aug_transforms())
    learn = fit(Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), path=tmp_path, cbs=MetaRisk()), 2, .01)
    report = learn.meta_risk.label_report()
    assert all(o.suffix == ".png" and o.parent.name == label for o, label in zip(report["item"], report.label))
    assert shown(learn) == [f"{a}\n{b}" for a, b in zip(report.label[:6], report.suggested[:6])]


# --- A second run

def trained_pictures(path, **kwargs):
    "Bright dogs and dark cats, every fifth in the wrong folder, and a run with them"
    rng = np.random.default_rng(0)
    for i in range(80):
        (folder := path/["cat", "dog"][(i % 2) ^ (i % 5 == 0)]).mkdir(parents=True, exist_ok=True)
        PILImage.create(np.full((8, 8, 3), 200 * (i % 2), np.uint8) + rng.integers(0, 40, (8, 8, 3), np.uint8)).save(folder/f"{i}.png")
    dls = ImageDataLoaders.from_folder(path, train=".", valid_pct=.25, seed=0, bs=10, **kwargs)
    set_seed(0)
    return fit(Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), path=path, cbs=MetaRisk()), 12, .01)


def labels(dls):
    "What a pass over the training set gives: file -> label"
    dl = dls.train.new(shuffle=False, drop_last=False)
    return dict(zip(item_names(dl.dataset), [dls.vocab[k] for k in torch.cat([b[1] for b in dl])]))


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_without_the_suspects_or_with_other_labels(workers, tmp_path):
    learn = trained_pictures(tmp_path, num_workers=workers)
    before, suspects = labels(learn.dls), learn.meta_risk.label_report(8)
    fewer, relabelled = labels(clean_dls(learn.dls, suspects)), labels(clean_dls(learn.dls, suspects, relabel=True))
    assert fewer == {k: v for k, v in before.items() if k not in set(suspects["item"])}
    assert relabelled == before | dict(zip(suspects["item"], suspects.suggested)) and labels(learn.dls) == before
    assert sum(int(o.stem) % 5 == 0 for o in suspects["item"]) >= 5  # of 54 files about ten are wrong


def test_a_second_run_has_a_report_of_its_own(tmp_path):
    learn = trained_pictures(tmp_path)
    learn.dls = clean_dls(learn.dls, first := learn.meta_risk.label_report(8))
    with pytest.raises(ValueError, match="fit again"): learn.meta_risk.label_report()
    fit(learn, 3, .001)
    second = learn.meta_risk.label_report()
    assert not set(second["item"]) & set(first["item"]) and (tmp_path/second["item"][0]).exists()
    learn.export("learn.pkl")
    load_learner(tmp_path/"learn.pkl")


@pytest.mark.parametrize("relabel", [False, True])
def test_rows_of_a_tabular_learner(relabel, tmp_path):
    df = pd.DataFrame(dict(age=np.arange(100.), rich=["no"] * 50 + ["yes"] * 50), index=range(1000, 1100))
    dls = TabularDataLoaders.from_df(df, procs=[Normalize], cont_names=["age"], y_names="rich", valid_idx=list(range(0, 100, 4)), bs=25, path=tmp_path)
    suspects = pd.DataFrame(dict(index=[0, 74], suggested=["yes", "no"]))
    new = clean_dls(dls, suspects, relabel)
    rows = new.train_ds.items.rich.map(lambda k: dls.vocab[k])
    was = dls.train_ds.items.rich.map(lambda k: dls.vocab[k])
    if relabel: assert rows[1001] == "yes" and rows[1099] == "no" and (rows != was).sum() == 2
    else: assert rows.equals(was.drop([1001, 1099]))
    assert was[1001] == "no" and fit(tabular_learner(new, layers=[4], path=tmp_path, cbs=MetaRisk()), 1).meta_risk.label_report(5)["item"].isin(rows.index).all()


def test_texts(tmp_path):
    df = pd.DataFrame(dict(text=["good fine nice"] * 20 + ["bad poor sad"] * 20, label=["pos"] * 20 + ["neg"] * 20))
    dls = TextDataLoaders.from_df(df, path=tmp_path, valid_pct=.25, seed=0, bs=5, text_col="text", label_col="label")
    suspects = pd.DataFrame(dict(index=[3, 5], suggested=["pos", "pos"]))
    new = clean_dls(dls, suspects, relabel=True)
    assert len(clean_dls(dls, suspects).train_ds) == 28
    assert [dls.vocab[1][new.train_ds[i][1]] for i in (3, 5)] == ["pos", "pos"]
    assert all(torch.equal(new.train_ds[i][0], dls.train_ds[i][0]) for i in range(30))


class Bag(nn.Module):
    "The mean of the embeddings of a text's words"
    def __init__(self, words, n=3):
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 32), nn.Linear(32, n)
    def forward(self, x): return self.head(self.embed(x).mean(1))


def text_learner(path, share=.3, n=600, drop_last=True):
    "Short texts about three topics, sorted by length as fastai does it; a share of the labels names another topic"
    g = np.random.default_rng(0)
    meant = g.integers(0, 3, n)
    texts = [" ".join(g.permutation([f"{'abc'[k]}{i}" for i in g.integers(0, 12, 4)] + [f"w{i}" for i in g.integers(0, 30, g.integers(1, 9))])) for k in meant]
    given = np.where(g.random(n) < share, (meant + g.integers(1, 3, n)) % 3, meant)
    df = pd.DataFrame(dict(text=texts, label=np.array(["art", "ball", "coin"])[given], meant=np.array(["art", "ball", "coin"])[meant]))
    dls = TextDataLoaders.from_df(df, path=path, valid_pct=.25, seed=0, bs=45, text_col="text", label_col="label", drop_last=drop_last)
    set_seed(0)
    return Learner(dls, Bag(len(dls.vocab[0])), loss_func=CrossEntropyLossFlat(), cbs=MetaRisk()), df


@pytest.mark.parametrize("drop_last", [True, False])
def test_texts_that_are_sorted_by_length(tmp_path, drop_last):
    learn, df = text_learner(tmp_path, drop_last=drop_last)
    fit(learn, 14, .02)
    report = learn.meta_risk.label_report()
    assert learn.meta_risk.picked("rank") == "history"
    rows = df.loc[report["item"]]
    wrong = (rows.label != rows.meant).to_numpy()
    assert (rows.label.to_numpy() == report.label).all() and len(report) == 450
    assert wrong[:90].mean() > .95 and wrong[200:].mean() < .1 and abs(report.attrs["wrong_share"] - wrong.mean()) < .07
    assert (report.suggested[:90] == rows.meant.to_numpy()[:90]).mean() > .9 and report.seen.max() == 14
    assert report.seen.min() == 14 or drop_last
    assert len(clean_dls(learn.dls, report[report.score > .9]).train_ds) < 360


def test_suspects_among_texts_are_shown(tmp_path, monkeypatch):
    import fastai.text.all  # noqa: F401 (what it shows of texts itself fails)
    learn, df = text_learner(tmp_path)
    fit(learn, 14, .02)
    monkeypatch.setattr(reporting, "display_df", (tables := []).append)
    learn.meta_risk.show_suspects(4)
    report, shown = learn.meta_risk.label_report(4), tables[0]
    assert (shown.label == report.label).all() and (shown.suggested == report.suggested).all()
    assert [o.removeprefix("xxbos ") for o in shown.text] == df.text[report["item"]].tolist()


def test_what_cannot_be_cleaned():
    dls = fashion_mini(device="cpu")
    n = len(dls.train_ds)
    with pytest.raises(ValueError, match=f"index {n}, but there are {n}"): clean_dls(dls, pd.DataFrame(dict(index=[n], suggested=["Bag"])))
    with pytest.raises(ValueError, match="every training sample is a suspect"): clean_dls(dls, pd.DataFrame(dict(index=range(n), suggested="Bag")))


# --- Where there is none

def test_before_a_fit():
    with pytest.raises(RuntimeError, match="before the first fit"): noisy(MetaRisk()).meta_risk.label_report()


@pytest.mark.parametrize("cb", [MetaRisk("cvar"), MetaRisk.first_edition()])
def test_a_way_of_learning_that_keeps_no_record(cb):
    with pytest.raises(ValueError, match="presumption"): fit(noisy(cb), 1).meta_risk.label_report()


def test_without_sample_numbers():
    with pytest.raises(ValueError, match="sample numbers.*rank='class'"): fit(noisy(MetaRisk(rank="class")), 1).meta_risk.label_report()


class Peek(Callback):
    "Reads a training batch in the middle of a pass, as a callback does that logs examples"
    def after_batch(self):
        if self.training and self.iter == 3: self.dls.one_batch()


def test_a_batch_that_is_read_in_the_middle_of_a_pass_changes_no_sample_number():
    report = fit(noisy([MetaRisk(), Peek()]), 2).meta_risk.label_report()
    assert report["seen"].eq(2).all()


def test_without_classes():
    learn = learner(MetaRisk(), model=nn.Linear(6, 1), loss=MSELossFlat())
    for i in range(2): learn.dls[i].dataset.y = learn.dls[i].dataset.y.float()
    with pytest.raises(ValueError, match="one label per sample"): fit(learn, 1).meta_risk.label_report()


def test_of_another_data_set():
    learn = fit(noisy(MetaRisk()), 2)
    s = learn.dls.train_ds
    learn.dls.loaders[0] = learn.dls[0].new(TensorSet(s.x[:300], s.y[:300]))
    with pytest.raises(ValueError, match="had 400 samples in the last fit, but now have 300: fit again"): learn.meta_risk.label_report()
    assert len(fit(learn, 1).meta_risk.label_report()) == 280  # the last batch is dropped


def test_of_the_same_number_of_other_samples():
    learn = fit(noisy(MetaRisk()), 2)
    report, s = learn.meta_risk.label_report(), learn.dls.train_ds
    learn.dls = clean_dls(learn.dls, report[:3], relabel=True)
    if (learn.dls.train_ds.y == s.y).all(): learn.dls.train_ds.y[3] = (s.y[3] + 1) % 3
    with pytest.raises(ValueError, match="other labels than in the last fit: fit again"): learn.meta_risk.label_report()
    assert len(fit(learn, 1).meta_risk.label_report()) == 400


def test_one_pass_is_too_early():
    "The first batches of a pass have high losses, whatever their labels"
    report = fit(noisy(MetaRisk(), share=0.), 2, .01).meta_risk.label_report()
    assert report.attrs["summary"] == "Too early to tell: most of 400 labels were seen fewer than 3 times."
    json.dumps(report.attrs)


class Overflow(Callback):
    "Logits that are not finite, in one batch"
    def after_pred(self):
        if self.training and self.epoch == 1 and self.iter == 3: self.learn.pred = self.pred * float("inf")
    def after_backward(self):
        if self.epoch == 1 and self.iter == 3: self.learn.opt.zero_grad()


def test_a_batch_that_overflowed_is_left_out():
    learn = noisy(MetaRisk())
    learn.add_cb(Overflow())
    report = fit(learn, 8, .01).meta_risk.label_report()
    assert report.seen.min() == 7 and wrong(learn, report)[:80].mean() > .9
    assert learn.meta_risk.curriculum.doubt.expected.isfinite().all()


def test_with_mixup_samples_have_no_single_label():
    learn = noisy(MetaRisk())
    learn.add_cb(MixUp())
    with pytest.raises(ValueError, match="one label per sample"): fit(learn, 1).meta_risk.label_report()
