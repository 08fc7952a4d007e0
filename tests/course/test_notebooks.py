"Every notebook runs, one pytest item each; the library and the README are what the notebooks export"
import atexit
import copy
import filecmp
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "nbs").glob("*.ipynb"))  # and studies, index and glossary
PARTS = sorted((ROOT / "nbs").glob("[!.]*/*.ipynb"))  # short notebooks of rooms that are no lesson
NBS = LESSONS + PARTS


def name(fn): return fn.relative_to(ROOT / "nbs").with_suffix("").as_posix()


def cli(fun, *args, cwd=ROOT):
    "Run an nbdev command with this Python, whatever PATH says"
    mod, name = fun.split(":")
    code = f"import sys; from {mod} import {name} as f; sys.argv[0] = {name!r}; f(*sys.argv[1:])"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    r = subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode == 0, (r.stdout + r.stderr)[-5000:]
    return r.stdout + r.stderr


@cache
def server():
    "The process from which those of the notebooks are forked; IN_TEST is nbdev's to set"
    p = subprocess.Popen([sys.executable, "-W", "ignore", "-c", "import notebook_server as s; s.serve()"], cwd=Path(__file__).parent, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={k: v for k, v in os.environ.items() if k != "IN_TEST"})
    atexit.register(p.communicate)  # its stdin is closed, so it ends
    return p


def run(fn):
    "Exit status of a notebook in a process of its own, and what it has to say of its errors"
    p = server()
    p.stdin.write(json.dumps(str(fn)) + "\n")
    p.stdin.flush()
    status, _, says = json.loads(p.stdout.readline())
    return status, says


@pytest.mark.parametrize("fn", NBS, ids=name)
def test_notebook_runs(fn):
    status, says = run(fn)
    assert status == 0, says


def notebook(tmp_path, *cells):
    "A project of one notebook with these code cells"
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells], metadata=dict(language_info=dict(name="python"))), tmp_path / "nbs/some.ipynb")
    return tmp_path / "nbs/some.ipynb"


@pytest.mark.parametrize("cell,word", [("1 / 0", "ZeroDivisionError"), ("assert 1 == 2, 'no'", "AssertionError: no"), ("import sys; sys.exit(3)", ""), ("import os; os._exit(7)", ""),
                                       ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ""), ("x = (", "SyntaxError")])
def test_a_notebook_that_fails_is_noticed(cell, word, tmp_path):
    status, says = run(notebook(tmp_path, "x = 1", cell, "y = 2"))
    assert status != 0 and word in says and ("Cell #2" in says or not word)


def test_a_figure_that_cannot_be_read_is_noticed(tmp_path):
    status, says = run(notebook(tmp_path, "import matplotlib.pyplot as plt", "plt.subplots(figsize=(11, 3));"))
    assert status != 0 and "a figure cannot be read on a page:\n'0.0' has letters of" in says


def test_each_notebook_has_a_process_its_folder_and_nothing_of_the_one_before(tmp_path):
    first = "import builtins, os, torch; builtins.left_behind = 1; os.environ['LEFT'] = '1'; torch.set_num_threads(2)"
    then = """import builtins, json, os, sys, torch
from pathlib import Path
assert not hasattr(builtins, 'left_behind') and 'LEFT' not in os.environ and torch.get_num_threads() == 1
assert Path.cwd() == Path('{}') and os.environ['IN_TEST'] and 'fastai' in sys.modules and 'metarisk_nb' not in sys.modules"""
    for o in "ab": (tmp_path / o).mkdir()
    assert run(notebook(tmp_path / "a", first)) == (0, "")
    status, says = run(notebook(tmp_path / "b", *[f"#| {o}\n1 / 0" for o in ("slow", "gpu", "notest", "eval: false")], then.format((tmp_path / "b/nbs").resolve())))
    assert status == 0, says


