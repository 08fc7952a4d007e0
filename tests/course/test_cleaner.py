"The suspects of a label report, looked at and decided by a person: in Python, and in a real Chromium through Voila"
import json
import os
import re
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from browser import needs_browser, page, voila
from common import fit
from fastai.basics import CrossEntropyLossFlat, DataBlock, Learner, RandomSplitter, ToTensor, get_image_files, load_learner, parent_label, set_seed
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.data import TextDataLoaders
from fastai.vision.augment import RandomResizedCrop, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, ImageDataLoaders
from torch import nn

from metarisk_nb.callback import MetaRisk
from metarisk_nb.cleaner import LabelCleaner
from metarisk_nb.cleaning import clean_dls, read_decisions
from metarisk_nb.data import fashion_mini
from metarisk_nb.samples import some_samples

SHOTS = os.environ.get("SHOTS")  # a folder: keep a picture of the widget there (`make shots`)


class Mean(nn.Module):
    "The mean of the embeddings of a text's words, as logits"
    def __init__(self, words):
        super().__init__()
        self.embed = nn.Embedding(words, 2)
    def forward(self, x): return self.embed(x).mean(1)


def images():
    set_seed(0)
    return Learner(fashion_mini(noise=.4, device="cpu"), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), nn.CrossEntropyLoss(), cbs=MetaRisk())


def table(path):
    x = np.random.default_rng(0).normal(size=(120, 2))
    df = pd.DataFrame(dict(height=x[:, 0], width=x[:, 1], tall=np.where(x[:, 0] > 0, "yes", "no")))
    names = dict(y_names="tall", y_block=CategoryBlock(), procs=[Normalize], cont_names=["height", "width"])
    return tabular_learner(TabularDataLoaders.from_df(df, bs=20, device="cpu", **names), layers=[8], path=path, cbs=MetaRisk())


def texts(path):
    df = pd.DataFrame(dict(text=["good <b> nice", "fine"] * 20 + ["bad poor sad"] * 40, label=["pos"] * 40 + ["neg"] * 40))
    dls = TextDataLoaders.from_df(df, path=path, valid_pct=.25, seed=0, bs=10, text_col="text", label_col="label", num_workers=0)
    return Learner(dls, Mean(len(dls.vocab[0])), loss_func=CrossEntropyLossFlat(), path=path, cbs=MetaRisk())


def photos(path, seed=0, vocab=("cat", "dog"), n=40, **kwargs):
    "Files in folders; another seed splits them in another way"
    for i in range(n):
        (folder := path/vocab[i % 2]).mkdir(parents=True, exist_ok=True)
        if not (fn := folder/f"{i}.png").exists(): PILImage.create(np.arange(768, dtype=np.uint8).reshape(16, 16, 3) // 4 + 60 * (i % 2) + i).save(fn)
    dls = ImageDataLoaders.from_folder(path, train=".", valid_pct=.25, seed=seed, bs=10, num_workers=0, **kwargs)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), path=path, cbs=MetaRisk())


def choose(card, name): card.choice.index = next(i for i, (k, _) in enumerate(card.choice.options) if k.startswith(name))


# --- What a person does

@pytest.fixture(scope="module")
def trained(): return fit(images(), 3, .1)


def test_a_session_with_the_cleaner(trained, tmp_path):
    "Keep one, relabel one, delete one, turn the page; another day it goes on, and a second run reads what was decided"
    file, before = tmp_path/"decisions.json", trained.dls.train_ds.y.clone()
    w = LabelCleaner(trained, file, page=6)
    report = trained.meta_risk.label_report()
    assert len(w.report) == round(len(report) * report.attrs["wrong_share"]) > 1000 and not file.exists()
    cards = w.cards.children
    for card, what in zip(cards, ("keep", "relabel", "delete")): choose(card, what)
    w.turn(1)
    assert [o.row.index for o in w.cards.children] == report["index"][6:12].tolist()
    w.decide_rest("relabel")
    again = LabelCleaner(trained, file, page=6)
    d = again.decisions
    assert d.equals(w.decisions) and d.decision.tolist() == ["keep", "relabel", "delete"] + ["relabel"] * 6
    assert [o.choice.label for o in again.cards.children][2:] == ["delete", *["decide …"] * 3]
    assert "Suspects 1 to 6" in repr(again) and "Decided: 1 keep, 7 relabel, 1 delete" in again.status.value
    new, i = clean_dls(trained.dls, read_decisions(file)).train_ds, d["index"].tolist()
    assert len(new) == len(before) - 1 and torch.equal(trained.dls.train_ds.y, before)
    left = np.delete(np.arange(len(before)), i[2])
    meant = {k: new.vocab.o2i[s] for k, s in zip(d["index"], d.suggested)}
    assert [int(new.y[np.searchsorted(left, k)]) for k in (*i[:2], *i[3:])] == [meant[k] for k in (*i[:2], *i[3:])]


