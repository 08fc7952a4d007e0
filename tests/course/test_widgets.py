"Every widget of lesson 07 opened and moved in a real Chromium, through Voila: pictures, numbers and words change as computed here"
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import needs_browser, page, voila
from fastcore.test import test_eq as eq

from metarisk_nb.widget import CurriculumPlayer, NoiseLab, RiskExplorer, SpectrumDesigner, stored_runs

ROOT = Path(__file__).parents[2]
SHOTS = os.environ.get("SHOTS")  # a folder: keep a picture of each widget there (`make shots`)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    "Lesson 07 in the browser, all of its widgets drawn"
    with voila(ROOT / "nbs/07_widget.ipynb", tmp_path_factory.mktemp("voila")) as url, page(url, wait="commit") as p:
        p.locator("img[alt^='After 1080 steps']").wait_for(timeout=240_000)
        yield p
        eq([e for e in p.errors if not any(o in e for o in p.outside)], [])  # Voila's own icons come from the network


class Shown:
    "One widget on the page"
    def __init__(self, lesson, i): self.page, self.root = lesson, lesson.locator(".widget-vbox", has=lesson.locator("p[role=status]")).nth(i)
    @property
    def words(self): return self.root.locator("p[role=status]").inner_text()
    @property
    def picture(self): return self.root.locator("img").first.get_attribute("src")

    def select(self, label, value):
        self.root.get_by_label(label, exact=True).select_option(label=value)

    def press(self, handle, key, times=1):
        "Arrow keys on the slider of that number, as someone without a mouse would"
        h = self.root.locator(".noUi-handle").nth(handle)
        h.focus()
        for _ in range(times): h.press(key)

    def says(self, words, before):
        "Wait for the words; the picture has them too, and is another one than before"
        self.root.locator("p[role=status]", has_text=words).wait_for(timeout=30_000)
        eq(self.words, words)
        self.root.locator(f'img[alt="{words}"]').wait_for(timeout=10_000)
        assert self.picture != before

    def shot(self, name):
        if SHOTS: self.root.screenshot(path=f"{SHOTS}/{name}.png")


@needs_browser
def test_risk_explorer(lesson):
    w, here = Shown(lesson, 0), RiskExplorer()
    n_knobs = sum(map(len, here.knobs.values()))
    eq(w.words, here.words())
    w.shot("risk_explorer")
    before, here.losses[0].value = w.picture, here.losses[0].value + .5
    w.press(n_knobs, "ArrowUp", 5)  # the first handle after the knobs is that of loss 1
    w.says(here.words(), before)
    for name in ("trimmed", "human", "entropic"):
        before, here.name.value = w.picture, name
        w.select("risk", name)
        w.says(here.words(), before)
    before, here.knobs["entropic"][0].value = w.picture, 1.1
    w.press(sum(len(here.knobs[k]) for k in here.knobs if list(here.knobs).index(k) < list(here.knobs).index("entropic")), "ArrowRight", 2)
    w.says(here.words(), before)


@needs_browser
def test_spectrum_designer(lesson):
    w, here = Shown(lesson, 1), SpectrumDesigner()
    eq(w.words, here.words())
    w.shot("spectrum_designer")
    before, here.handles[4].value = w.picture, 2.
    w.press(4, "ArrowUp", 20)
    w.says(here.words(), before)
    before, here.beside.value = w.picture, "icvar:.5"
    w.select("beside", "icvar:.5")
    w.says(here.words(), before)


@needs_browser
def test_curriculum_player(lesson):
    w, here = Shown(lesson, 2), CurriculumPlayer(stored_runs(objective="cvar", study="risk", data="fashion_mini", seed=0))
    eq(w.words, here.words())
    before, here.step.value = w.picture, 10 * here.step.step
    w.press(0, "ArrowRight", 10)
    w.says(here.words(), before)
    w.shot("curriculum_player")
    before, here.b.value = w.picture, 0
    w.select("run B", here.b.options[0][0])
    w.says(here.words(), before)
    before, play = w.words, w.root.locator(".widget-play button").first
    play.click()
    lesson.wait_for_function("([e, t]) => e.querySelector('p[role=status]').innerText != t", arg=[w.root.element_handle(), before], timeout=30_000)
    play.click()


@needs_browser
def test_noise_lab(lesson):
    w, here = Shown(lesson, 3), NoiseLab()
    eq(w.words, here.words())
    w.shot("noise_lab")
    before, here.method.value = w.picture, "learned"
    w.select("method", "learned")
    w.says(here.words(), before)
    before, here.rate.index = w.picture, here.rate.index - 1
    w.press(0, "ArrowLeft")
    w.says(here.words(), before)


@needs_browser
def test_the_panel_drew_while_the_learner_trained(lesson):
    img = lesson.locator("img[alt^='After 1080 steps']")
    assert img.evaluate("e => e.naturalWidth") > 300
    if SHOTS: img.screenshot(path=f"{SHOTS}/panel.png")


@needs_browser
def test_contrast_and_names(lesson):
    "Every control has a name that a screen reader says, and every picture an alternative text"
    bare = lesson.evaluate("""() => [...document.querySelectorAll('.jupyter-widgets select, .jupyter-widgets input')]
        .filter(e => e.offsetParent && !(e.labels?.length && e.labels[0].innerText.trim()) && !e.getAttribute('aria-label') && !e.title).map(e => e.outerHTML)""")
    eq(bare, [])
    eq(lesson.evaluate("() => [...document.querySelectorAll('.jupyter-widgets img')].filter(e => !e.alt).length"), 0)


def test_bundled_runs_are_those_of_the_store():
    subprocess.run([sys.executable, ROOT / "scripts/bundle.py", "--check"], check=True)


def test_a_damaged_bundle_is_named(monkeypatch, tmp_path):
    import gzip

    import metarisk_nb
    from metarisk_nb import widget
    (tmp_path / "data").mkdir()
    (tmp_path / "data/results.json.gz").write_bytes(gzip.compress(json.dumps(dict(runs=[1], check="0")).encode()))
    monkeypatch.setattr(metarisk_nb, "__file__", str(tmp_path / "__init__.py"))
    widget._bundled.cache_clear()
    try:
        with pytest.raises(ValueError, match="is damaged: install metarisk_nb again"): stored_runs()
    finally: widget._bundled.cache_clear()
