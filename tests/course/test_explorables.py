"The explorables: the same numbers as Python's, moved by mouse, finger and keys, on a page without a kernel and in a notebook"
import json
import random
import shutil
from contextlib import contextmanager

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import jupyterlab, needs_browser, page, serve, voila
from playwright.sync_api import expect

from metarisk_nb.explorable import es_module, folder
from metarisk_nb.risk import risks
from metarisk_nb.widget import CurriculumPlayer, InnerStep, NoiseLab, RiskExplorer, SpectrumDesigner, stored_runs

HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Explorable</title><link rel="stylesheet" href="x/kit.css">'


@contextmanager
def shown(tmp_path, *widgets, **size):
    "A page without a kernel that shows the widgets, as the website does"
    shutil.copytree(folder, tmp_path / "x", dirs_exist_ok=True)
    body = "".join(o.page() for o in widgets)
    (tmp_path / "index.html").write_text(f'<!doctype html><html lang="en"><head>{HEAD}</head><body><main><h1>Explorables</h1>{body}</main><script type="module" src="x/page.js"></script></body></html>')
    with serve(tmp_path) as url, page(url + "index.html", **size) as p:
        for i in range(len(widgets)): p.locator("figure.explorable").nth(i).locator("p[role=status]").wait_for()
        yield p
        assert [e for e in p.errors if "favicon" not in e] == [] and p.outside == []


def words(p, i=0): return p.locator("figure.explorable").nth(i).locator("p[role=status]")


def says(p, w, i=0):
    "Wait for the words that Python has for the same values"
    expect(words(p, i)).to_have_text(w.words(), timeout=10_000)


def computed(p, module, states): return p.evaluate("async ([m, all]) => { const o = await import(`./x/${m}.js`); return all.map(o.compute) }", [module, states])


def pull(p, start, end, steps=12, pause=0):
    "Press the mouse at one point and release it at another, in steps as a hand does, with a pause of milliseconds after each"
    p.mouse.move(*start)
    p.mouse.down()
    for i in range(1, steps + 1):
        p.mouse.move(*(a + (b - a) * i / steps for a, b in zip(start, end)))
        p.wait_for_timeout(pause)
    p.mouse.up()


def drag(p, node, to, **kwargs):
    "Drag a slider to a share of its height (0 its top)"
    b = node.bounding_box()
    x = b["x"] + b["width"] / 2
    pull(p, (x, b["y"] + .9 * b["height"]), (x, b["y"] + to * b["height"]), **kwargs)


def shown_value(slider):
    "What a slider says once the next frame is drawn: a picture follows the hand one frame later"
    return slider.evaluate("e => new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(() => f(+e.getAttribute('aria-valuenow')))))")


WATCH = """e => { const all = window.way = []; new MutationObserver(() => all.push(+e.getAttribute('aria-valuenow'))).observe(e, { attributeFilter: ['aria-valuenow'] }); }"""


def slowly_up(p, slider):
    "Drag a slider from its foot towards its top, at the pace of a hand; gives all values that it shows meanwhile"
    slider.evaluate(WATCH)
    drag(p, slider, .3, steps=60, pause=25)
    p.wait_for_timeout(500)  # for what the kernel sends back
    return p.evaluate("window.way")


def middle(node):
    b = node.bounding_box()
    return b["x"] + b["width"] / 2, b["y"] + b["height"] / 2


# --- Risk explorer

def some_losses(n=120):
    r = random.Random(0)
    yield from ([1.] * 10, [0.] * 10, [5.] + [0.] * 9, [2., 2., 1., 1., 0., 0., 3., 3., 3., 5.])
    for _ in range(n): yield [round(r.uniform(0, 5), 2) for _ in range(10)]


