"The suspects of a label report, looked at and decided by a person: in Python, and in a real Chromium through Voila"
import json
import os

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from browser import needs_browser, page, voila
from common import fit
from fastai.basics import CrossEntropyLossFlat, Learner, set_seed
from fastai.tabular.all import CategoryBlock, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.data import TextDataLoaders
from fastai.vision.core import PILImage
from fastai.vision.data import ImageDataLoaders
from torch import nn

from metarisk_nb.callback import MetaRisk
from metarisk_nb.cleaner import LabelCleaner
from metarisk_nb.cleaning import clean_dls, read_decisions
from metarisk_nb.data import fashion_mini

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


def files(path):
    for i in range(40):
        (folder := path/["cat", "dog"][i % 2]).mkdir(parents=True, exist_ok=True)
        PILImage.create(np.full((16, 16, 3), 90 * (i % 2) + i, np.uint8)).save(folder/f"{i}.png")
    dls = ImageDataLoaders.from_folder(path, train=".", valid_pct=.25, seed=0, bs=10, num_workers=0)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), path=path, cbs=MetaRisk())


def table(path):
    x = np.random.default_rng(0).normal(size=(120, 2))
    df = pd.DataFrame(dict(height=x[:, 0], width=x[:, 1], tall=np.where(x[:, 0] > 0, "yes", "no")))
    names = dict(y_names="tall", y_block=CategoryBlock(), procs=[Normalize], cont_names=["height", "width"])
    return tabular_learner(TabularDataLoaders.from_df(df, bs=20, device="cpu", **names), layers=[8], path=path, cbs=MetaRisk())


def texts(path):
    df = pd.DataFrame(dict(text=["good <b> nice", "fine"] * 20 + ["bad poor sad"] * 40, label=["pos"] * 40 + ["neg"] * 40))
    dls = TextDataLoaders.from_df(df, path=path, valid_pct=.25, seed=0, bs=10, text_col="text", label_col="label", num_workers=0)
    return Learner(dls, Mean(len(dls.vocab[0])), loss_func=CrossEntropyLossFlat(), path=path, cbs=MetaRisk())


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


@pytest.mark.parametrize("learner_of,shows", [(files, "<img alt="), (table, "<th>height</th>"), (texts, "xxbos")], ids=["files", "table", "texts"])
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
    with pytest.raises(ValueError, match="about other data or other labels: name another file"): LabelCleaner(fit(second, 1, .1), w.file)


def test_a_suggested_label_that_is_no_class(trained):
    with pytest.raises(ValueError, match="must be classes of the data, .*got 'Bug'"):
        clean_dls(trained.dls, pd.DataFrame(dict(index=[3], suggested=["Bug"])), relabel=True)


# --- In the browser

NOTEBOOK = """
import torch
from fastai.basics import *
from fastai.callback.schedule import *
from metarisk_nb.all import *
torch.set_num_threads(1)
set_seed(0)
learn = Learner(fashion_mini(noise=.4, device='cpu'), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), nn.CrossEntropyLoss(), cbs=MetaRisk())
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, .1)
LabelCleaner(learn, 'decisions.json', page=6)
"""


@needs_browser
def test_keyboard_and_mouse_in_the_browser(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)], metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    nbformat.write(nb, tmp_path/"cleaner.ipynb")
    with voila(tmp_path/"cleaner.ipynb", tmp_path) as url, page(url, wait="commit") as p:
        p.locator("img[alt^='Sample']").first.wait_for(timeout=240_000)
        status, lists = p.locator("p[role=status]"), p.locator(".jupyter-widgets select")
        assert lists.count() == 6 and "Suspects 1 to 6" in status.inner_text()
        lists.nth(0).focus()
        for key in ("k", "Tab", "r", "Tab", "d"): p.keyboard.press(key)
        status.get_by_text("Decided: 1 keep, 1 relabel, 1 delete").wait_for(timeout=20_000)
        p.get_by_role("button", name="next page").click()
        status.get_by_text("Suspects 7 to 12").wait_for(timeout=20_000)
        p.get_by_role("button", name="delete", exact=True).press("Enter")
        status.get_by_text("1 keep, 1 relabel, 7 delete").wait_for(timeout=20_000)
        p.get_by_role("button", name="previous page").click()
        status.get_by_text("Suspects 1 to 6").wait_for(timeout=20_000)
        assert lists.nth(0).evaluate("e => e.selectedOptions[0].text").startswith("keep")
        decided = [o["decision"] for o in json.loads((tmp_path/"decisions.json").read_text())["decisions"]]
        assert decided == ["keep", "relabel", "delete"] + ["delete"] * 6
        assert not p.locator(".jupyter-widgets img:not([alt])").count()
        assert lists.evaluate_all("all => all.every(e => e.title || e.getAttribute('aria-label') || e.labels?.length)")
        if SHOTS: p.locator(".widget-vbox", has=status).first.screenshot(path=f"{SHOTS}/label_cleaner.png")
