"The website: whole, with words for its pictures, nothing from elsewhere, readable on a phone"
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import MUST, needs_browser, page, serve

import metarisk_nb
from metarisk_nb.all import sample_losses

ROOT = Path(__file__).parents[2]
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(o.relative_to(NBS).with_suffix("").as_posix() for o in [*NBS.glob("*.ipynb"), *NBS.glob("[!.]*/*.ipynb")])
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini")
SETTINGS = SETTINGS["DEFAULT"]
RAW = r"\$[^$\n]*\\[a-z]+[^$\n]*\$|\\(frac|sum|int|alpha|text|mathrm|left|cdot)\b|\\[(\[]"  # a formula that was not set


def npm(msg): pytest.fail(msg) if MUST else pytest.skip(msg)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "_site"
    r = subprocess.run([sys.executable, "-W", "ignore", ROOT / "scripts/build_site.py", out], capture_output=True, text=True, cwd=ROOT)
    if r.stderr.startswith("npm "): npm(r.stderr.strip())
    assert out.exists(), r.stderr
    return out, r


@pytest.fixture(scope="module")
def site(built): return built[0]


@pytest.fixture(scope="module")
def builder():
    sys.path.insert(0, str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "scripts/build_site.py")
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


class Tags(HTMLParser):
    def __init__(self, fn):
        super().__init__()
        self.tags = []
        self.feed(fn.read_text())

    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))


def meta(fn): return {a.get("name") or a.get("property"): a.get("content") for t, a in Tags(fn).tags if t == "meta"}


def visible(fn): return re.sub(r"<(script|style)\b.*?</\1>", "", fn.read_text(), flags=re.S)


def test_no_problem_is_found(built):
    assert built[1].returncode == 0, built[1].stderr


def test_every_notebook_is_in_the_sidebar_and_the_landing_page_leads_to_the_course(site):
    links = {a.get("href") for t, a in Tags(site / "nbs/index.html").tags if t == "a" and "sidebar-link" in (a.get("class") or "")}
    assert {f"{o}.html" for o in NOTEBOOKS} | {f"../api/{o.name}" for o in (site / "api").glob("*.html")} <= links | {"index.html"}
    landing = Tags(site / "index.html").tags
    assert "risk_explorer" in [a.get("data-explorable") for t, a in landing if t == "figure"]
    assert {"nbs/index.html", "nbs/20_your_data.html", "nbs/19_all_tables.html"} <= {a.get("href") for t, a in landing if t == "a"}


def test_landing_page_promises_what_the_readme_does():
    text, readme = (ROOT / "index.qmd").read_text(), (ROOT / "README.md").read_text()
    verdicts = re.findall(r"^\*\*(?:What it is worth|When not to use it)\.\*\* (.*)$", text, re.M)
    assert len(verdicts) == 2
    for o in re.split(r"(?<=\.) ", " ".join(verdicts)): assert o.rstrip(".") in readme, o
    assert f"pip install git+{SETTINGS['git_url']}" in text


def test_each_notebook_can_be_run_on_colab_downloaded_and_read_on_github(site):
    for o in NOTEBOOKS:
        name, links = f"nbs/{o}.ipynb", {a.get("href"): a for t, a in Tags(site / f"nbs/{o}.html").tags if t == "a"}
        assert f"https://colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/main/{name}" in links, o
        assert f"{SETTINGS['git_url']}/blob/main/{name}" in links and "download" in links[Path(name).name], o
        assert (site / name).read_bytes() == (ROOT / name).read_bytes(), o
    for fn in (site / "api").glob("[!i]*.html"):  # `index` lists them
        source, = [a["href"] for t, a in Tags(fn).tags if t == "a" and a.get("href", "").startswith(f"{SETTINGS['git_url']}/blob/")]
        assert (ROOT / source.partition("/blob/main/")[2]).is_file(), source


