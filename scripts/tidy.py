"""Prepare notebooks for a commit, after nbdev-clean: `python scripts/tidy.py`

Saved widgets are removed, since without a kernel their sliders would move nothing. The still pictures stay, reduced to 64 colours and a third of the size.
Solutions are folded with their output, and so is the code of `echo: false` and `code-fold: true` cells. Each lesson begins with the cell that fetches the course on Colab.
"""
import json
import re
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

from PIL import Image

VIEW, PICTURE = "application/vnd.jupyter.widget-view+json", "image/png"

COLAB = """#| hide
import os, sys
if 'google.colab' in sys.modules:  # there: the course, its results and the package
    url, to = 'https://github.com/metarisk-nb/metarisk_nb', '/content/course'
    get_ipython().system(f'git clone -q --depth 1 {url} {to} && pip install -q nbdev {to}')
    os.chdir(f'{to}/nbs')"""


def colab(nb):
    "A lesson with the Colab cell before all other code"
    cells = nb["cells"]
    if any(c.get("id") == "c01ab000" for c in cells): return nb
    at = next(i for i, c in enumerate(cells) if c["cell_type"] == "code" and not "".join(c["source"]).startswith("#| default_exp"))
    cells.insert(at, dict(cell_type="code", execution_count=None, id="c01ab000", metadata={}, outputs=[], source=COLAB.splitlines(True)))
    return nb


def shrink(png):
    "A picture (base64) with a palette, unchanged if it has one or would not get smaller"
    im, out = Image.open(BytesIO(b64decode(png))), BytesIO()
    if im.mode == "P": return png
    im.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(png, b64encode(out.getvalue()).decode(), key=len)


def tidy(nb):
    nb["metadata"].pop("widgets", None)
    for c in nb["cells"]:
        src = "".join(c["source"])
        for data in (o["data"] for o in c.get("outputs", []) if "data" in o):
            data.pop(VIEW, None)
            if PICTURE in data: data[PICTURE] = shrink("".join(data[PICTURE]))
        if re.search(r"^#\| *code-fold: *true\n# Solution", src, re.M): c["metadata"]["jupyter"] = dict(source_hidden=True, outputs_hidden=True)
        elif re.search(r"^#\| *(echo: *false|code-fold: *true)", src, re.M): c["metadata"]["jupyter"] = dict(source_hidden=True)
    return nb


if __name__ == "__main__":
    nbs = Path(__file__).resolve().parents[1] / "nbs"
    for fn in [*nbs.glob("*.ipynb"), *nbs.glob("[!.]*/*.ipynb")]:
        old = fn.read_text(encoding="utf-8")
        nb = tidy(json.loads(old))
        new = json.dumps(colab(nb) if fn.parent == nbs else nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if new != old: fn.write_text(new, encoding="utf-8")