@needs_browser
def test_risk_explorer_has_the_numbers_of_python(tmp_path):
    states, knobs, r = [], dict(expected=(), cvar=(.05, 1), icvar=(.05, 1), trimmed=(0, .45), human=(0, 1), meanvar=(0, 1), entropic=(-2, 5), extremile=(1, 10), evar=(.05, 1)), random.Random(1)
    assert list(knobs) == list(risks)
    for name in risks:
        n = len(RiskExplorer().params[name])
        for i, l in enumerate(some_losses()):
            p = [knobs[name][i] if i < 2 else round(r.uniform(*knobs[name]), 2) for _ in range(n)]
            states.append(dict(losses=l, name=name, params={name: p}))
    with shown(tmp_path, RiskExplorer()) as p: got = computed(p, "risk_explorer", states)
    for s, o in zip(states, got):
        risk, l = risks[s["name"]](*[v or 1e-13 if s["name"] == "entropic" else v for v in s["params"][s["name"]]]), torch.tensor(s["losses"], dtype=torch.float64)
        want = RiskExplorer(s["losses"])
        want.params, want.name = want.params | s["params"], s["name"]
        assert o["value"] == pytest.approx(risk(l).item(), abs=1e-6) and o["mean"] == pytest.approx(l.mean().item(), abs=1e-6), s
        assert o["weights"] == pytest.approx(risk.influence(l).tolist(), abs=1e-6), s
        assert o["order"] == l.argsort(descending=True, stable=True).tolist()
        if s["name"] != "entropic" or s["params"]["entropic"][0]: assert o["shares"] == pytest.approx(want.shares.tolist(), abs=1e-6), s


@needs_browser
def test_a_bar_is_dragged_by_mouse_finger_and_keys(tmp_path):
    w = RiskExplorer()
    with shown(tmp_path, w) as p:
        says(p, w)
        sliders = p.locator("[role=slider]")
        drag(p, sliders.nth(5), .3)
        new = shown_value(sliders.nth(5))
        assert new > 3
        w.losses = [*w.losses[:5], new, *w.losses[6:]]
        says(p, w)

        b = sliders.nth(0).bounding_box()
        touch(p, [(b["x"] + b["width"] / 2, b["y"] + b["height"] * (.9 - .05 * i)) for i in range(14)])
        new = shown_value(sliders.nth(0))
        assert new > 3
        w.losses = [new, *w.losses[1:]]
        says(p, w)

        sliders.nth(1).focus()
        for key, value in ("ArrowUp", 2.2), ("ArrowDown", 2.1), ("PageUp", 2.6), ("End", 5.), ("Home", 0.):
            p.keyboard.press(key)
            w.losses = [w.losses[0], value, *w.losses[2:]]
            says(p, w)
        assert sliders.nth(1).get_attribute("aria-label") == "loss of sample 2" and sliders.nth(1).get_attribute("aria-valuetext") == "0.00"
        for w.risk in ("trimmed", "human", "entropic", "meanvar", "evar"):
            p.get_by_label("Risk", exact=True).select_option(w.name)
            says(p, w)


def touch(p, path):
    "One finger along a path, as a touch screen reports it"
    cdp = p.context.new_cdp_session(p)
    for i, (x, y) in enumerate(path): cdp.send("Input.dispatchTouchEvent", dict(type="touchMove" if i else "touchStart", touchPoints=[dict(x=x, y=y)]))
    cdp.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))


# --- Spectrum designer

@needs_browser
def test_spectrum_designer_has_the_numbers_of_python(tmp_path):
    r, w = random.Random(0), SpectrumDesigner()
    states = [dict(heights=[0.] * 5, beside="human", n=7), dict(heights=[5., 0.], beside="expected", n=1)]
    for i in range(200):
        heights = [round(r.uniform(0, 5), 2) if r.random() < .8 else 0. for _ in range(r.randint(2, 8))]
        states.append(dict(heights=heights, beside=w.known[i % len(w.known)], n=r.choice([2, 10, 37, 100])))
    with shown(tmp_path, w) as p: got = computed(p, "spectrum_designer", states)
    for s, o in zip(states, got):
        want = SpectrumDesigner(s["heights"], s["n"])
        want.beside = s["beside"]
        assert o.keys() == want.numbers.keys()
        for k, v in want.numbers.items(): assert o[k] == pytest.approx(v, abs=1e-6), (k, s)


