"Every notebook runs, one pytest item each; the library and the README are what the notebooks export"
import copy
import filecmp
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NBS = sorted((ROOT / "nbs").glob("*.ipynb"))


def cli(fun, *args, cwd=ROOT):
    "Run an nbdev command with this Python, whatever PATH says"
    mod, name = fun.split(":")
    code = f"import sys; from {mod} import {name} as f; sys.argv[0] = {name!r}; f(*sys.argv[1:])"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    r = subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode == 0, (r.stdout + r.stderr)[-5000:]
    return r.stdout + r.stderr


@pytest.mark.parametrize("fn", NBS, ids=lambda p: p.stem)
def test_notebook_runs(fn):
    assert "Success" in cli("nbdev.test:nbdev_test", fn)


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


def test_notebooks_are_small_and_keep_their_pictures():
    for fn in NBS:
        assert fn.stat().st_size < 500_000, fn.name
        assert "image/png" in fn.read_text(), f"{fn.name}: run `make outputs`"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def test_notebooks_hold_no_saved_widgets_and_fold_their_solutions():
    tidy, untidy = script("tidy").tidy, []
    for fn in NBS:
        old = json.loads(fn.read_text(encoding="utf-8"))
        if tidy(copy.deepcopy(old)) != old: untidy.append(fn.name)
    assert not untidy, f"run `make prepare`: {untidy}"


def test_map_names_every_lesson_with_its_minutes_and_every_lesson_has_its_questions():
    text = {fn.stem: "\n".join("".join(c["source"]) for c in json.loads(fn.read_text(encoding="utf-8"))["cells"]) for fn in NBS}
    listed = {m[1]: m[2] for m in re.finditer(r"^\| \[[^]]+\]\((\w+)\.ipynb\) \|.*?\| (\d+) \|", text["index"], re.M)}
    lessons = {k: t for k, t in text.items() if k not in ("index", "glossary")}
    assert listed == {k: re.search(r"\*\*(\d+) minutes\*\*", t)[1] for k, t in lessons.items()}
    for k, t in lessons.items():
        assert re.search(r"\*\*You will be able to\*\*.*?\*\*You need\*\*", t, re.S), k
        asked, folded = t.split("## Check yourself")[1].split("## Exercises")
        assert 3 <= len(re.findall(r"^\*\*\d\.\*\*", asked, re.M)) == asked.count("<details>") <= 5, k
        assert 3 <= len(re.findall(r"^# Solution \d", folded, re.M)) <= 5, k


def test_handout_has_no_solutions_and_runs(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts/handout.py", tmp_path], check=True, capture_output=True)
    copies = sorted(tmp_path.glob("*.ipynb"))
    assert [o.name for o in copies] == [o.name for o in NBS]
    for fn in copies: assert not re.search(r"<details|# Solution", fn.read_text(encoding="utf-8")), fn.name
    risk = json.loads((tmp_path / "00_risk.ipynb").read_text(encoding="utf-8"))
    assert sum(c["source"].startswith("# Your solution") for c in risk["cells"] if c["cell_type"] == "code") >= 3
    nbclient.execute(nbformat.from_dict(risk), cwd=tmp_path, timeout=120)


def test_what_the_list_of_compatibility_names_is_tested():
    tests = "\n".join(fn.read_text() for fn in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"(?:def|class) ([Tt]est\w+)", tests))
    named = set(re.findall(r"`([Tt]est\w+)`", (ROOT / "nbs/09_compatibility.ipynb").read_text()))
    assert len(named) > 50 and named <= defined, named - defined
    classes = {o for fn in ("learner", "tasks") for o in re.findall(r"^class (Test\w+)", (ROOT / f"tests/fastai/test_compatibility_{fn}.py").read_text(), re.M)}
    assert classes <= named, classes - named
