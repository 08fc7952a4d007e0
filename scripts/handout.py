"""The lessons for a class: `python scripts/handout.py [FOLDER]`

The copies have no solutions and answers, an empty cell for each solution, and no outputs: a class predicts first, and then runs.
Beside the folder lies a page per lesson for the teacher, made from what the lessons say: FOLDER_teacher.html, to be printed.
"""
import json
import re
import shutil
import sys
from pathlib import Path

from nbconvert.filters import markdown2html

NBS = Path(__file__).resolve().parents[1] / "nbs"
NEEDED = "images", "index_files", "results"  # folders with the pictures and stored runs of the notebooks


def is_solution(c): return c["cell_type"] == "code" and re.search(r"^#\| *code-fold: *true\n# Solution", "".join(c["source"]), re.M)


def strip(nb):
    "Solutions become empty cells, which are open; folded answers and the outputs of a lesson go, and the last cell, which exports the library"
    lesson = any(map(is_solution, nb["cells"]))
    for c in nb["cells"]:
        c["source"] = src = "".join(c["source"])
        if is_solution(c): c.update(source=re.search(r"# (Solution.*)", src)[0].replace("Solution", "Your solution", 1), metadata={})
        elif c["cell_type"] == "markdown": c["source"] = re.sub(r"\s*<details>.*?</details>\s*", "\n\n", src, flags=re.S).strip()
        if lesson and c["cell_type"] == "code": c.update(outputs=[], execution_count=None)
    nb["cells"] = [c for c in nb["cells"] if c["source"] and "nbdev_export()" not in c["source"]]
    return nb


def linked(fn, nb):
    "The notebooks that the text of one leads to"
    text = "\n".join(c["source"] for c in nb["cells"] if c["cell_type"] == "markdown")
    return [(fn.parent / o).resolve() for o in re.findall(r"\]\((?!https?:)([^)#\s]+\.ipynb)", text)]


def hand_out(out):
    "All lessons and the parts they link to, with the pictures and stored runs that they need"
    for o in NEEDED: shutil.copytree(NBS / o, out / o, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".locks"))
    todo, done = sorted(NBS.glob("*.ipynb")), set()
    while todo:
        fn = todo.pop()
        if fn in done: continue
        nb, to = strip(json.loads(fn.read_text(encoding="utf-8"))), out / fn.relative_to(NBS)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(nb, indent=1, ensure_ascii=False), encoding="utf-8")
        done.add(fn)
        todo += linked(fn, nb)
    return len(done)


def prose(fn):
    cells = json.loads(fn.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def sheet(fn, terms):
    "What a teacher needs to know of a lesson, as markdown: all of it is quoted from the lesson"
    text = prose(fn)
    title, idea = re.search(r"^# (.*)\n\n> (.*)", text).groups()
    aims, minutes, needs = re.search(r"\*\*You will be able to\*\* (.*?)[\s·.]*\*\*(\d+) minutes\*\*.*?\*\*You need\*\* (.*?)\.?\n", text, re.S).groups()
    summary = re.search(r"^## Summary\n\n((?:\* .*\n?)+)", text, re.M)[1]
    asked = text.split("## Check yourself")[1].split("## Exercises")[0]
    asked = re.sub(r"\s*<details><summary>Answer</summary>\s*(.*?)\s*</details>\s*", lambda m: "\n\n> " + m[1].replace("\n", "\n> ") + "\n\n", asked, flags=re.S)
    new = f"**New terms:** {', '.join(terms)}.\n\n" if terms else ""
    page = (f"# {fn.stem.split('_')[0]} {title}\n\n*{idea}*\n\n**Time:** {minutes} minutes. **Needed:** {needs}.\n\n**Afterwards learners can** {aims}.\n\n"
            f"{new}## The main points\n\n{summary}\n## Questions and answers\n{asked}")
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", page)


HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>For the teacher: one page per lesson</title>
<style>
body { max-width: 42em; margin: 2em auto; padding: 0 1em; font: 10.5pt/1.35 Georgia, serif }
h1 { font-size: 1.5em; margin: 0 } h2 { font-size: 1.1em; margin: 1em 0 0 } p, ul, blockquote { margin: .5em 0 }
blockquote { padding-left: .8em; border-left: 2px solid #999 } article { margin-bottom: 4em } .anchor-link { display: none }
@page { margin: 1.6cm } @media print { body { margin: 0 auto } article { margin: 0; break-after: page } blockquote, li { break-inside: avoid } }
</style>
<script>MathJax = { tex: { inlineMath: [['$', '$']] } }</script>
<script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"></script>
"""


def sheets():
    "A page per lesson, as HTML; the terms are those that the glossary explains by this lesson first"
    lessons, terms = sorted(NBS.glob("[0-9]*.ipynb")), {}
    for term, first in re.findall(r"^### (.+)\n\n.* → \[\w+\]\((\w+)\.ipynb\)", prose(NBS / "glossary.ipynb"), re.M): terms.setdefault(first, []).append(term)
    return HEAD + "\n".join(f"<article>{markdown2html(sheet(fn, terms.get(fn.stem)))}</article>" for fn in lessons)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else NBS.parent / "_handout")
    teacher = out.with_name(out.name + "_teacher.html")
    print(f"{hand_out(out)} notebooks in {out}")
    teacher.write_text(sheets(), encoding="utf-8")
    print(f"for the teacher, a page per lesson: {teacher}")
