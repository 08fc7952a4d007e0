"Finish the pages that smalldocs has built: formulas without a CDN, figures as files, and what keyboards and screen readers need"
import re
import struct
from base64 import b64decode

MENDED = {  # for keyboards and screen readers
    r'(data-bs-toggle="collapse" data-bs-target="(#[^"]+)") role="navigation"': r'href="\2" role="button" \1',  # the button that folds a section of the sidebar
    r'<nav class="navbar': '<nav aria-label="Site" class="navbar',
    r'<nav class="quarto-secondary-nav"': '<nav aria-label="This page" class="quarto-secondary-nav"',
    r'<nav id="quarto-sidebar"': '<nav aria-label="Pages" id="quarto-sidebar"',
    r'<nav id="TOC" role="doc-toc"': '<nav aria-labelledby="toc-title" id="TOC" role="doc-toc"',
    r'<div id="quarto-margin-sidebar"': '<div role="complementary" aria-label="About this page" id="quarto-margin-sidebar"',
    r'<nav class="page-navigation"': '<nav aria-label="Previous and next page" class="page-navigation"',
    r'(<i class="bi[^"]*") role="img"': r'\1 aria-hidden="true"',
    r'<th></th>': '<td></td>'}


def pictures(fn, html):
    "Save a page's figures as files beside it, and return the page and the names of the files"
    names = []

    def to_file(m):
        png = b64decode(m[1])
        names.append(f"{fn.stem}_files/figure-{len(names) + 1}.png")
        (fn.parent / names[-1]).parent.mkdir(exist_ok=True)
        (fn.parent / names[-1]).write_bytes(png)
        w, h = struct.unpack(">II", png[16:24])
        shown = int(m[2] or w)
        return f'src="{names[-1]}" width="{shown}" height="{round(h * shown / w)}"'
    return re.sub(r'src="data:image/png;base64,([^"#]*)(?:#(\d+))?"', to_file, html), names


def finish(fn, out, url):
    "Finish a page; its preview is its first figure, if it has one"
    inside = fn.relative_to(out)
    html = re.sub(r"https://[^\"']*/katex@[\d.]+/dist", f"{'../' * (len(inside.parts) - 1)}site_libs/katex", fn.read_text())
    for was, becomes in MENDED.items(): html = re.sub(was, becomes, html)
    html = re.sub(r'(<div class="cell-output[^"]*">\n<pre)(?=><code>(?:(?!\S  +\S)[^<])*</code>)', r'\1 class="running"', html)  # prose without columns may wrap
    html, names = pictures(fn, html)
    if names: html = re.sub(r'(<meta (?:property="og|name="twitter):image" content=")[^"]*', rf"\g<1>{url}{(inside.parent / names[0]).as_posix()}", html)
    fn.write_text(html)
