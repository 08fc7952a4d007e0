"Write README.md and its pictures from nbs/index.ipynb and its saved outputs: `python scripts/readme.py [--check]`"
import re
import sys
from base64 import b64decode
from pathlib import Path

from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path("nbs/index_files")


def option(source, name):
    "The value of a `#| name: value` line, or an empty string"
    m = re.search(rf"^#\|\s*{name}:\s*(.*)$", source, re.M)
    return m[1].strip().strip("'\"") if m else ""


def output(o, alt, files):
    "One saved output as Markdown; a picture goes into `files`"
    data = o.get("data", {})
    if "image/png" in data:
        name = PICTURES / f"picture-{len(files) + 1}.png"
        files[name] = b64decode("".join(data["image/png"]))
        return f"![{alt}]({name})"
    if "text/markdown" in data: return "".join(data["text/markdown"])
    txt = "".join(o["text"] if o["output_type"] == "stream" else data.get("text/plain", []))
    return "\n".join("    " + line for line in txt.rstrip().splitlines())


def readme():
    "The files to write, by name"
    parts, files = [], {}
    for c in read_nb(ROOT / "nbs/index.ipynb").cells:
        src = c.source.strip()
        body = re.sub(r"^#\|.*\n?", "", src, flags=re.M).strip()
        if re.search(r"^#\|\s*(hide|include)", src, re.M) or not body: continue
        if c.cell_type == "markdown": parts.append(re.sub(r"\]\((?!https?:|#|/)(?:\.\./)?", "](nbs/", body))
        elif c.cell_type == "code":
            if option(src, "echo") != "false": parts.append(f"``` python\n{body}\n```")
            parts += filter(None, [output(o, option(src, "fig-alt"), files) for o in c.get("outputs", [])])
    parts.insert(1, "<!-- From nbs/index.ipynb by scripts/readme.py: do not edit -->")
    files[Path("README.md")] = ("\n\n".join(parts) + "\n").encode()
    return files


files = readme()
stale = [str(n) for n, raw in files.items() if not (ROOT / n).exists() or (ROOT / n).read_bytes() != raw]
if "--check" in sys.argv: sys.exit(f"run `make prepare`: {stale}" if stale else 0)
(ROOT / PICTURES).mkdir(exist_ok=True)
for n, raw in files.items(): (ROOT / n).write_bytes(raw)