def test_each_page_has_a_description_and_a_preview(site):
    for fn in [*site.glob("*.html"), *site.glob("nbs/**/*.html"), *site.glob("api/*.html")]:
        m = meta(fn)
        assert len(m["description"]) > 10 and m["description"] == m["og:description"] == m["twitter:description"], fn
        assert m["og:title"] and m["og:image"] == m["twitter:image"] and m["twitter:card"] == "summary_large_image", fn
        assert m["og:image"].startswith(SETTINGS["doc_url"]) and (site / m["og:image"].removeprefix(SETTINGS["doc_url"])).is_file(), fn
    assert meta(site / "nbs/00_risk.html")["description"] == "One number from a batch of losses: which samples count, and how much"
    assert meta(site / "nbs/parts/lightning.html")["description"].endswith("one line in training_step"), "names keep their underscores"
    assert "00_risk_files/figure-1.png" in meta(site / "nbs/00_risk.html")["og:image"]


def test_pages_are_light(site):
    "With their figures, which are files"
    for fn in site.rglob("*.html"):
        files = [fn, *{fn.parent / a["src"] for t, a in Tags(fn).tags if t == "img" and not a["src"].startswith("data:")}]
        assert sum(o.stat().st_size for o in files) < 1.5e6, fn


def test_pictures_have_words_and_files_are_local(site):
    n = 0
    for fn in site.rglob("*.html"):
        for tag, a in Tags(fn).tags:
            if tag == "img": assert a.get("alt", "").strip(), fn
            src = a.get("src") or (a.get("href") if tag == "link" else None)
            if src: assert src.startswith("data:") or not re.match(r"\w+:|//", src), (fn, src)
            n += tag == "img"
    assert n > 50


def test_directives_and_hidden_cells_do_not_show(site):
    for fn in site.glob("nbs/**/*.html"): assert not re.search(r"#\| |nbdev_export|default_exp", re.sub("<[^>]+>", "", visible(fn))), fn


def test_every_public_name_has_an_api_entry(site):
    "On the page of the module that defines it; a module that only hands names on has no page"
    pages = {o.stem: {a.get("id") for _, a in Tags(o).tags} for o in (site / "api").glob("*.html")}
    index = {a.get("href") for _, a in Tags(site / "api/index.html").tags}
    listed = set()
    for m in pkgutil.walk_packages(metarisk_nb.__path__, "metarisk_nb."):
        mod, short = importlib.import_module(m.name), m.name.removeprefix("metarisk_nb.")
        names = set(getattr(mod, "__all__", []))
        mine = names & pages.get(short, set())
        assert {f"{short}.html#{o}" for o in mine} <= index
        elsewhere = {o for o in names - mine if any(o in ids for k, ids in pages.items() if k != short)}
        assert names == mine | elsewhere, names - mine - elsewhere
        defined = {o for o in names if getattr(getattr(mod, o), "__module__", None) == m.name}
        assert defined <= mine, defined - mine
        listed |= mine
    assert len(listed) > 100
    pages = [visible(o) for o in (site / "api").glob("*.html") if o.stem != "index"]
    page, = [o for o in pages if 'id="sample_losses"' in o]
    assert inspect.getdoc(sample_losses).splitlines()[0] in page and "<td>Its targets</td>" in page  # a docstring and a docment


def test_search_finds_words_of_lessons_and_names(site):
    found = json.loads((site / "search.json").read_text())
    for word, where in ("Spectral", "nbs/00_risk"), ("hypergradient", "nbs/02"), ("SortedReducer", "api/reducer"):
        assert any(word in o["title"] + o["section"] + o["text"] and o["href"].startswith(where) for o in found), word


def project(tmp_path, cells, part):
    "A website of a notebook and a part; cells are text, or (code, outputs)"
    (tmp_path / "nbs/parts").mkdir(parents=True)
    write(tmp_path / "nbs/index.ipynb", cells)
    write(tmp_path / "nbs/parts/room.ipynb", part)
    (tmp_path / "_quarto.yml").write_text("""project: {type: website, render: [nbs/index.ipynb, nbs/parts/*.ipynb]}
website: {title: small, navbar: {left: [{text: Gone, href: nbs/gone.ipynb}]},
  sidebar: {contents: [nbs/index.ipynb, nbs/gone.ipynb, {section: Parts, contents: [nbs/parts/*.ipynb]}]}}
format: {html: {theme: default}}
""")
    return tmp_path


