"""Build the website from `_quarto.yml` and saved outputs, without a CDN: `python scripts/build_site.py [OUT]`

smalldocs does the work, on a copy in which nbdev's directives are translated for Quarto. KaTeX is fetched once from npm into `.site_vendor/`. Problems
of the site (a dead link, a picture without alt text, a listed page that is missing) are printed, and the exit code is then 1.
"""
import ast
import hashlib
import html
import importlib
import inspect
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from base64 import b64encode
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from mend_site import finish
from smalldocs import api
from smalldocs.config import load
from smalldocs.site import Site

ROOT, VENDOR = Path(__file__).resolve().parents[1], Path(__file__).resolve().parents[1] / ".site_vendor"
PACKAGES = {  # name: version, sha512 of npm's tarball, the files that the site needs
    "katex": ("0.16.11", "RQrI8rlHY92OLf3rho/Ts8i/XvjgguEjOkO1BEXcU3N8BqPpSzBNwV/G0Ukr+P/l3ivvJUE/Fa/CwbS6HesGNQ==",
              r"dist/(katex\.min\.(js|css)|contrib/auto-render\.min\.js|fonts/.*\.woff2)|LICENSE")}


def fetch():
    "npm's tarballs, and which of their files the site needs; ends the program if they cannot be fetched"
    for name, (version, sha, wanted) in PACKAGES.items():
        tgz = VENDOR / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"  # what `npm pack` calls it
        if not tgz.exists():
            if not (npm := shutil.which("npm")): sys.exit(f"npm is missing: install Node.js, or put {name} {version} from npm into {tgz}")
            VENDOR.mkdir(exist_ok=True)
            r = subprocess.run([npm, "pack", f"{name}@{version}", "--silent", "--fetch-retries=1"], cwd=VENDOR, capture_output=True, text=True)
            if r.returncode or not tgz.exists(): sys.exit(f"npm could not fetch {name} {version}: {r.stderr.strip() or r.stdout.strip()}")
        if b64encode(hashlib.sha512(tgz.read_bytes()).digest()).decode() != sha: sys.exit(f"{tgz} is not {name} {version} as pinned in {__file__}: delete it")
        yield name.rpartition("/")[2], tgz, wanted


def unpack(tgz, wanted, out):
    with tarfile.open(tgz) as t:
        for m in t.getmembers():
            fn = m.name.partition("/")[2]
            if not m.isfile() or not re.fullmatch(wanted, fn): continue
            to = out / fn.removeprefix("dist/")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(t.extractfile(m).read())


# ------------------------------------------------------------ notebooks

def text(x): return "".join(x)


def plain(md): return " ".join(re.sub(r"<[^>]+>|[*`#$]|(?<!\w)_+|_+(?!\w)|\]\([^)]*\)|\[", "", md).split())


def split_cell(src):
    "The nbdev directives, the Quarto options and the code of a cell"
    words, opts, lines = [], {}, src.split("\n")
    while lines and lines[0].startswith("#|"):
        o = yaml.safe_load(lines.pop(0)[2:].strip())
        opts.update(o) if isinstance(o, dict) else words.append(str(o).split()[0])
    return words, opts, "\n".join(lines).strip("\n")


def markdown(src): return dict(cell_type="markdown", metadata={}, source=src)


def links(*found): return markdown("::: {.page-links}\n" + " ".join(found) + "\n:::")


def doors(name, repo):
    "Links to run, download and read a notebook of `repo`"
    at = f"{repo}/blob/main/{name}"
    return links(f"[Open in Colab]({at.replace('github.com', 'colab.research.google.com/github')})",
                 f'<a href="{posixpath.basename(name)}" download>Download the notebook</a>', f"[Source on GitHub]({at})")


def still(src):
    "Show the still picture under an explorable only to readers without JavaScript; the caption stays"
    return re.sub(r"^!\[(.*?)\]\((\S+)\)", lambda m: f'<noscript><img class="img-fluid" alt="{html.escape(m[1])}" src="{m[2]}"></noscript>', src)