@needs_browser
def test_weights_are_drawn_and_the_code_beside_them_draws_the_same(tmp_path):
    w = SpectrumDesigner()
    with shown(tmp_path, w) as p:
        says(p, w)
        handles = p.locator("[role=slider]")
        assert handles.count() == 5
        x, y = middle(handles.nth(2))
        pull(p, (x, y), (x, handles.nth(2).bounding_box()["y"] - 60))
        new = shown_value(handles.nth(2))
        assert new > 2
        w.heights = [*w.heights[:2], new, *w.heights[3:]]
        says(p, w)
        handles.nth(4).focus()
        p.keyboard.press("End")
        w.heights = [*w.heights[:4], 5.]
        says(p, w)
        p.get_by_label("Beside it:").select_option("icvar:.5")
        w.beside = "icvar:.5"
        says(p, w)
        code = p.locator("pre").inner_text()
    assert code == w.code
    line, = [o for o in code.splitlines() if o.startswith("risk = ")]
    scope = dict(SpectrumDesigner=SpectrumDesigner)
    exec(line, scope)
    assert torch.equal(scope["risk"].weights(50), w.risk.weights(50))


# --- One inner step

@needs_browser
def test_inner_step_has_the_numbers_of_autograd(tmp_path):
    r = random.Random(0)
    def point(): return [round(r.uniform(-1, 4), 2), round(r.uniform(-2, 2), 2)]
    states = [InnerStep().values] + [dict(wants=[point(), point()], validation=point(), weight=round(r.uniform(.01, .99), 2), lr=round(r.uniform(.05, 1), 2)) for _ in range(150)]
    with shown(tmp_path, InnerStep()) as p: got = computed(p, "inner_step", states)
    lesson = got[0]
    assert lesson["theta"] == [1, 0] and lesson["risk"] == .5 and lesson["dw"] == [-1.5, -.5] and lesson["dphi"] == [-.25, .25]
    for s, o in zip(states, got):
        want = InnerStep(**s).numbers
        assert o.keys() == want.keys()
        for k, v in want.items(): assert o[k] == pytest.approx(v, abs=1e-6), (k, s)


@needs_browser
def test_the_weight_and_the_points_are_dragged(tmp_path):
    w = InnerStep()
    with shown(tmp_path, w) as p:
        says(p, w)
        weight = p.get_by_role("slider", name="weight on sample 1")
        x, y = middle(weight)
        pull(p, (x, y), (x + 30, y))
        w.weight = shown_value(weight)
        assert w.weight > .6
        says(p, w)
        validation = p.get_by_role("slider", name="validation")
        validation.focus()
        for _ in range(15): p.keyboard.press("ArrowLeft")
        p.keyboard.press("ArrowUp")
        w.validation = [.5, .1]
        says(p, w)
        assert "Less weight on sample 1 would help" in w.words()


# --- Curriculum player and noise lab

def player(): return CurriculumPlayer(stored_runs(study=["fresh", "rivals"], data="fashion_mini", noise=.5))  # as in lesson 07


@needs_browser
@pytest.mark.parametrize("make", [player, CurriculumPlayer], ids=["label noise", "all that ship"])
def test_player_has_the_numbers_of_python_and_compares_runs_of_the_same_data(make, tmp_path):
    w, states = make(), []
    def task(run): return run["label"].removesuffix(run["name"])
    for i, run in enumerate(w.runs):
        assert run["beside"] and all(task(w.runs[j]) == task(run) for j in run["beside"])
        w.a = i
        w.b = run["beside"][-1]
        for share in 0, .3, 1:
            w.step = int(share * w.last)
            states.append((dict(a=w.a, b=w.b, step=w.step), w.numbers, w.words()))
    assert len(states) >= 6
    with shown(tmp_path, w) as p:
        got = p.evaluate("""async ([runs, all]) => { const m = await import('./x/curriculum_player.js');
            return all.map((o) => { const s = { runs, ...o }, n = m.compute(s); return [n, m.words(s, n)] }) }""", [w.runs, [s for s, _, _ in states]])
    for (s, want, says_python), (o, says_js) in zip(states, got):
        assert says_js == says_python
        for k in "ab":
            for name, v in want[k].items():
                if v is not None: assert o[k][name] == pytest.approx(v, abs=1e-6), (s, name)