def test_a_decision_can_be_taken_back(trained, tmp_path):
    w = LabelCleaner(trained, tmp_path/"decisions.json")
    choose(w.cards.children[0], "delete")
    assert len(json.loads(w.file.read_text())["decisions"]) == 1
    choose(w.cards.children[0], "decide")
    assert json.loads(w.file.read_text())["decisions"] == [] and not len(w.decisions)
    assert len(clean_dls(trained.dls, w.decisions).train_ds) == len(trained.dls.train_ds)


@pytest.mark.parametrize("learner_of,shows", [(photos, "<img alt="), (table, "<th>height</th>"), (texts, "xxbos")], ids=["files", "table", "texts"])
def test_images_tables_and_texts(learner_of, shows, tmp_path):
    learn = fit(learner_of(tmp_path), 1, .01)
    report = learn.meta_risk.label_report(10)
    w = LabelCleaner(learn, tmp_path/"decisions.json", report)
    assert len(w.cards.children) == 10 and all(shows in o.children[0].value for o in w.cards.children)
    assert "<b>" not in "".join(o.children[0].value for o in w.cards.children)  # what a text holds is no HTML
    w.decide_rest("relabel")
    new = clean_dls(learn.dls, read_decisions(w.file))
    assert len(new.train_ds) == len(learn.dls.train_ds) and w.decisions.decision.tolist() == ["keep" if o.label == o.suggested else "relabel" for o in report.itertuples()]
    assert LabelCleaner(learn, w.file, report).decisions.equals(w.decisions)


# --- Where something is wrong

def test_nothing_to_look_at(tmp_path):
    learn = fit(images(), 1, .1)
    w = LabelCleaner(learn, tmp_path/"decisions.json", learn.meta_risk.label_report(0))
    assert "nothing to look at" in repr(w) and not w.cards.children
    w.turn(1)
    w.decide_rest("delete")
    assert not w.file.exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"samples": 10, "decisions": [{"index": 1}]}',
                                  '{"samples": 1, "decisions": [{"index": 1, "item": null, "label": "a", "decision": "keep", "suggested": "a"}]}',
                                  '{"samples": 9, "decisions": [{"index": 1, "item": null, "label": "a", "decision": "burn", "suggested": "a"}]}'])
def test_a_file_that_holds_something_else(trained, text, tmp_path):
    (file := tmp_path/"decisions.json").write_text(text)
    with pytest.raises(ValueError, match="decisions.json holds no decisions about labels"): LabelCleaner(trained, file)
    assert file.read_text() == text


def test_decisions_about_other_data(trained, tmp_path):
    w = LabelCleaner(trained, tmp_path/"decisions.json")
    w.decide_rest("relabel")
    second = Learner(clean_dls(trained.dls, w.decisions), trained.model, trained.loss_func, cbs=MetaRisk())
    with pytest.raises(ValueError, match="decisions.json is about other data or other labels"): LabelCleaner(fit(second, 1, .1), w.file)


def test_a_suggested_label_that_is_no_class(trained):
    with pytest.raises(ValueError, match="must be classes of the data, .*got 'Bug'"):
        clean_dls(trained.dls, pd.DataFrame(dict(index=[3], suggested=["Bug"])), relabel=True)


def test_another_split_has_other_samples_at_the_same_places(tmp_path):
    a, b = (fit(photos(tmp_path, seed), 3, .01) for seed in (0, 1))
    w = LabelCleaner(a, tmp_path/"decisions.json", a.meta_risk.label_report(6))
    w.decide_rest("delete")
    for rows in (read_decisions(w.file), a.meta_risk.label_report(6)):
        with pytest.raises(ValueError, match="is about other data or other labels: there the (item|label) of sample"): clean_dls(b.dls, rows)
    with pytest.raises(ValueError, match="about other data"): LabelCleaner(b, tmp_path/"b.json", a.meta_risk.label_report(6))
    with pytest.raises(ValueError, match="about 30 training samples, but there are 24"): clean_dls(clean_dls(a.dls, w.decisions), read_decisions(w.file))


def test_places_that_are_none(trained):
    for i in (-1, .5):
        with pytest.raises(ValueError, match=f"it has index {i}"): clean_dls(trained.dls, pd.DataFrame(dict(index=[i], suggested=["Bag"])))


