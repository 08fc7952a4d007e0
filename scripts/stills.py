"""Photograph the explorables for the lessons, and say how smoothly they move: `python scripts/stills.py`

Each explorable is opened on a page without a kernel in headless Chromium, brought by mouse and keys into the state that the lesson's caption
describes, and saved as a picture in nbs/images. Then its first handle is dragged for three seconds, and the times from frame to frame are printed.
"""
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/course")]
from test_explorables import drag, player, shown

from metarisk_nb.widget import InnerStep, NoiseLab, RiskExplorer, SpectrumDesigner

RECORD = """() => { window.frames_ms = []; let last = performance.now();
    const next = (now) => { frames_ms.push(now - last); last = now; requestAnimationFrame(next) }; requestAnimationFrame(next) }"""
TEN = [.3, 2.6, .1, .8, 4.1, .2, 1.4, .5, .1, .9]  # the batch of lesson 00


def untouched(p): pass


def lift(p): drag(p, p.get_by_role("slider", name="loss of sample 7"), .3)


def apart(p):
    for sample, key in ("1", "ArrowUp"), ("2", "ArrowDown"):
        p.get_by_role("slider", name=f"what sample {sample} wants").focus()
        for _ in range(10): p.keyboard.press(key)
    p.locator(":focus").blur()


def outlined():
    d = SpectrumDesigner([0, .5, 2.5, 2.5, 2])
    d.beside = "icvar:.5"
    return d


def to_the_end(p):
    p.get_by_label("Step", exact=True).focus()
    p.keyboard.press("End")


STILLS = dict(risk_explorer=(RiskExplorer, untouched), risk_explorer_dragged=(lambda: RiskExplorer(TEN, "cvar:.2"), lift),
              spectrum_designer=(SpectrumDesigner, untouched), knots_by_hand=(outlined, untouched),
              inner_step=(InnerStep, apart), curriculum_player=(player, to_the_end), noise_lab=(NoiseLab, untouched))


def wiggle(p, node, seconds=3):
    "Milliseconds from frame to frame, in order of size, while the mouse drags `node` to and fro"
    b = node.bounding_box()
    x, y, across = b["x"] + b["width"] / 2, b["y"] + b["height"] / 2, b["width"] > b["height"]
    reach = max(b["width"], b["height"], 80) / 2 - 2
    p.mouse.move(x, y)
    p.mouse.down()
    p.evaluate(RECORD)
    end, side = time.monotonic() + seconds, 1
    while time.monotonic() < end:
        p.mouse.move(x + side * reach * across, y + side * reach * (not across), steps=30)
        side = -side
    ms = sorted(p.evaluate("frames_ms"))
    p.mouse.up()
    return ms


if __name__ == "__main__":
    for name, (make, act) in STILLS.items():
        with tempfile.TemporaryDirectory() as tmp, shown(Path(tmp), make(), width=760, scale=2) as p:
            act(p)
            p.wait_for_timeout(500)
            p.locator("figure.explorable").screenshot(path=ROOT / f"nbs/images/{name}.png")
            ms = wiggle(p, p.locator("figure.explorable [role=slider], figure.explorable input[type=range]").first) if name != "noise_lab" else None
            if ms: print(f"{name:22} {len(ms)} frames, median {ms[len(ms) // 2]:.1f} ms, 95% {ms[int(.95 * len(ms))]:.1f}, worst {ms[-1]:.1f}")