@needs_browser
def test_player_is_scrubbed_and_plays_to_the_end(tmp_path):
    w = player()
    with shown(tmp_path, w) as p:
        says(p, w)
        step = p.get_by_label("Step", exact=True)
        step.focus()
        p.keyboard.press("End")
        w.step = w.last
        says(p, w)
        p.get_by_label("Run B", exact=True).select_option(str(w.runs[w.a]["beside"][0]))
        w.b = w.runs[w.a]["beside"][0]
        says(p, w)
        p.keyboard.press("Tab")
        step.focus()
        p.keyboard.press("Home")
        w.step = 0
        says(p, w)
        p.get_by_role("button", name="Play").click()
        w.step = w.last
        expect(words(p)).to_have_text(w.words(), timeout=30_000)


@needs_browser
def test_noise_lab_says_what_python_says_of_every_task_and_method(tmp_path):
    w, states = NoiseLab(), []
    for task in w.tasks:
        w.data = task["data"]
        w.noise = task["noise"]
        for row in task["rows"]:
            w.method = row["method"]
            states.append((dict(data=w.data, noise=w.noise, method=w.method), w.numbers, w.words()))
    assert len(states) > 50
    with shown(tmp_path, w) as p:
        got = p.evaluate("""async ([tasks, all]) => { const m = await import('./x/noise_lab.js');
            return all.map((o) => { const s = { tasks, ...o }, n = m.compute(s); return [n.lo, n.hi, n.half, m.words(s, n)] }) }""", [w.tasks, [s for s, _, _ in states]])
    for (s, want, says_python), (lo, hi, half, says_js) in zip(states, got):
        assert (lo, hi) == (want["lo"], want["hi"]) and says_js == says_python, s
        assert half is want["half"] is None or half == pytest.approx(want["half"], abs=1e-6)


@needs_browser
def test_noise_lab_follows_its_choices(tmp_path):
    w = NoiseLab()
    with shown(tmp_path, w) as p:
        says(p, w)
        p.get_by_label("Noise", exact=True).select_option(w._allowed("noise")[0])
        w.noise = w._allowed("noise")[0]
        says(p, w)
        p.get_by_label("Look at", exact=True).select_option(w._allowed("method")[0])
        w.method = w._allowed("method")[0]
        says(p, w)


# --- All of them

ALL = [RiskExplorer, SpectrumDesigner, InnerStep, CurriculumPlayer, NoiseLab]
CHALLENGES = {RiskExplorer: 3, SpectrumDesigner: 3, InnerStep: 2}


@needs_browser
@pytest.mark.parametrize("make", CHALLENGES, ids=lambda o: o.__name__)
def test_each_challenge_is_unsolved_at_first_and_its_answer_solves_it(make, tmp_path):
    for i in range(CHALLENGES[make]):
        with shown(tmp_path, make()) as p:
            pick, verdict = p.get_by_label("Try this:"), p.locator(".verdict")
            assert pick.locator("option").count() == 1 + CHALLENGES[make]
            pick.select_option(str(i))
            p.wait_for_function("e => e.textContent === 'Not yet.'", arg=verdict.element_handle())
            p.get_by_role("button", name="Show an answer").click()
            p.wait_for_function("e => e.textContent.startsWith('Solved: ')", arg=verdict.element_handle())


@needs_browser
def test_the_text_that_a_notebook_gets_is_one_valid_module(tmp_path):
    "All modules are put into one text there: no name may occur twice"
    with shown(tmp_path, RiskExplorer()) as p:
        for o in ALL:
            kinds = p.evaluate("async (text) => { const o = await import(URL.createObjectURL(new Blob([text], { type: 'text/javascript' }))); return [typeof o.default.render, typeof o.compute] }", es_module(o.module))
            assert kinds == ["function", "function"], o


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_and_a_phone_is_wide_enough(dark, tmp_path):
    with shown(tmp_path, *[o() for o in ALL], width=390, height=800) as p:
        if dark: p.evaluate("() => { document.documentElement.classList.add('quarto-dark'); Object.assign(document.body.style, { background: '#111', color: '#eee' }) }")
        assert p.evaluate("document.documentElement.scrollWidth") == 390
        assert [(o["id"], o["nodes"][0]["html"][:120]) for o in Axe().run(p).response["violations"]] == []