@pytest.mark.parametrize("rows", [pd.DataFrame(dict(index=[1])), [1, 2]])
def test_rows_that_are_none_of_a_report(trained, rows, tmp_path):
    for f in (lambda: clean_dls(trained.dls, rows), lambda: LabelCleaner(trained, tmp_path/"d.json", rows)):
        with pytest.raises(ValueError, match="must be rows of a label report, but has no column"): f()


def test_cards_show_samples_as_they_are(tmp_path):
    learn = fit(photos(tmp_path, item_tfms=RandomResizedCrop(16, min_scale=.3), batch_tfms=aug_transforms()), 1, .01)
    report = learn.meta_risk.label_report(8)
    a, b = (LabelCleaner(learn, tmp_path/"d.json", report) for _ in range(2))
    assert [o.children[0].value for o in a.cards.children] == [o.children[0].value for o in b.cards.children]
    x = some_samples(learn.dls, report["index"].tolist()).one_batch()[0]
    mean = np.array([np.asarray(PILImage.create(o)).mean() / 255 for o in report["item"]])
    assert np.allclose(x.mean((1, 2, 3)).cpu(), mean, atol=.01)


def test_cards_of_a_table_show_its_rows(tmp_path):
    df = pd.DataFrame(dict(colour=["red", "blue", None, "red"] * 30, age=np.arange(120.), tall=["yes", "no"] * 60))
    names = dict(y_names="tall", y_block=CategoryBlock(), procs=[Categorify, FillMissing, Normalize], cat_names=["colour"], cont_names=["age"])
    learn = fit(tabular_learner(TabularDataLoaders.from_df(df, bs=20, device="cpu", **names), layers=[8], path=tmp_path, cbs=MetaRisk()), 1, .01)
    report = learn.meta_risk.label_report(12)
    for card, item in zip(LabelCleaner(learn, tmp_path/"d.json", report).cards.children, report["item"]):
        shown = card.children[0].value
        assert f"<td>{df.colour[item] if isinstance(df.colour[item], str) else '#na#'}</td>" in shown and re.search(rf"<td>{df.age[item]:.0f}(\.0+)?</td>", shown)


def test_two_cleaners_share_a_file(trained, tmp_path):
    report = trained.meta_risk.label_report()
    a, b = (LabelCleaner(trained, tmp_path/"d.json", report[i:i + 3]) for i in (0, 3))
    a.decide_rest("delete")
    b.decide_rest("keep")
    assert len(read_decisions(a.file)) == len(b.decisions) == 6 and "3 keep, 0 relabel, 3 delete" in repr(b)


def test_a_report_that_was_a_file_meanwhile(tmp_path):
    "pandas makes numbers of class names that look like numbers"
    learn = fit(photos(tmp_path, vocab=("0", "1")), 1, .01)
    learn.meta_risk.label_report(5).to_csv(tmp_path/"report.csv", index=False)
    report = pd.read_csv(tmp_path/"report.csv")
    w = LabelCleaner(learn, tmp_path/"d.json", report)
    w.decide_rest("relabel")
    assert LabelCleaner(learn, tmp_path/"d.json", report).decisions.equals(w.decisions) and set(w.decisions.label) <= {"0", "1"}
    assert len(clean_dls(learn.dls, report, relabel=True).train_ds) == 30


def test_a_decision_about_a_sample_that_todays_run_has_not_seen(tmp_path):
    learn = fit(photos(tmp_path, n=44), 2, .01)  # 33 training samples, the last three of each pass are left out
    w = LabelCleaner(learn, tmp_path/"d.json", learn.meta_risk.label_report(), page=33)
    w.decide_rest("keep")
    again = LabelCleaner(fit(photos(tmp_path, n=44), 1, .01), tmp_path/"d.json", learn.meta_risk.label_report())
    assert again.decisions.equals(w.decisions) and len(w.decisions) > 30
    again.decide(int(w.decisions["index"][0]), None)


@pytest.mark.parametrize("change", [('"relabel"', '"delete"'), ('"relabel"', '"keep"')])
def test_a_file_that_was_edited_by_hand(tmp_path, change):
    learn = fit(photos(tmp_path), 1, .01)
    report = learn.meta_risk.label_report()
    other = report.assign(suggested=["dog" if o == "cat" else "cat" for o in report.label])
    w = LabelCleaner(learn, tmp_path/"d.json", other)
    w.decide_rest("relabel")
    w.file.write_text("\ufeff" + w.file.read_text().replace(*change), encoding="utf-8")
    again = LabelCleaner(learn, w.file, other)
    assert set(again.decisions.decision) == {change[1].strip('"')} and (again.decisions.suggested == again.decisions.label).all()


