// Draw the weights of a risk with a few handles: how concentrated they are, how near to a known risk, and the code that trains with them.
import { copyable, fixed, html, inside, mount, percent, plot, riddles, select, set, settled, slider, svg, write } from "./kit.js";
import { sum, weights } from "./risks.js";

const TOP = 5;
const KNOWN = {
  "expected": ["mean", "expected"], "cvar:.1": ["CVaR(.1): the worst tenth", "cvar", .1], "cvar:.5": ["CVaR(.5): the worse half", "cvar", .5],
  "icvar:.1": ["inverted CVaR(.1): the best tenth", "icvar", .1], "icvar:.5": ["inverted CVaR(.5): the better half", "icvar", .5],
  "trimmed:.1": ["trimmed(.1): without a tenth at each end", "trimmed", .1], "trimmed:.3": ["trimmed(.3): without three tenths at each end", "trimmed", .3],
  "human": ["human-aligned: both ends", "human", .4, .3],
};

// The weights of n places, worst first, on straight lines between the handles; uniform while all are at zero
function drawn(heights, n) {
  const last = heights.length - 1, w = Array.from({ length: n }, (_, i) => {
    const at = (i + .5) / n * last, j = Math.min(Math.floor(at), last - 1);
    return heights[j] + (at - j) * (heights[j + 1] - heights[j]);
  });
  const all = sum(w);
  return w.map((o) => (all ? o / all : 1 / n));
}

export function compute({ heights, beside, n }) {
  const w = drawn(heights, n), [, name, ...p] = KNOWN[beside], known = weights(name, p, n), tenth = Math.ceil(n / 10);
  return {
    weights: w, known, worst: sum(w.slice(0, tenth)), best: sum(w.slice(-tenth)), ess: 1 / (n * sum(w.map((o) => o * o))),
    overlap: sum(w.map((o, i) => Math.min(o, known[i]))),
  };
}

export function words({ beside }, numbers) {
  const [worst, best, ess, overlap] = ["worst", "best", "ess", "overlap"].map((k) => percent(settled(numbers[k])));
  return `The worst tenth has ${worst} of the weight, the best ${best}; effective sample size ${ess} of the batch; `
    + `${overlap} of the weight lies where ${beside} has it.`;
}

// Code that trains with the drawn weights
export function code({ heights, n }) {
  const h = heights.map((o) => String(+fixed(o, 4))).join(", ");
  return `from metarisk_nb.all import *\n\nrisk = SpectrumDesigner([${h}]${n === 100 ? "" : `, n=${n}`}).risk\n`
    + "learn = Learner(dls, model, loss_func, cbs=BatchRisk(risk))";
}

const CHALLENGES = [
  { ask: "Halve the effective sample size", why: "half a batch with equal weights would tell the step as much.",
    solved: (o) => Math.abs(o.ess - .5) < .015, answer: { heights: [5, 3, 1, 0, 0] } },
  { ask: "Agree with inverted CVaR(.5) in at least 85% of the weight", why: "straight lines can follow everything but the jump in the middle.",
    solved: (o) => o.beside === "icvar:.5" && o.overlap >= .85, answer: { heights: [0, 0, 2.5, 5, 5], beside: "icvar:.5" } },
  { ask: "Give both ends more than the middle, and keep at least 80% of the effective sample size", why: "the human-aligned risk does the same.",
    solved: (o) => o.worst > .12 && o.best > .12 && o.ess >= .8, answer: { heights: [3, 1.5, 1, 1.5, 3], beside: "human" } },
];

// The outline of weights over the places, as a path from the left to the right edge of the plot
function outline(p, w) {
  const y = w.map((o) => p.Y(o * w.length)), x = (i) => p.X(100 * i / w.length);
  return `M${p.X(0)},${p.Y(0)}` + y.map((o, i) => `L${x(i)},${o}L${x(i + 1)},${o}`).join("") + `L${p.X(100)},${p.Y(0)}`;
}

