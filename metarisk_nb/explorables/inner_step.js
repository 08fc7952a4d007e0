// One inner step in the plane: two samples pull at the model, the weight mixes them, and validation says which way the weight should go.
import { clamp, fixed, html, inside, mount, movable, plot, range, riddles, set, settled, slider, svg, write } from "./kit.js";

const LO = [-1, -2], HI = [4, 2], MOST = 3, SHOWN = 5e-4;

export const defaults = { wants: [[3, 0], [1, 0]], validation: [2, 0], weight: .5, lr: .5 };

const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const half = (a) => dot(a, a) / 2;
const mix = (w, [a, b]) => a.map((o, k) => w * o + (1 - w) * b[k]);

// The model starts at zero, so the gradients of the losses are minus what the samples want
export function compute({ wants, validation, weight, lr }) {
  const w = [weight, 1 - weight], theta = mix(weight, wants).map((o) => lr * o), lambda = theta.map((o, k) => o - validation[k]);
  const dw = wants.map((a) => lr * dot(a, lambda)), mean = dot(w, dw);
  return { theta, risk: half(lambda), losses: wants.map(half), dw, dphi: w.map((o, i) => o * (dw[i] - mean)), slope: dw[0] - dw[1] };
}

// With `d` decimals, and without a minus before zero
function shown(x, d) {
  const s = fixed(settled(x), d);
  return +s === 0 ? s.replace("-", "") : s;
}
const pair = (a, d) => `(${a.map((o) => shown(o, d)).join(", ")})`;

export function words({ weight }, { theta, risk, losses, dw, dphi, slope }) {
  const says = Math.abs(slope) < SHOWN ? "The weights do not matter here." : `${slope < 0 ? "More" : "Less"} weight on sample 1 would help.`;
  const [l1, l2] = losses.map((o) => shown(o, 3));
  return `${says} The losses are ${l1} and ${l2}, the weights ${shown(weight, 2)} and ${shown(1 - weight, 2)}. `
    + `The step goes to θ′ = ${pair(theta, 2)}, where the validation risk is ${shown(risk, 3)}. `
    + `∂ρ/∂w = ${pair(dw, 3)}, and through the softmax ∂ρ/∂φ = ${pair(dphi, 3)}.`;
}

const easier = ({ losses }) => (losses[0] < losses[1] ? 0 : 1);

const CHALLENGES = [
  { ask: "Make the hypergradient vanish, although the risk is at least 0.5",
    why: "no mixture of the two pulls brings the model closer to where validation wants it. Closest need not be close.",
    solved: (o) => Math.abs(o.slope) < .02 && o.risk >= .5 && half(o.wants[0].map((v, k) => v - o.wants[1][k])) > .05,
    answer: { ...defaults, validation: [1, 1.5] } },
  { ask: "Make the sample with the smaller loss deserve more weight",
    why: "a large loss alone earns no weight. What counts is whether a sample pulls towards where validation wants the model.",
    solved: (o) => o.losses[0] !== o.losses[1] && (easier(o) ? o.slope : -o.slope) > .02, answer: { ...defaults, validation: [.5, 0] } },
];

// From one pixel to another, with a head
function arrow([x0, y0], [x1, y1]) {
  const long = Math.hypot(x1 - x0, y1 - y0), head = Math.min(9, long / 2), [u, v] = [(x1 - x0) / (long || 1), (y1 - y0) / (long || 1)];
  const wing = (s) => `${x1 - head * (u + s * .55 * v)},${y1 - head * (v - s * .55 * u)}`;
  return `M${x0},${y0}L${x1},${y1}M${wing(1)}L${x1},${y1}L${wing(-1)}`;
}

const round = { "stroke-linecap": "round", "stroke-linejoin": "round", "pointer-events": "none" };
const label = (text) => svg("text", { "text-anchor": "middle", "paint-order": "stroke", stroke: "var(--ground)", "stroke-width": 4, ...round }, text);
const path = (colour, wide) => svg("path", { fill: "none", stroke: colour, "stroke-width": wide, ...round });
const dashed = (tag, colour, wide) => svg(tag, { fill: "none", stroke: colour, "stroke-width": wide, "stroke-dasharray": "5 4" });

