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


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else NBS.parent / "_handout")
    out.mkdir(parents=True, exist_ok=True)
    for fn in NBS.iterdir():  # pictures and stored runs too: every lesson runs there
        to = out / fn.name
        if fn.is_dir() and not fn.name.startswith("."): shutil.copytree(fn, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".locks"))
        elif fn.suffix == ".ipynb": to.write_text(json.dumps(strip(json.loads(fn.read_text(encoding="utf-8"))), indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(list(out.glob('*.ipynb')))} notebooks in {out}")
