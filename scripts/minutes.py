"""Count how long each lesson takes: `python scripts/minutes.py [--check]`

200 words of prose or 15 lines of code take a minute; answers and folded code do not count. Rounded up to five minutes, the time is given at the top of the
lesson and in the map of nbs/index.ipynb. `--check` changes nothing, and fails if there is something to change.
"""
import json
import os
import re
import sys
from math import ceil
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"


def words(md):
    "How many words a reader reads: no answers, no code, no addresses"
    read = re.sub(r"<details.*?</details>|^```.*?^```|<[^>]+>|\]\([^)]*\)|\|", " ", md, flags=re.S | re.M)
    return sum(bool(re.search(r"\w", o)) for o in read.split())


def lines(code):
    "How many lines of a cell the page shows"
    if re.search(r"^#\| *(hide\b|include: *false|echo: *false|code-fold: *true)", code, re.M): return 0
    return sum(bool(o.strip()) and not o.startswith("#|") for o in code.split("\n"))


def minutes(nb):
    count = dict(markdown=words, code=lines)
    n = {k: sum(f("".join(c["source"])) for c in nb["cells"] if c["cell_type"] == k) for k, f in count.items()}
    return 5 * ceil((n["markdown"] / 200 + n["code"] / 15) / 5)


def stated(folder):
    "The text of each notebook with the counted minutes, by file"
    index = folder / "index.ipynb"
    texts = {fn: fn.read_text(encoding="utf-8") for fn in [*sorted(folder.glob("[0-9]*.ipynb")), index]}
    for fn in [o for o in texts if o != index]:
        n = minutes(json.loads(texts[fn]))
        texts[fn] = re.sub(r"\*\*\d+ minutes\*\*", f"**{n} minutes**", texts[fn], count=1)
        texts[index] = re.sub(rf"(\({re.escape(fn.name)}\) \|.*?\| )\d+(?= \|)", rf"\g<1>{n}", texts[index], count=1)
    return texts


def write(fn, text):
    "Replace a file at once: anyone who reads it meanwhile gets the old one or the new one"
    part = fn.with_name(f".{fn.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, fn)


if __name__ == "__main__":
    stale = {fn: text for fn, text in stated(NBS).items() if fn.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv: sys.exit(f"run `make prepare`: {[o.name for o in stale]}" if stale else 0)
    for fn, text in stale.items(): write(fn, text)
