"""What notebooks keep when they are committed, after nbdev-clean: `python scripts/tidy.py`

No saved widgets: without a kernel they would be sliders that move nothing; the still pictures stay. Solutions are folded, with their output.
"""
import json
import re
from pathlib import Path

VIEW, FOLDED = "application/vnd.jupyter.widget-view+json", dict(source_hidden=True, outputs_hidden=True)


def tidy(nb):
    nb["metadata"].pop("widgets", None)
    for c in nb["cells"]:
        for o in c.get("outputs", []): o.get("data", {}).pop(VIEW, None)
        if re.search(r"^#\| *code-fold: *true\n# Solution", "".join(c["source"]), re.M): c["metadata"]["jupyter"] = FOLDED
    return nb


if __name__ == "__main__":
    for fn in (Path(__file__).resolve().parents[1] / "nbs").glob("*.ipynb"):
        old = fn.read_text(encoding="utf-8")
        new = json.dumps(tidy(json.loads(old)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if new != old: fn.write_text(new, encoding="utf-8")