def test_a_folder_that_is_not_there(trained, tmp_path):
    with pytest.raises(ValueError, match="file must be in a folder that can be written to, got .*nowhere"): LabelCleaner(trained, tmp_path/"nowhere/d.json")


def test_nothing_is_claimed_that_was_not_written(trained, tmp_path, monkeypatch):
    w = LabelCleaner(trained, tmp_path/"d.json")
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError): w.decide(3, ("keep", "Bag"))
    assert not len(w.decisions) and "Nothing was written" in w.status.value and "No space left" in w.status.value


@pytest.mark.parametrize("page", [0, -3, 2.5, True])
def test_pages_of_no_size(trained, tmp_path, page):
    with pytest.raises(ValueError, match="page must be a whole number of at least 1"): LabelCleaner(trained, tmp_path/"d.json", page=page)


@pytest.mark.parametrize("decision", [("burn", "Bag"), ("relabel", "Bug")])
def test_decisions_that_are_none(trained, tmp_path, decision):
    with pytest.raises(ValueError, match="decision must be one of keep, relabel, delete with a class"): LabelCleaner(trained, tmp_path/"d.json").decide(3, decision)
    rows = pd.DataFrame(dict(index=[3], suggested=["Bag"], decision=["Delete"]))
    with pytest.raises(ValueError, match="decision must be one of keep, relabel, delete, got 'Delete'"): clean_dls(trained.dls, rows)


def test_an_exported_learner_has_no_samples_to_show(tmp_path):
    learn = fit(photos(tmp_path), 1, .01)
    learn.export(tmp_path/"model.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_learner(tmp_path/"model.pkl")
    with pytest.raises(ValueError, match="an exported Learner has none"): LabelCleaner(loaded, tmp_path/"d.json")
    with pytest.raises(ValueError, match="an exported Learner does not have"): loaded.meta_risk.show_suspects()


def test_part_of_the_data_at_each_pass_stays_a_part(tmp_path):
    photos(tmp_path)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.25, seed=0))
    dls = block.datasets(tmp_path).partial_dataloaders(20, bs=10, after_item=[ToTensor()], num_workers=0)
    assert len(dls.train) == 2 == len(clean_dls(dls, pd.DataFrame(dict(index=[3], suggested=["cat"]))).train)


# --- In the browser

NOTEBOOK = """
import warnings; warnings.filterwarnings('ignore')
from fastai.vision.all import *
from metarisk_nb.all import *
torch.set_num_threads(1)
set_seed(0)
learn = Learner(fashion_mini(noise=.2, device='cpu'), mlp(), CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), cbs=MetaRisk())
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(10, .1)
LabelCleaner(learn, 'decisions.json', page=10)
"""


@needs_browser
def test_keyboard_and_mouse_in_the_browser(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)], metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    nbformat.write(nb, tmp_path/"cleaner.ipynb")
    with voila(tmp_path/"cleaner.ipynb", tmp_path) as url, page(url, wait="commit") as p:
        p.locator("img[alt^='Sample']").first.wait_for(timeout=240_000)
        status, lists = p.locator("p[role=status]"), p.locator(".jupyter-widgets select")
        def says(words): status.get_by_text(words).wait_for(timeout=20_000)
        assert lists.count() == 10 and "Suspects 1 to 10" in status.inner_text()
        lists.nth(0).focus()
        for key in ("r", "Tab") * 5: p.keyboard.press(key)
        says("Decided: 0 keep, 5 relabel, 0 delete")
        if SHOTS: p.locator(".widget-vbox", has=status).first.screenshot(path=f"{SHOTS}/label_cleaner.png")
        for i, key in ((0, "k"), (1, "d")):
            lists.nth(i).focus()
            p.keyboard.press(key)
        says("Decided: 1 keep, 3 relabel")
        lists.nth(1).select_option(label="delete")
        says("Decided: 1 keep, 3 relabel, 1 delete")
        p.get_by_role("button", name="next page").click()
        says("Suspects 11 to 20")
        p.get_by_role("button", name="delete", exact=True).press("Enter")
        says("1 keep, 3 relabel, 11 delete")
        p.get_by_role("button", name="previous page").click()
        says("Suspects 1 to 10")
        assert lists.nth(0).evaluate("e => e.selectedOptions[0].text").startswith("keep")
        decided = [o["decision"] for o in json.loads((tmp_path/"decisions.json").read_text())["decisions"]]
        assert sorted(decided) == ["delete"] * 11 + ["keep"] + ["relabel"] * 3
        assert not p.locator(".jupyter-widgets img:not([alt])").count()
        assert lists.evaluate_all("all => all.every(e => e.title || e.getAttribute('aria-label') || e.labels?.length)")
