"""Check that figures can be read where they are shown: `python scripts/figures.py [NOTEBOOK ...]` checks saved pictures, `problems` a figure

A page of the site shows a figure 714 pixels wide. `problems` draws one and finds letters that would be too small there, texts that overlap, legends
on data, bars whose axis starts above zero without a note, and curves that are hidden by others.
"""
import json
import re
import struct
import sys
from base64 import b64decode
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

ROOT = Path(__file__).resolve().parents[1]
SHOWN, LEAST = 714, 11  # Width of a figure on a page, and the smallest height of its letters, in pixels
WIDEST, SHARP = 7.6, 1200  # Largest width of a figure that was cut to its contents, in inches, and smallest width of its file, in pixels


# ------------------------------------------------------------ a figure

def drawn_texts(fig):
    "The texts that the figure draws, including tick labels, but not those that it only stores"
    seen, draw = [], Text.draw

    def note(self, renderer):
        if self.get_visible() and self.get_text().strip(): seen.append(self)
        return draw(self, renderer)

    with patch.object(Text, "draw", note): fig.canvas.draw()
    return list(dict.fromkeys(seen))


def width(fig):
    "Width in inches as a notebook saves the figure: cut to its contents, with a margin of a tenth of an inch"
    return fig.get_tightbbox(fig.canvas.get_renderer()).width + .2


def short(t): return repr(t.get_text()[:30])


def small(fig, texts):
    px, least = SHOWN / width(fig) / 72, min(texts, key=Text.get_fontsize, default=None)
    if least and least.get_fontsize() * px < LEAST: return [f"{short(least)} has letters of {least.get_fontsize() * px:.1f} px"]
    return []


def box(t): return Text.get_window_extent(t).padded(-1)  # without the arrow of an annotation


def overlapping(texts):
    boxes = [(t, box(t)) for t in texts if t.get_rotation() % 90 == 0]
    return [f"{short(a)} and {short(b)} overlap" for (a, x), (b, y) in combinations(boxes, 2) if x.overlaps(y)]


def covers(artist, area):
    "Whether something drawn from data lies in the area"
    if not artist.get_visible(): return False
    if isinstance(artist, PathCollection):
        at = artist.get_offset_transform().transform(artist.get_offsets())
        return any(area.contains(*o) for o in at)
    if isinstance(artist, PolyCollection): return any(artist.get_transform().transform_path(o).intersects_bbox(area) for o in artist.get_paths())
    if isinstance(artist, Patch) and (artist.get_alpha() or 1) < .2: return False  # a tint of the background
    if isinstance(artist, Line2D | Patch):
        return artist.get_transform().transform_path(artist.get_path()).intersects_bbox(area, filled=isinstance(artist, Patch) and artist.get_fill())
    return False


def legends(fig):
    found = []
    for ax in fig.axes:
        if not (legend := ax.get_legend()): continue
        area = Bbox.intersection(legend.get_window_extent().padded(-3), ax.bbox)
        if area and any(covers(o, area) for o in [*ax.lines, *ax.patches, *ax.collections]):
            found.append(f"the legend {[o.get_text() for o in legend.get_texts()]} lies on data")
    return found


def cut_bars(fig):
    found = []
    for ax in fig.axes:
        bars = [o for o in ax.containers if isinstance(o, BarContainer)]
        upright = bars and bars[0].orientation == "vertical"
        axis = ax.yaxis if upright else ax.xaxis
        if not bars or not ax.axison or axis.get_scale() != "linear" or min(axis.get_view_interval()) <= 0: continue
        says = " ".join([ax.get_title(), ax.get_xlabel(), ax.get_ylabel()])
        if not re.search(r"\baxis starts at", says): found.append(f"bars start at {min(axis.get_view_interval()):g} without a note: {says!r}")
    return found


def pixels(fig):
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba()).astype(int)


def equal(a, b):
    "Whether two lines run within three pixels of each other nearly all the way, so that one may cover the other"
    a, b = (o.get_transform().transform_path(o.get_path()).vertices for o in (a, b))
    return a.shape == b.shape and (np.abs(a - b).max(1) < 3).mean() > .8


def hidden(fig):
    "Lines with a name of their own that hardly change a pixel of the figure, and that do not lie on another line"
    lines = [o for ax in fig.axes for o in ax.lines if not o.get_label().startswith("_") and len(o.get_xdata())]
    if not lines: return []
    whole, found = pixels(fig), []
    for o in lines:
        with patch.object(o, "draw", lambda renderer: None): gone = pixels(fig)
        contrast = 255 * (1 - min(to_rgb(o.get_color())))  # with white
        unseen = (np.abs(whole - gone).max(2) > .4 * contrast).sum() < 30
        if unseen and not any(equal(o, other) for other in o.axes.lines if other is not o): found.append(f"the line {o.get_label()!r} cannot be seen")
    return found


def problems(fig):
    "A line for each thing that a reader of the page could not read"
    FigureCanvasAgg(fig)  # the figure of a widget has no canvas that draws
    texts = drawn_texts(fig)
    return small(fig, texts) + overlapping(texts) + legends(fig) + cut_bars(fig) + hidden(fig)


# ------------------------------------------------------------ pictures that notebooks have saved

def saved(nb):
    "The cell, the size in pixels and the width in inches of each figure that matplotlib drew"
    for i, c in enumerate(nb["cells"]):
        for data in (o["data"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})):
            if not re.match(r"<Figure size", "".join(data.get("text/plain", ""))): continue
            w, h = struct.unpack(">II", b64decode("".join(data["image/png"])[:64])[16:24])
            yield i, w, h


def check(fn):
    found = []
    for i, w, _ in saved(json.loads(fn.read_text(encoding="utf-8"))):
        if w > 200 * WIDEST: found.append(f"cell {i}: {w / 200:.1f} inches wide, and {WIDEST} fit a page: see `page_width`")
        if w < SHARP: found.append(f"cell {i}: {w} pixels wide, blurred on a page: see `page_style`")
    return [f"{fn.stem}, {o}" for o in found]


if __name__ == "__main__":
    fns = [Path(o) for o in sys.argv[1:]] or sorted((ROOT / "nbs").glob("**/[!.]*.ipynb"))
    sys.exit("\n".join(p for fn in fns for p in check(fn)))
