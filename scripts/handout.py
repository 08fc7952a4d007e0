"The lessons for a class: without solutions and answers, an empty cell for each: `python scripts/handout.py [FOLDER]`"
import json
import re
import shutil
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"


def is_solution(c): return c["cell_type"] == "code" and re.search(r"^#\| *code-fold: *true\n# Solution", "".join(c["source"]), re.M)


def strip(nb):
    "Solutions become empty cells; folded answers go, and the last cell, which exports the library"
    for c in nb["cells"]:
        c["source"] = src = "".join(c["source"])
        if is_solution(c): c.update(source=re.search(r"# (Solution.*)", src)[0].replace("Solution", "Your solution", 1), outputs=[], execution_count=None)
        elif c["cell_type"] == "markdown": c["source"] = re.sub(r"<details>.*?</details>\n*", "", src, flags=re.S).strip()
    nb["cells"] = [c for c in nb["cells"] if c["source"] and "nbdev_export()" not in c["source"]]
    return nb


def linked(fn, nb):
    "The notebooks that the text of one leads to"
    text = "\n".join(c["source"] for c in nb["cells"] if c["cell_type"] == "markdown")
    return [(fn.parent / o).resolve() for o in re.findall(r"\]\((?!https?:)([^)#\s]+\.ipynb)", text)]


def hand_out(out):
    "All lessons and the parts they link to, with the pictures and stored runs that they need"
    for fn in NBS.iterdir():
        if fn.is_dir() and not fn.name.startswith(".") and not any(fn.glob("*.ipynb")):
            shutil.copytree(fn, out / fn.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".locks"))
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


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else NBS.parent / "_handout")
    print(f"{hand_out(out)} notebooks in {out}")
