"""Recompute the figures of the README and of the first screens of lessons 10 to 19 from the store: `python scripts/recompute.py`

Nothing of the package is used here: the records are read as JSON, and means, intervals and choices are computed from scratch. A claim is a
piece of text that must be in its document word for word, with figures that must support it. Digits in a first screen that belong to no
claim are an error."""
import json
import re
import sys

from claims import CLAIMS
from evidence import ROOT, front_page

# --- The front page

def agree(shown, value):
    "Does a number as shown agree with the value, within half a unit of its last digit (and a little for rounding)?"
    digits = len(shown.partition("e")[0].partition(".")[2])
    unit = 10. ** -digits * 10. ** (int(shown.partition("e")[2]) if "e" in shown else 0)
    return abs(float(shown) - value) <= .5 * unit * 1.001 + 1e-12


NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


def rendered(o):
    "A row as the page should have it: cells with # in place of numbers, and the numbers in their order"
    unit = "" if o["measure"] == "accuracy" else "%"
    def ends(d): return "(# to #)" if o["n"] >= 5 else "[# to #]"
    cells = [o["task"], o["measure"], "#", "#", "#", f"# {o['rival']}", *(f"#{unit} {ends(o[k])}" for k in ("against_plain", "against_best"))]
    return cells, [[], [], [o["n"]], [o["plain"]], [o["learned"]], [o["best"]], o["against_plain"], o["against_best"]]


def check_front_page(readme):
    "Check every cell of the table, including words and brackets"
    table = re.search(r"^## What to expect\n.*?\n((?:\|[^\n]*\n)+)", readme, re.M | re.S)[1].splitlines()[2:]
    rows = front_page()
    if len(table) != len(rows): yield f"README: {len(table)} rows in place of {len(rows)}"
    for line, want in zip(table, rows):
        for cell, form, values in zip(line.strip("| ").split(" | "), *rendered(want)):
            shown = NUMBER.findall(cell) if values else []
            words = NUMBER.sub("#", cell) if values else cell
            if words != form: yield f"README, {want['task']}: {cell!r} should read {form!r}"
            for text, value in zip(shown, values):
                if not agree(text, value): yield f"README, {want['task']}: {text} is shown, and it is {value:.6g}"


# --- The first screens

# Digits that are not results of ours: links, code, formulas, quotations, names, and the numbers of images, steps and samples
SETUP = "|".join([
    r'\[[^\]]*\]\([^)]*\)',
    r'`[^`]*`',
    r'\(\.1\)',
    r'\$[^$]*\$',
    r'\*".*?"\*',
    r'\*\*You will be able to\*\*.*',
    r'CIFAR-10N?|L2RW|16x16',
    r'(?:Figure|Table|section|lessons?) \d[\d.]*',
    r'at 0, 20 and 50%',
    r'95%',
    r'within 5% of a risk or one point',
    r"The paper's abstract promises [^.]*",
    r'gives the abstract its 10%',
    r'\b240 of your 12,000',
    r'Filled: 600 clean images; open: 240',
    r'axis begins at \d+%',
    r'[\d,]+ (?:images|steps|samples|classes)'])


def first_screen(name):
    "The text of a lesson up to its first heading; for the README, what it says about the evidence, without the table"
    if name == "README":
        text = re.search(r"^## What to expect\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
        return re.sub(r"^\|.*\n", "", text, flags=re.M)
    cells = json.loads((ROOT / f"nbs/{name}.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.split(r"^## ", text, flags=re.M)[0].partition("\n")[2]


def check_lesson(name):
    "Check that every claim is in its document and holds, and that no digit is left over"
    text = first_screen(name)
    for claim, holds in CLAIMS[name].items():
        if claim not in text: yield f"{name}: {claim!r} is not in its first screen"
        elif not holds(): yield f"{name}: {claim!r} is not supported by the store"
    rest = re.sub(SETUP, "", text)
    for claim in CLAIMS[name]: rest = rest.replace(re.sub(SETUP, "", claim), "")
    for o in re.findall(r"[^\n.]*\d[^\n.]*", rest): yield f"{name}: no claim covers the digits of {o.strip()!r}"
    if name == "README": yield from (f"README: no claim covers {o!r}" for o in unclaimed(text))


def unclaimed(text):
    "Sentences without a claim in the two lists of what the package is worth"
    judged = re.search(r"^\*\*What it is worth\.\*\*(.*?)^Lessons ", text, re.M | re.S)[1]
    judged = re.sub(r"^\*\*What it is not worth\.\*\*|^\* ", "", judged, flags=re.M)
    for sentence in re.split(r"(?<=[.;])\s+", judged):
        if sentence.strip() and not any(claim in sentence or sentence.strip(" .;:") in claim for claim in CLAIMS["README"]): yield sentence


def main():
    "Print what is wrong; the exit status is the number of errors"
    wrong = [*check_front_page((ROOT / "README.md").read_text()), *(o for name in CLAIMS for o in check_lesson(name))]
    print("\n".join(wrong) or f"{len(front_page())} rows of the README and {sum(map(len, CLAIMS.values()))} claims of {len(CLAIMS)} pages hold")
    sys.exit(len(wrong))


if __name__ == "__main__": main()