CLOSED = """async () => {
  const [explorer, told] = [await import("./x/risk_explorer.js"), []];
  const model = { values: { ...explorer.defaults }, get: (k) => model.values[k], set: (k, v) => { model.values[k] = v; }, on() {}, off() {}, save_changes: () => told.push(model.values.losses[0]) };
  const el = document.body.appendChild(document.createElement("div")), close = explorer.render({ model, el });
  el.querySelector("[role=slider]").dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
  const before = told.length;
  close();
  await new Promise((f) => setTimeout(f, 300));
  return [before, told];
}"""


@needs_browser
def test_the_kernel_is_told_of_the_last_change_when_a_picture_is_closed(tmp_path):
    with shown(tmp_path, RiskExplorer()) as p: assert p.evaluate(CLOSED) == [0, [5]]


# --- In a notebook

NOTEBOOK = """from ipywidgets import Label, VBox
from metarisk_nb.widget import CurriculumPlayer, InnerStep, NoiseLab, RiskExplorer, SpectrumDesigner, stored_runs
e, heard = RiskExplorer(), Label()
e.observe(lambda _: setattr(heard, "value", f"Python has: {e.words()}"), ["losses", "name", "params"])
VBox([e, heard])"""


def write_notebook(fn, *cells):
    cells = [dict(cell_type="code", id=f"c{i}", source=o, metadata={}, outputs=[], execution_count=None) for i, o in enumerate(cells)]
    kernel = dict(name="python3", display_name="Python 3", language="python")
    fn.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel), cells=cells)))
    return fn


@needs_browser
def test_the_kernel_hears_what_is_dragged_and_the_picture_shows_what_the_kernel_sets(tmp_path):
    "Through Voila, with anywidget's own front end"
    fn = write_notebook(tmp_path / "small.ipynb", NOTEBOOK, "e.risk = 'cvar:.2'\ne.words()")
    with voila(fn, tmp_path) as url, page(url, wait="commit") as p:
        w = RiskExplorer(risk="cvar:.2")
        says_in = p.locator(".explorable p[role=status]")
        says_in.wait_for(timeout=120_000)
        expect(says_in).to_have_text(w.words(), timeout=30_000)
        first = p.locator("[role=slider]").first
        way = slowly_up(p, first)
        assert len(way) > 20 and way == sorted(way), "the kernel's echo moves the bar back under the hand"
        w.losses = [way[-1], *w.losses[1:]]
        p.get_by_text(f"Python has: {w.words()}").wait_for(timeout=10_000)
        assert [e for e in p.errors if not any(o in e for o in p.outside)] == []  # Voila's own icons come from the network


IDLE = """() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'
    && ![...document.querySelectorAll('.jp-InputPrompt')].some(o => o.textContent.includes('*'))"""


def run_all(p, there):
    "Run all cells, until something is `there` and nothing is left to run that would replace it"
    ask = p.locator(".jp-Dialog button.jp-mod-accept")
    for _ in range(60):
        if ask.count(): ask.click()  # for the kernel
        elif p.evaluate(IDLE):
            if there.count(): return
            p.get_by_text("Run", exact=True).first.click()
            p.get_by_text("Run All Cells", exact=True).click()
        p.wait_for_timeout(2000)
    pytest.fail("the notebook has not run within two minutes")


@needs_browser
@pytest.mark.slow
def test_jupyterlab_shows_the_same(tmp_path):
    fn = write_notebook(tmp_path / "small.ipynb", "from metarisk_nb.widget import RiskExplorer\nRiskExplorer()")
    with jupyterlab(fn, tmp_path) as url, page(url, width=1300, wait="commit") as p:
        p.locator(".jp-Notebook").wait_for(timeout=90_000)
        says_in = p.locator(".explorable p[role=status]")
        run_all(p, says_in)
        w, first = RiskExplorer(), p.locator(".explorable [role=slider]").first
        drag(p, first, .3)
        w.losses = [shown_value(first), *w.losses[1:]]
        expect(says_in).to_have_text(w.words(), timeout=30_000)
        assert [e for e in p.errors if "debugger state" not in e] == []  # JupyterLab asks a busy kernel, and gives up