def moves(cell): return any("data-explorable" in text(o["data"].get("text/html", "")) for o in cell.get("outputs", []) if "data" in o)


def sized(o):
    "An output in which the address of a picture ends in # and the width at which to show it, for `mend_site`"
    width = o.get("metadata", {}).get("image/png", {}).get("width")
    return {**o, "data": {**o["data"], "image/png": f"{text(o['data']['image/png']).strip()}#{width}"}} if width else o


def translate(nb, top=()):
    "A notebook as smalldocs reads it: a title, the cells `top`, only Quarto's options, and alt text for each picture"
    cells, front, head = [], [], ""
    for i, c in enumerate(nb["cells"]):
        src, fold = text(c["source"]), ""
        if c["cell_type"] == "markdown":
            if not head and (m := re.match(r"# (.*)\n*(?:> (.*))?\n*", src)):
                keys = dict(title=m[1], description=m[2] and plain(m[2]))
                front = [dict(cell_type="raw", metadata={}, source="---\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in keys.items() if v) + "---")]
                head, src = plain(m[1]), src[m.end():]
            if i and moves(nb["cells"][i - 1]): src = still(src)
            for h in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", src, flags=re.M | re.S), re.M): head = plain(h)
        elif c["cell_type"] == "code":
            words, opts, code = split_cell(src)
            if "hide" in words or not code: continue
            m = re.match(r"# (Solution.*)", code)
            if opts.get("code-fold") is True and (m or "code-summary" in opts):  # with its output, which is the answer
                fold = opts.pop("code-summary", m and m[1])
                del opts["code-fold"]
            follows = text(nb["cells"][i + 1]["source"]) if i + 1 < len(nb["cells"]) else ""
            caption = re.match(r"\*(Figure\b.*?)\*\s*$", follows.split("\n\n")[0], re.S)
            opts.setdefault("code-overflow", "wrap")
            opts.setdefault("fig-alt", plain(caption[1]) if caption else f"Figure: {head}")
            src = "".join(f"#| {k}: {json.dumps(v, ensure_ascii=False)}\n" for k, v in opts.items()) + code
        new = {**c, "source": src}
        if "outputs" in c: new["outputs"] = [sized(o) for o in c["outputs"]]
        cells += [markdown(f"<details>\n<summary>{fold}</summary>\n"), new, markdown("</details>\n")] if fold else [new]
    return {**nb, "cells": [*front, *top, *cells]}


# ------------------------------------------------------------ API pages

def assigned(src):
    "The line in which a source assigns each of its top-level names"
    def names(t): return [t.id] if isinstance(t, ast.Name) else [n for o in getattr(t, "elts", []) for n in names(o)]
    found = [o for o in ast.parse(src).body if isinstance(o, (ast.Assign, ast.AnnAssign))]
    return {n: o for o in found for t in (o.targets if isinstance(o, ast.Assign) else [o.target]) for n in names(t)}


def values(mod):
    "The public names that a module itself assigns and that are neither functions nor classes, as Markdown; smalldocs leaves them out"
    src, names = inspect.getsource(mod), {o.__name__ for o in api.own(mod)}
    lines, at = src.splitlines(), assigned(src)
    for n in mod.__all__:
        if n in names or n not in at: continue  # a name that a module only passes on has its entry where it is defined
        v = getattr(mod, n)
        says = lines[at[n].end_lineno - 1][at[n].end_col_offset:].partition("#")[2]
        above = lines[at[n].lineno - 2]
        says = says.strip() or (above.lstrip("# ") if above.startswith("# ") and not re.match(r"# (%%|\.\./)", above) else "")
        kind = f"`{type(v).__name__}`" + (f" of {len(v)}" if hasattr(v, "__len__") else f", `{v!r}`" if isinstance(v, (int, float, str)) else "")
        keys = ": " + ", ".join(f"`{k!r}`" for k in v) if isinstance(v, (dict, list)) and all(isinstance(k, str) for k in v) else ""
        yield n, f"## {n} {{#{n}}}\n\n{says.rstrip('.') + '. ' if says else ''}{kind[:1].upper()}{kind[1:]}{keys}.\n"


def write_api(root, conf, repo):
    "One page per module, one that lists them all, and `_symbols.json` for links from names in the text"
    api.build(api.Settings.read(root, conf))
    pkg, = conf["packages"]
    out, rows, index = root / conf["out"], [], json.loads((root / "_symbols.json").read_text())
    mods = api.package_modules(pkg)
    shorts = Counter(o.__name__.rpartition(".")[2] for o in mods)
    for mod in mods:
        short, last = mod.__name__.removeprefix(f"{pkg}."), mod.__name__.rpartition(".")[2]
        was, page = out / f"{last if shorts[last] == 1 else mod.__name__}.qmd", out / f"{short}.qmd"  # the name that smalldocs gives it, and its name here
        was.rename(page)
        index = {k: v.replace(f"/{was.name}#", f"/{page.name}#") for k, v in index.items()}
        more = dict(values(mod)) if hasattr(mod, "__all__") else {}
        if not more and not api.own(mod):
            page.unlink()  # a module like metarisk_nb.all only passes on what others define
            continue
        note = re.search(r"File to edit: [./]*(\S+\.ipynb)", inspect.getsource(mod))[1]
        source = links(f"[Notebook](/{note})", f"[Source on GitHub]({repo}/blob/main/{mod.__name__.replace('.', '/')}.py)")["source"]
        front = f"---\ntitle: {mod.__name__}\ndescription: {json.dumps(plain(api.summary(mod)))}\n---\n"
        page.write_text("\n".join([front + source + "\n\n" + page.read_text().split("\n---\n", 1)[1], *more.values()]))
        index.update({f"{mod.__name__}.{n}": f"/{conf['out']}/{page.name}#{n}" for n in more})
        names = [o.__name__ for o in api.own(mod)] + list(more)
        rows.append(f"## [{mod.__name__}]({page.name}) {{#{short}}}\n\n{api.summary(mod)}\n\n" + ", ".join(f"[`{n}`]({page.name}#{n})" for n in names) + "\n")
    (out / "index.qmd").write_text(f"---\ntitle: All names\ndescription: Every public name, module by module\n---\n\n`from {pkg}.all import *` imports them all.\n\n"
                                   + "\n".join(rows))
    bare = Counter(v.partition("#")[2] for k, v in index.items() if k.startswith(f"{pkg}."))
    (root / "_symbols.json").write_text(json.dumps({k: v for k, v in index.items() if bare[k] < 2}))  # a bare `measure` may belong to either module


# ------------------------------------------------------------ checks

class Page(HTMLParser):
    "Ids, links, files and pictures of a page"
    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.files, self.pictures = set(), [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "link" and a.get("rel") != "canonical": self.files.append(a.get("href"))
        if tag in ("script", "img", "iframe", "source", "video") and a.get("src"): self.files.append(a["src"])
        if tag == "img": self.pictures.append((a.get("alt") or "", (a.get("src") or "")[:60]))


def check(site):
    "A line for each dead link, each file from another site and each picture without alt text"
    pages = {fn: Page(fn.read_text()) for fn in sorted(site.rglob("*.html"))}
    found = [e["href"] for e in json.loads((site / "search.json").read_text())]

    def dead(fn, href):
        u = urlsplit(href)
        to = ((site if u.path.startswith("/") else fn.parent) / unquote(u.path).lstrip("/")).resolve() if u.path else fn
        if to.is_dir(): to /= "index.html"
        if not to.is_file(): return "no such file"
        if u.fragment and to in pages and unquote(u.fragment) not in pages[to].ids: return "no such anchor"

    where = {}  # a dead link in the sidebar is on all pages, and gets one line
    for fn, p in pages.items():
        for href in dict.fromkeys(p.links + p.files + (found if fn == site / "index.html" else [])):
            u = urlsplit(href)
            if u.scheme or u.netloc: why = "comes from elsewhere" if href in p.files and u.scheme != "data" else None
            else: why = dead(fn, href)
            if why: where.setdefault((posixpath.basename(href) or href, why), []).append(fn)
        for alt, src in p.pictures:
            if not alt.strip(): where.setdefault((src, "a picture without alt text"), []).append(fn)
    return [f"{what}: {why}, on {fns[0].relative_to(site)}" + (f" and {len(fns) - 1} more" if fns[1:] else "") for (what, why), fns in where.items()]


# ------------------------------------------------------------ the whole site

def bring_to_life(site, root):
    "Add the ES modules of the explorables, and the script that loads them on pages with an explorable"
    modules = root / "metarisk_nb/explorables"
    if not modules.is_dir(): return
    shutil.copytree(modules, site / "site_libs/explorables")
    for fn in site.rglob("*.html"):
        page, at = fn.read_text(), "../" * (len(fn.relative_to(site).parts) - 1) + "site_libs/explorables"
        if "data-explorable=" not in page: continue
        page = page.replace("</head>", f'<link rel="stylesheet" href="{at}/kit.css">\n</head>', 1)
        fn.write_text(page.replace("</body>", f'<script type="module" src="{at}/page.js"></script>\n</body>', 1))


def mirror(root, tmp, out, repo, name=""):
    "Make the source of the site in `tmp`: translated notebooks, and links to everything else"
    for fn in root.iterdir():
        to, inside = tmp / fn.name, f"{name}{fn.name}"
        if fn.name in ("api", "_symbols.json") or fn.name.startswith(".") or fn.resolve() == out: continue
        if fn.suffix == ".ipynb": to.write_text(json.dumps(translate(json.loads(fn.read_text()), [doors(inside, repo)] if repo else [])))
        elif fn.name == "nbs" or (root.name == "nbs" and (fn.name == "images" or any(fn.glob("*.ipynb")))):
            to.mkdir()
            mirror(fn, to, out, repo, f"{inside}/")
        else: to.symlink_to(fn)


def build(out, root=ROOT):
    "Build the site of the project in `root` into `out`, and return the list of problems"
    if out.exists() and any(out.iterdir()) and not (out / "site_libs").is_dir(): sys.exit(f"{out} is not a website, and building the site would empty it: name another folder")
    libs = list(fetch())
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp).resolve()
        web = yaml.safe_load((root / "_quarto.yml").read_text())["website"]
        repo = web.get("repo-url")
        mirror(root, tmp, out, repo)
        project = load(tmp)
        project.config["project"]["output-dir"] = "_built"
        if conf := project.smalldocs.pop("api", None): write_api(tmp, conf, repo)
        site = Site(project, quiet=True)
        site.build()
        known = ": broken link ", "respect-user-color-scheme"  # `check` finds broken links too, with anchors; smalldocs always follows the system's colour scheme
        problems = [o for o in site.warnings if not any(k in o for k in known)]
        for name, tgz, wanted in libs: unpack(tgz, wanted, site.out / "site_libs" / name)
        for fn in site.out.rglob("*.html"): finish(fn, site.out, web.get("site-url"))
        for fn in site.out.glob("site_libs/themes/*.css"): fn.write_text(re.sub(r"@import url\(https:[^)]*\);", "", fn.read_text()))  # fonts from other sites
        for o in site.pages:
            if o.suffix == ".ipynb": shutil.copy(root / o, site.out / o)
        bring_to_life(site.out, root)
        problems += check(site.out)
        if out.exists(): shutil.rmtree(out)
        shutil.copytree(site.out, out)
    print(f"{len(site.pages)} pages in {out}")
    return problems


if __name__ == "__main__":
    importlib.import_module("matplotlib").use("agg")
    sys.exit("\n".join(["The site is built, but:", *p]) if (p := build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_site").resolve())) else 0)