def write(fn, cells):
    cells = [dict(cell_type="markdown", metadata={}, source=o) if isinstance(o, str) else
             dict(cell_type="code", metadata={}, execution_count=1, source=o[0], outputs=[dict(output_type="display_data", metadata=o[2] if o[2:] else {}, data=d) for d in o[1]]) for o in cells]
    fn.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def build(builder, out, root):
    try: return builder.build(out, root)
    except SystemExit as e: npm(str(e)) if str(e).startswith("npm ") else pytest.fail(str(e))


PNG = {"image/png": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="}


def test_what_the_builder_makes_and_what_it_complains_of(builder, tmp_path):
    root = project(tmp_path, ["# Small\n\n> One page", ("#| hide\nsecret", []), "## A heading", ("#| export\nplot()", [PNG]), "*Figure. Of a caption.*",
                              ("#| fig-alt: \"An option: it wins\"\nplot()", [PNG], {"image/png": {"width": 7}}), ("plot()", [PNG]),
                              ("#| code-fold: true\n# Solution 1\nanswer", [{"text/plain": "42"}]),
                              ("#| code-fold: true\nlong()", [{"text/plain": "shown, in a sentence"}]), ("table()", [{"text/plain": "a   b\n1   2"}]),
                              "[a](#nowhere) [b](other.ipynb) [c](#a-heading) [d](parts/room.ipynb) ![](pic.png) ![](https://example.org/x.png)"],
                   ["# room\n\n> A short one", ("#| default_exp room", []), ("#| export\nroom = 1", []), "[up](../index.ipynb) [gone](../none.ipynb)"])
    (root / "nbs/pic.png").write_bytes(b"x")
    problems = build(builder, tmp_path / "out", root)
    for o in "gone.html: no such file", "#nowhere: no such anchor", "other.html: no such file", "pic.png: a picture without alt", "x.png: comes from elsewhere":
        assert any(o in p for p in problems), (o, problems)
    assert not any(o in p for p in problems for o in ("#a-heading", "room.html:", "index.html:")) and any("none.html: no such file" in p for p in problems)
    room = visible(tmp_path / "out/nbs/parts/room.html")
    assert '<h1 class="title">room' in room and "A short one" in room and "room = 1" in re.sub("<[^>]+>", "", room) and "#|" not in room and "default_exp" not in room
    assert any(t == "a" and a.get("href") == "parts/room.html" and "sidebar" in (a.get("class") or "") for t, a in Tags(tmp_path / "out/nbs/index.html").tags)
    html = visible(tmp_path / "out/nbs/index.html")
    assert 'src="index_files/figure-2.png" width="7" height="7"' in html  # as the output says
    assert 'src="index_files/figure-3.png" width="1" height="1"' in html and "data:image" not in html
    assert (tmp_path / "out/nbs/index_files/figure-3.png").is_file()
    assert [a["alt"] for t, a in Tags(tmp_path / "out/nbs/index.html").tags if t == "img"][:3] == ["Figure. Of a caption.", "An option: it wins", "Figure: A heading"]
    assert "secret" not in html and "#|" not in html and '<h1 class="title">Small' in html
    assert re.search(r"<details>\s*<summary>Solution 1</summary>.*answer.*42.*</details>", html, re.S)
    assert re.search(r'<details class="code-fold">((?!</details>).)*long((?!</details>).)*</details>.*<pre class="running"><code>shown, in a sentence', html, re.S)
    assert "<pre><code>a   b" in html  # columns do not wrap


def test_npm_that_is_missing_is_named(builder, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "VENDOR", tmp_path / "none")
    monkeypatch.setattr(builder.shutil, "which", lambda o: None)
    with pytest.raises(SystemExit, match="npm is missing.*katex 0.16"): builder.build(tmp_path / "out")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/katex-0.16.11.tgz").write_bytes(b"another")
    with pytest.raises(SystemExit, match="not katex 0.16.11 as pinned"): builder.build(tmp_path / "out")


@needs_browser
def test_pages_in_a_browser(site):
    with serve(site) as url, page(url) as p:
        box = p.locator(".smalldocs-search input").first
        box.fill("Spectral")
        p.locator(".search-result").first.wait_for()
        p.set_viewport_size(dict(width=390, height=800))
        wrong = []
        for fn in sorted([*site.glob("*.html"), *site.glob("nbs/**/*.html"), *site.glob("api/*.html")]):
            name, p.errors[:] = str(fn.relative_to(site)), []
            p.goto(url + name)
            over, bad, n, text = p.evaluate("""() => { const t = document.querySelector('main').cloneNode(true), root = document.documentElement;
                t.querySelectorAll('pre, code, .katex, script, style').forEach(o => o.remove());
                return [root.scrollWidth - innerWidth, document.querySelectorAll('.katex-error').length, document.querySelectorAll('.katex').length, t.textContent] }""")
            raw = re.search(RAW, text)
            if over > 0: wrong.append(f"{name} is {over} pixels too wide for a phone")
            if bad or raw or (name == "nbs/00_risk.html" and n < 6): wrong.append(f"{name}: a formula was not set: {raw}")
            wrong += [f"{name}: {o}" for o in p.errors]
        assert not wrong and not p.outside


PAGES = "index.html", "nbs/00_risk.html", "nbs/19_all_tables.html", "api/risk.html"
GROUND = "getComputedStyle(document.body).backgroundColor"


@needs_browser
def test_light_and_dark_follow_the_system_and_the_reader(site):
    with serve(site) as url, page(url + PAGES[1]) as p:
        light = p.evaluate(GROUND)
        p.emulate_media(color_scheme="dark")
        p.wait_for_function(f"{GROUND} != '{light}'")
        assert p.evaluate("getComputedStyle(document.querySelector('main img')).backgroundColor") == "rgb(255, 255, 255)"
        p.locator(".quarto-color-scheme-toggle").click()
        p.wait_for_function(f"{GROUND} == '{light}'")
        p.goto(url + PAGES[3])  # the reader's choice holds on the next page
        assert p.evaluate(GROUND) == light and not p.errors and not p.outside


@needs_browser
@pytest.mark.parametrize("scheme,ground", [("light", "rgb(255, 255, 255)"), ("dark", "rgb(34, 34, 34)")])
def test_axe_finds_nothing_serious(site, scheme, ground):
    "Contrast, names of links, order of headings, boxes that a keyboard cannot reach"
    from axe_playwright_python.sync_playwright import Axe
    with serve(site) as url, page() as p:
        p.emulate_media(color_scheme=scheme)
        for o in PAGES:
            p.goto(url + o)
            assert p.evaluate(GROUND) == ground
            p.evaluate("document.querySelectorAll('details').forEach(o => o.open = true)")
            found = Axe().run(p).response
            bad = [(v["id"], n["html"][:200]) for v in found["violations"] if v["impact"] in ("serious", "critical") for n in v["nodes"]]
            assert not bad and len(found["passes"]) > 20, (o, bad)


LIVELY = {"index": ["risk_explorer"], "nbs/00_risk": ["risk_explorer"], "nbs/01_reducer": ["spectrum_designer"], "nbs/02_hypergrad": ["inner_step"],
          "nbs/03_callback": ["curriculum_player"], "nbs/15_label_noise": ["curriculum_player", "noise_lab"], "nbs/16_noise_tolerant": ["noise_lab"],
          "nbs/07_widget": ["risk_explorer", "spectrum_designer", "inner_step", "curriculum_player", "noise_lab"]}


@needs_browser
def test_explorables_respond_on_the_site_without_a_kernel(site):
    with serve(site) as url, page(url, width=390, height=800) as p:
        for name, modules in LIVELY.items():
            p.goto(f"{url}{name}.html")
            figures = p.locator("figure.explorable")
            assert [o.get_attribute("data-explorable") for o in figures.all()] == modules, name
            for i, module in enumerate(modules):
                figure = figures.nth(i)
                figure.locator("> p[role=status]").wait_for()
                words = figure.locator("> p[role=status]")
                before = words.inner_text()
                if module == "noise_lab": figure.get_by_label("Look at").select_option(index=1)
                else:
                    handle = figure.locator("[role=slider], input[type=range]").first
                    handle.focus()
                    p.keyboard.press("Home" if handle.evaluate("e => Boolean(e.max) && e.value === e.max") else "End")
                p.wait_for_function("([e, t]) => e.textContent !== t", arg=[words.element_handle(), before], timeout=10_000)
            assert p.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
        assert p.errors == [] and p.outside == []
