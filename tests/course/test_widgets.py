"Lesson 07 in a real Chromium, through Voila: every explorable and the live panel; test_explorables.py moves them"
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import needs_browser, page, voila
from fastcore.test import test_eq as eq
from test_explorables import player

from metarisk_nb.widget import InnerStep, NoiseLab, RiskExplorer, SpectrumDesigner

ROOT = Path(__file__).parents[2]
SHOTS = os.environ.get("SHOTS")  # a folder: keep a picture of each widget there (`make shots`)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    "Lesson 07 in the browser, all of its widgets drawn"
    with voila(ROOT / "nbs/07_widget.ipynb", tmp_path_factory.mktemp("voila")) as url, page(url, wait="commit") as p:
        p.locator("img[alt^='After 1080 steps']").wait_for(timeout=240_000)
        yield p
        eq([e for e in p.errors if not any(o in e for o in p.outside)], [])  # Voila's own icons come from the network


@needs_browser
def test_all_explorables_are_drawn_and_say_what_python_says(lesson):
    for i, w in enumerate([RiskExplorer(), SpectrumDesigner(), InnerStep(), player(), NoiseLab()]):
        says = lesson.locator(".explorable > p[role=status]").nth(i)
        says.wait_for(timeout=30_000)
        eq(says.inner_text(), w.words())


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
    from metarisk_nb import stored
    (tmp_path / "data").mkdir()
    (tmp_path / "data/results.json.gz").write_bytes(gzip.compress(json.dumps(dict(runs=[1], check="0")).encode()))
    monkeypatch.setattr(metarisk_nb, "__file__", str(tmp_path / "__init__.py"))
    stored._bundled.cache_clear()
    try:
        with pytest.raises(ValueError, match="is damaged: install metarisk_nb again"): stored.stored_runs()
    finally: stored._bundled.cache_clear()
