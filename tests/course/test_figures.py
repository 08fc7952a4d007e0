"Figures can be read at the width at which a page shows them; what `scripts/figures.py` takes for a fault is one"
import json
import sys
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from metarisk_nb.plot import *

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))
import figures  # noqa: E402

NBS = sorted((ROOT / "nbs").glob("**/[!.]*.ipynb"))
steps, w = np.arange(0, 500, 10), np.random.default_rng(0).dirichlet(np.ones(20), 50)


@pytest.fixture(autouse=True)
def _page():
    with plt.rc_context():
        plt.switch_backend("agg")
        page_style()
        yield
        plt.close("all")


def test_saved_figures_are_as_wide_as_a_page_and_sharp():
    assert sum(len(list(figures.saved(json.loads(fn.read_text(encoding="utf-8"))))) for fn in NBS) > 80
    assert [p for fn in NBS for p in figures.check(fn)] == []


@pytest.mark.parametrize("draw", [
    lambda: plot_losses([2.6, 1.4, .8, .3]), lambda: plot_weights(w[0]), lambda: plot_evolution(steps, w), lambda: plot_curriculum(steps, w, w[0]),
    lambda: plot_scores({"learned": 60., "a long name of a method": 50.}, sd={"learned": 2.}), lambda: plot_scores(dict(plain=80., learned=83.), lo=65),
], ids=["losses", "weights", "evolution", "curriculum", "scores", "scores from 65"])
def test_what_the_library_draws_can_be_read(draw):
    draw()
    assert figures.problems(plt.gcf()) == []


def curves(**kwargs):
    ax = bare_axes()
    for y, name in (([0., 1.], "up"), ([1., 0.], "down")): ax.plot(y, label=name)
    ax.legend(**kwargs)


def bars(**kwargs): plt.figure().add_subplot(ylim=(65, 90), **kwargs).bar(range(3), [70, 80, 85])


def covered(**kwargs):
    ax = bare_axes()
    ax.plot([1., 2.], label="below", **kwargs)
    ax.axvspan(-1, 2, color="w", zorder=3)


def equal():
    for name in ("one", "another"): plt.gcf().gca().plot([1., 2.], label=name)


@pytest.mark.parametrize("draw,fault", [
    (lambda: plt.subplots(figsize=(11, 3)), "has letters of 7.6 px"),
    (lambda: bare_axes().set_title("small", fontsize=7), "'small' has letters of"),
    (lambda: [bare_axes().text(.5, .5, "here")] + [plt.gca().text(.51, .5, "and there")], "'here' and 'and there' overlap"),
    (lambda: curves(loc="center"), "the legend ['up', 'down'] lies on data"), (lambda: curves(loc="center right"), None),
    (bars, "bars start at 65 without a note"), (lambda: bars(ylabel="accuracy (%); the axis starts at 65"), None),
    (covered, "the line 'below' cannot be seen"), (lambda: covered(zorder=4), None), (equal, None),
])
def test_each_fault_is_found(draw, fault):
    draw()
    found = figures.problems(plt.gcf())
    assert (len(found) == 1 and fault in found[0]) if fault else found == []


def test_a_figure_that_is_too_wide_or_blurred_is_found(tmp_path):
    def picture(width):
        head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4, "big") + (300).to_bytes(4, "big")
        data = {"image/png": b64encode(head).decode(), "text/plain": ["<Figure size 720x300 with 1 Axes>"]}
        return dict(cell_type="code", source=[], outputs=[dict(output_type="display_data", data=data)])
    fn = tmp_path / "some.ipynb"
    fn.write_text(json.dumps(dict(cells=[picture(o) for o in (1463, 2222, 720)])))
    assert figures.check(fn) == ["some, cell 1: 11.1 inches wide, and 7.6 fit a page: see `page_width`", "some, cell 2: 720 pixels wide, blurred on a page: see `page_style`"]