def test_library_and_notebooks_are_in_step_and_clean(tmp_path):
    for d in ("nbs", "metarisk_nb"): shutil.copytree(ROOT / d, tmp_path / d, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for f in ("pyproject.toml", "settings.ini", "README.md"): shutil.copy(ROOT / f, tmp_path)
    cli("nbdev.doclinks:nbdev_export", cwd=tmp_path)
    cli("nbdev.clean:nbdev_clean", cwd=tmp_path)
    for d, ext in (("metarisk_nb", "*.py"), ("nbs", "*.ipynb")):
        names = sorted(p.relative_to(tmp_path) for p in (tmp_path / d).rglob(ext))
        assert names == sorted(p.relative_to(ROOT) for p in (ROOT / d).rglob(ext) if ".ipynb_checkpoints" not in p.parts)
        stale = [str(n) for n in names if not filecmp.cmp(tmp_path / n, ROOT / n, shallow=False)]
        assert not stale, f"run `make prepare`: {stale}"


def test_readme_is_made_from_the_index():
    subprocess.run([sys.executable, ROOT / "scripts/readme.py", "--check"], check=True)


def test_lint():
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", ROOT], check=True)


def test_notebooks_are_small_and_lessons_keep_their_pictures():
    for fn in NBS: assert fn.stat().st_size < 500_000, name(fn)
    for fn in LESSONS: assert "image/png" in fn.read_text(), f"{name(fn)}: run `make outputs`"


def test_parts_are_short_and_say_what_they_hold():
    for fn in PARTS:
        cells = json.loads(fn.read_text(encoding="utf-8"))["cells"]
        head = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert re.match(r"# \S.*\n\n> \S.*", head), name(fn)
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        assert any(o.startswith("#| default_exp ") for o in code), name(fn)
        assert any(re.search(r"\b(assert|test_\w+\()", o) for o in code if not o.startswith("#| ")), f"{name(fn)} has no example that is checked"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def test_notebooks_hold_no_saved_widgets_and_fold_their_solutions():
    tidy, untidy = script("tidy").tidy, []
    for fn in NBS:
        old = json.loads(fn.read_text(encoding="utf-8"))
        if tidy(copy.deepcopy(old)) != old: untidy.append(name(fn))
    assert not untidy, f"run `make prepare`: {untidy}"


def test_map_names_every_lesson_with_its_minutes_and_every_lesson_has_its_questions():
    text = {fn.stem: "\n".join("".join(c["source"]) for c in json.loads(fn.read_text(encoding="utf-8"))["cells"]) for fn in LESSONS}
    listed = {m[1]: m[2] for m in re.finditer(r"^\| \[[^]]+\]\((\w+)\.ipynb\) \|.*?\| (\d+) \|", text["index"], re.M)}
    lessons = {k: t for k, t in text.items() if k not in ("index", "glossary")}
    assert listed == {k: re.search(r"\*\*(\d+) minutes\*\*", t)[1] for k, t in lessons.items()}
    for k, t in lessons.items():
        assert re.search(r"\*\*You will be able to\*\*.*?\*\*You need\*\*", t, re.S), k
        asked, folded = t.split("## Check yourself")[1].split("## Exercises")
        assert 3 <= len(re.findall(r"^\*\*\d\.\*\*", asked, re.M)) == asked.count("<details>") <= 5, k
        assert 3 <= len(re.findall(r"^# Solution \d", folded, re.M)) <= 5, k


def test_minutes_are_counted():
    "Words of prose and lines of code that a reader sees, and nothing else"
    m = script("minutes")
    wrong = [fn.name for fn, text in m.stated(ROOT / "nbs").items() if fn.read_text(encoding="utf-8") != text]
    assert not wrong, f"run `make prepare`: {wrong}"
    cells = [("markdown", "word " * 995 + "*seven* [more, all told](of_a_link.ipynb) <br> | with a | table"),
             ("markdown", "<details>" + "an answer " * 900 + "</details>"), ("code", "x = 1\n\n" * 75), ("code", "#| hide\n" + "x = 1\n" * 900), ("code", "#| code-fold: true\n" + "x = 1\n" * 900)]
    def nb(n): return dict(cells=[dict(cell_type=k, source=s.splitlines(True)) for k, s in cells[:n]])
    assert [m.words(cells[0][1]), m.words(cells[1][1])] == [1002, 0] and [m.lines(s) for _, s in cells[2:]] == [75, 0, 0]
    assert [m.minutes(nb(n)) for n in (1, 2, 3, 4, 5)] == [10, 10, 15, 15, 15]  # 5.01 minutes of prose, 5 of code


def test_every_lesson_installs_the_course_on_colab_and_nowhere_else(monkeypatch):
    done = []
    monkeypatch.setattr(os, "chdir", done.append)
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    for fn in LESSONS:
        code = ["".join(c["source"]) for c in json.loads(fn.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        first = next(o for o in code if not o.startswith("#| default_exp"))
        world = dict(get_ipython=lambda: SimpleNamespace(system=done.append))
        exec(first, world)
        assert first.startswith("#| hide\n") and not done, name(fn)
        with monkeypatch.context() as m:
            m.setitem(sys.modules, "google.colab", SimpleNamespace())
            exec(first, world)
        clone = f"git clone -q --depth 1 {ini['DEFAULT']['git_url']} /content/course"
        assert done == [f"{clone} && pip install -q nbdev /content/course", "/content/course/nbs"], name(fn)
        done.clear()


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    "The folder for the class, and its notebooks by name"
    out = tmp_path_factory.mktemp("handout") / "class"
    subprocess.run([sys.executable, ROOT / "scripts/handout.py", out], check=True, capture_output=True)
    return out, {o.relative_to(out).with_suffix("").as_posix(): json.loads(o.read_text(encoding="utf-8")) for o in out.rglob("*.ipynb")}


def test_handout_has_no_solutions_and_runs(handout):
    out, copies = handout
    assert {name(o) for o in LESSONS} <= set(copies) <= {name(o) for o in NBS}
    assert {o.name for o in out.iterdir() if o.is_dir()} == {"images", "index_files", "lab", "parts", "results"}
    for k, nb in copies.items():
        text = "\n".join(c["source"] for c in nb["cells"])
        assert not re.search(r"<details|# Solution", text), k
        for href in re.findall(r"\]\((?!https?:)([^)#\s]+\.(?:ipynb|png))", text): assert (out / k).parent.joinpath(href).exists(), (k, href)
    risk = copies["00_risk"]
    assert sum(c["source"].startswith("# Your solution") for c in risk["cells"] if c["cell_type"] == "code") >= 3
    nbclient.execute(nbformat.from_dict(copy.deepcopy(risk)), cwd=out, timeout=120)


def test_handout_shows_no_result_before_it_is_asked_for_and_each_question_on_its_own(handout):
    lessons = {k: nb["cells"] for k, nb in handout[1].items() if re.match(r"\d", k)}
    for k, cells in lessons.items():
        assert not any(c["outputs"] or c["execution_count"] for c in cells if c["cell_type"] == "code"), k
        assert all(c["metadata"] == {} for c in cells if c["source"].startswith("# Your solution")), k  # open, to be written in
        _, *asked = "\n\n".join(c["source"] for c in cells).split("## Check yourself")[1].split("## Exercises")[0].strip().split("**1.**")
        paragraphs = ("**1.**" + asked[0]).strip().split("\n\n")
        assert [o[:6] for o in paragraphs if o.startswith("**")] == [f"**{i}.**" for i in range(1, len(paragraphs) + 1)], (k, paragraphs)


def test_teacher_has_a_page_per_lesson_with_terms_questions_and_answers(handout):
    pages = (handout[0].parent / "class_teacher.html").read_text(encoding="utf-8").split("<article>")[1:]
    lessons = [o for o in LESSONS if o.stem[0].isdigit()]
    assert len(pages) == len(lessons) > 20
    for fn, page in zip(lessons, pages):
        asked = fn.read_text(encoding="utf-8").split("## Check yourself")[1].split("## Exercises")[0]
        assert page.count("<blockquote>") == asked.count("<details>") and "<details" not in page and ".ipynb" not in page, name(fn)
        assert all(o in page for o in ("Afterwards learners can", "The main points", "Time:")), name(fn)
        assert len(re.sub("<[^>]+>", " ", page).split()) < 750, f"{name(fn)} needs more than a page"
    assert "<strong>New terms:</strong> Reducer, Logit, Knots." in pages[1]


def test_what_the_list_of_compatibility_names_is_tested():
    tests = "\n".join(fn.read_text() for fn in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"(?:def|class) ([Tt]est\w+)", tests))
    named = set(re.findall(r"`([Tt]est\w+)`", (ROOT / "nbs/09_compatibility.ipynb").read_text()))
    assert len(named) > 50 and named <= defined, named - defined
    classes = {o for fn in ("learner", "tasks") for o in re.findall(r"^class (Test\w+)", (ROOT / f"tests/fastai/test_compatibility_{fn}.py").read_text(), re.M)}
    assert classes <= named, classes - named