function build(change, state) {
  const numbers = (lo, hi) => Array.from({ length: hi - lo + 1 }, (_, i) => [lo + i]), height = 280;
  const plane = plot({ title: "Drag the points and the weight", x: [LO[0], HI[0]], y: [LO[1], HI[1]], xticks: numbers(-1, 4), yticks: numbers(-2, 2), height });
  const curve = plot({ title: "Validation risk", x: [0, 1], y: [0, MOST], xlabel: "weight on sample 1", xticks: [[0], [.25], [.5], [.75], [1]],
    yticks: numbers(0, MOST), height });
  const at = ([x, y]) => [plane.X(x), plane.Y(y)], unit = plane.X(1) - plane.X(0);
  const rings = [.5, 1, 1.5, 2, 2.5, 3, 4, 5].map((r) => svg("circle", { r: r * unit, fill: "none", stroke: "var(--line)" }));
  const level = dashed("circle", "var(--wrong)", 1), between = svg("line", { stroke: "var(--faint)", "stroke-width": 2 });
  inside(plane).append(...rings, level);
  plane.layer.append(between);

  function point(name, shown, get, put, { fill, stroke = fill }) {
    const grip = svg("circle", { class: "grip", r: 9, fill, stroke, "stroke-width": 3 }), area = svg("circle", { r: 19, fill: "transparent" });
    const node = svg("g", {}, area, grip), text = label(shown), cents = (v) => Math.round(v * 100) / 100;
    plane.layer.append(node);
    const says = movable(node, { label: `what ${name} wants`, lo: LO, hi: HI, step: .1, read: plane.at, get, put: (v) => put(v.map(cents)) });
    return { text, move() {
      says();
      const [x, y] = at(get());
      for (const o of [area, grip]) set(o, { cx: x, cy: y });
      set(text, { x: clamp(x, 50, 308), y: get()[1] > 1.5 ? y + 24 : y - 15 });
    } };
  }
  const put = (i) => (v) => change("wants", state().wants.map((o, j) => (j === i ? v : o))), wants = (i) => () => state().wants[i];
  const points = [
    point("validation", "validation", () => state().validation, (v) => change("validation", v), { fill: "var(--ground)", stroke: "var(--wrong)" }),
    point("sample 1", "1", wants(0), put(0), { fill: "var(--oracle)" }), point("sample 2", "2", wants(1), put(1), { fill: "var(--paper)" }),
  ];

  const stalk = svg("line", { stroke: "var(--learned)", "stroke-width": 2, ...round }), helps = path("var(--says)", 3), share = label("");
  const knob = svg("circle", { class: "grip", r: 8, fill: "var(--learned)" }), near = svg("circle", { r: 17, fill: "transparent" });
  const pin = svg("g", {}, near, knob);
  function along(e) {
    const [a, b] = state().wants, line = a.map((o, k) => o - b[k]), here = plane.at(e).map((o, k) => o - b[k]);
    return dot(line, line) ? dot(here, line) / dot(line, line) : state().weight;
  }
  const told = slider(pin, { label: "weight on sample 1", lo: .01, hi: .99, step: .02, read: along, get: () => state().weight,
    put: (v) => change("weight", Math.round(v * 100) / 100), says: (v) => fixed(v, 2), upright: false });
  const pulls = [path("var(--oracle)", 2.5), path("var(--paper)", 2.5)], step = path("var(--ink)", 4), names = [label("θ"), label("θ′")];
  const [x0, y0] = at([0, 0]), origin = svg("circle", { r: 5, fill: "var(--ink)", cx: x0, cy: y0, "pointer-events": "none" });
  set(names[0], { x: x0 - 10, y: y0 + 18 });
  plane.layer.append(...points.map((o) => o.text), stalk, pin, helps, ...pulls, step, origin, ...names, share);

  const risks = path("var(--wrong)", 2.5), tangent = dashed("line", "var(--ink)", 2), now = svg("circle", { r: 6, fill: "var(--ink)" });
  const [slope, note] = [14, 38].map((y) => svg("text", { class: "label", x: 332, y, "text-anchor": "end" }));
  inside(curve).append(risks, tangent);
  curve.layer.append(now, slope, note);
  const rate = range("learning rate β", { lo: .05, hi: 1, step: .05 }, state().lr, (v) => change("lr", v));
  const game = riddles(CHALLENGES, change);

  function drawPin(s, o) {
    const foot = at(mix(s.weight, s.wants)), [a, b] = s.wants.map(at), long = Math.hypot(a[0] - b[0], a[1] - b[1]);
    const [u, v] = long > 1e-6 ? [(a[0] - b[0]) / long, (a[1] - b[1]) / long] : [1, 0], down = u < 0 ? -1 : 1, n = [-v * down, u * down];
    const head = foot.map((p, k) => p + 26 * n[k]), sign = -Math.sign(o.slope), to = (r) => [head[0] + r * sign * u, head[1] + r * sign * v];
    set(between, { x1: a[0], y1: a[1], x2: b[0], y2: b[1] });
    set(stalk, { x1: foot[0], y1: foot[1], x2: head[0], y2: head[1] });
    for (const c of [knob, near]) set(c, { cx: head[0], cy: head[1] });
    set(helps, { d: Math.abs(o.slope) < SHOWN ? "" : arrow(to(11), to(36)) });
    write(share, `weight ${fixed(s.weight, 2)}`);
    set(share, { x: head[0] + 52 * n[0], y: head[1] + 4 + 22 * n[1] });
    told();
  }

  function drawCurve(s, o) {
    const y = (q) => compute({ ...s, weight: q }).risk;
    const [x1, x2] = [-.25, .25].map((h) => curve.X(s.weight + h)), [y1, y2] = [-.25, .25].map((h) => curve.Y(o.risk + h * o.slope));
    set(risks, { d: "M" + Array.from({ length: 41 }, (_, i) => `${curve.X(i / 40)},${curve.Y(y(i / 40))}`).join("L") });
    set(tangent, { x1, x2, y1, y2 });
    set(now, { cx: curve.X(s.weight), cy: curve.Y(Math.min(o.risk, MOST)) });
    write(slope, `slope ${shown(o.slope, 3)}`);
    write(note, o.risk > MOST ? `now at ${shown(o.risk, 2)}, above the picture` : "");
  }

  function draw(s) {
    const o = compute(s), [cx, cy] = at(s.validation), tip = at(o.theta);
    for (const r of rings) set(r, { cx, cy });
    set(level, { cx, cy, r: Math.hypot(tip[0] - cx, tip[1] - cy) });
    points.forEach((p) => p.move());
    pulls.forEach((p, i) => set(p, { d: arrow(at([0, 0]), at(s.wants[i].map((v) => s.lr * v))) }));
    set(step, { d: arrow(at([0, 0]), tip) });
    set(names[1], { x: tip[0] - 12, y: tip[1] + 19 });
    drawPin(s, o);
    drawCurve(s, o);
    rate.show(s.lr);
    game.judge({ ...s, ...o });
    return words(s, o);
  }
  return { parts: [html("div", { class: "controls" }, rate.root), html("div", { class: "plots" }, plane.root, curve.root), game.root], draw };
}

export const render = (context) => mount(context, ["wants", "validation", "weight", "lr"], build);
export default { render };