// Where weights leave the plot at its top
const above = (w) => Math.max(...w) * w.length;

function build(change, state) {
  const k = state().heights.length, gap = 100 / (k - 1), wide = Math.min(gap, 24), axes = {
    x: [-12, 112], y: [-.35, TOP], xlabel: "of the way from the worst to the best loss",
    xticks: [0, 25, 50, 75, 100].map((v) => [v, percent(v / 100)]), yticks: [0, 1, 2, 3, 4, 5].map((v) => [v]),
  };
  const hand = plot({ title: "Draw: drag a handle", ...axes }), scaled = plot({ title: "Weights, times uniform", ...axes });
  const line = svg("polyline", { fill: "none", stroke: "var(--learned)", "stroke-width": 2 }), under = svg("path", { fill: "var(--learned)", opacity: .18 });
  hand.layer.append(under, line);
  const put = (i) => (v) => change("heights", state().heights.map((o, j) => (j === i ? Math.round(v * 100) / 100 : o)));
  const handles = state().heights.map((_, i) => {
    const area = svg("rect", { x: hand.X(i * gap - wide / 2), y: 24, width: hand.X(wide) - hand.X(0), height: hand.Y(0) - 14, fill: "transparent" });
    const grip = svg("circle", { class: "grip", cx: hand.X(i * gap), r: 8, fill: "var(--ink)" }), node = svg("g", {}, area, grip);
    hand.layer.append(node);
    const where = i === 0 ? "worst loss" : i === k - 1 ? "best loss" : `${percent(i * gap / 100)} of the way`;
    const says = slider(node, { label: `height at the ${where}`, lo: 0, hi: TOP, step: .1, read: (e) => hand.at(e)[1], get: () => state().heights[i],
      put: put(i), says: (v) => fixed(v, 2) });
    return () => { says(); set(grip, { cy: hand.Y(state().heights[i]) }); };
  });
  const layer = inside(scaled), area = svg("path", { fill: "var(--learned)", opacity: .75 });
  const known = svg("path", { fill: "none", stroke: "var(--ink)", "stroke-width": 2 });
  const one = svg("line", { x1: scaled.X(0), x2: scaled.X(100), y1: scaled.Y(1), y2: scaled.Y(1), stroke: "var(--ink)", "stroke-dasharray": "5 4" });
  layer.append(area, one, known);
  const [whose, note] = [14, 38].map((y) => svg("text", { x: 332, y, "text-anchor": "end", class: "label" }));
  scaled.layer.append(whose, note);
  const beside = select("Beside it:", Object.entries(KNOWN).map(([v, [words]]) => [v, words]), state().beside, (v) => change("beside", v));
  const train = copyable("Train with this"), game = riddles(CHALLENGES, change);

  function draw(s) {
    const o = compute(s), at = s.heights.map((h, i) => `${hand.X(i * gap)},${hand.Y(h)}`);
    set(line, { points: at.join(" ") });
    set(under, { d: `M${hand.X(0)},${hand.Y(0)}L${at.join("L")}L${hand.X(100)},${hand.Y(0)}Z` });
    handles.forEach((f) => f());
    set(area, { d: outline(scaled, o.weights) + "Z" });
    set(known, { d: outline(scaled, o.known) });
    const high = [["yours", o.weights], [s.beside, o.known]].filter(([, w]) => above(w) > TOP + 1e-9);
    write(note, high.length ? "goes up to " + high.map(([name, w]) => `${fixed(above(w), 1)} (${name})`).join(", ") : "");
    write(whose, `outline: ${s.beside}`);
    beside.node.value = s.beside;
    train.show(code(s));
    game.judge({ ...s, ...o });
    return words(s, o);
  }
  return { parts: [html("div", { class: "controls" }, beside.root), html("div", { class: "plots" }, hand.root, scaled.root), game.root, train.root], draw };
}

export const render = (context) => mount(context, ["heights", "beside", "n"], build);
export default { render };
