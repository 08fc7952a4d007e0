// Ten losses under a risk: drag a bar, and the sort, the weights and the shares of the gradient move along.
import { bars, fixed, html, mount, percent, plot, range, riddles, select, set, settled, slider, svg, write } from "./kit.js";
import { mean, risk } from "./risks.js";

const TOP = 5;
const KNOBS = {
  expected: [], cvar: [["α", .05, 1, .05]], icvar: [["α", .05, 1, .05]], trimmed: [["α", 0, .45, .05]],
  human: [["a", 0, 1, .05], ["b", 0, 1, .05]], meanvar: [["c", 0, 1, .05]], entropic: [["t", -2, 5, .05]], extremile: [["r", 1, 10, .5]], evar: [["α", .05, 1, .05]],
};
const NAMES = {
  expected: "mean", cvar: "CVaR: the worst share", icvar: "inverted CVaR: the best share", trimmed: "trimmed: without both ends", human: "human-aligned: both ends",
  meanvar: "mean and variance", entropic: "entropic: a soft maximum", extremile: "extremile: worst of r draws", evar: "EVaR: entropic value at risk",
};

export const defaults = {
  losses: [.4, 2.1, .2, 3.4, .9, .1, 1.3, .6, 2.7, .3], name: "cvar",
  params: { expected: [], cvar: [.3], icvar: [.3], trimmed: [.2], human: [.4, .3], meanvar: [.1], entropic: [1], extremile: [2], evar: [.3] },
};

// Everything that is shown, as numbers: `order` and `weights` by place, `shares` by sample
export function compute({ losses, name, params }) {
  const order = losses.map((_, i) => i).sort((i, j) => losses[j] - losses[i] || i - j);
  const sorted = order.map((i) => losses[i]), { value, influence } = risk(name, params[name], sorted);
  const shares = Array(losses.length);
  order.forEach((i, place) => { shares[i] = influence[place]; });
  return { value, mean: mean(losses), order, weights: influence, shares };
}

export function words({ name, params }, { value, mean: m, shares }) {
  const all = shares.map((s, i) => [s, i + 1]).filter(([s]) => Math.abs(s) > 5e-4);
  const each = all.map(([s, i]) => `${i}: ${percent(settled(s))}`).join(", ");
  const p = params[name].length ? `(${params[name].map((o) => fixed(o, 2)).join(", ")})` : "";
  return `${name}${p} = ${fixed(settled(value), 3)}; the mean is ${fixed(settled(m), 3)}. Shares of the gradient by sample: ${each}.`;
}

const CHALLENGES = [
  { ask: "Make CVaR equal to the mean, with α at most 0.5", why: "the worst share is like the rest only when all losses are equal.",
    solved: (o) => o.name === "cvar" && o.params.cvar[0] <= .5 && Math.abs(o.value - o.mean) < .005,
    answer: { losses: Array(10).fill(1), name: "cvar" } },
  { ask: "Blind the trimmed risk: keep it at 0.3 or less, although the mean is at least 1", why: "whatever is cut off at the top can be arbitrarily bad.",
    solved: (o) => o.name === "trimmed" && o.value <= .3 && o.mean >= 1,
    answer: { losses: [.2, 5, .2, .2, .2, .2, .2, 5, .2, .2], name: "trimmed" } },
  { ask: "Give one sample the whole gradient", why: "one tenth of ten samples is a single sample, so training ignores all the others.",
    solved: (o) => Math.max(...o.shares) > .999,
    answer: { losses: defaults.losses, name: "cvar", params: { ...defaults.params, cvar: [.1] } } },
];

function build(change, state) {
  const n = state().losses.length, sample = (i) => [i + .5, String(i + 1)], samples = Array.from({ length: n }, (_, i) => sample(i));
  const yes = [0, .5, 1].map((v) => [v, percent(v)]);
  const losses = plot({ title: "The losses: drag a bar", x: [0, n], y: [0, TOP], xlabel: "sample", xticks: samples, yticks: [0, 1, 2, 3, 4, 5].map((v) => [v]) });
  const sorted = plot({ title: "Sorted, from worst to best", x: [0, n], y: [0, TOP], xlabel: "sample", yticks: [0, 1, 2, 3, 4, 5].map((v) => [v]) });
  const shares = plot({ title: "Each sample's share of the gradient", x: [0, n], y: [-.25, 1], xlabel: "sample", xticks: samples, yticks: yes });
  const weights = plot({ title: "The weight of each place", x: [0, n], y: [-.25, 1], xlabel: "place, from worst to best", xticks: samples, yticks: yes });
  const drawn = { losses: bars(losses, n), sorted: bars(sorted, n), shares: bars(shares, n), weights: bars(weights, n) };
  const whose = samples.map(([x]) => svg("text", { x: sorted.X(x), y: 177, "text-anchor": "middle", class: "label" }));
  sorted.layer.append(...whose);
  const put = (i) => (v) => change("losses", state().losses.map((o, j) => (j === i ? Math.round(v * 100) / 100 : o)));
  const tell = samples.map(([x], i) => {
    const area = svg("rect", { x: losses.X(i), y: 0, width: losses.width / n, height: 180, fill: "transparent" });
    const grip = svg("rect", { class: "grip", height: 6, width: losses.width / n * .8, x: losses.X(i + .1), rx: 3, fill: "var(--ink)" });
    const node = svg("g", {}, area, grip);
    losses.layer.append(node);
    const says = slider(node, { label: `loss of sample ${i + 1}`, lo: 0, hi: TOP, step: .1, read: (e) => losses.at(e)[1], get: () => state().losses[i], put: put(i), says: (v) => fixed(v, 2) });
    return () => { says(); set(grip, { y: losses.Y(state().losses[i]) - 3 }); };
  });
  const names = select("Risk", Object.keys(KNOBS).map((k) => [k, NAMES[k]]), state().name, (v) => change("name", v));
  const knobs = Object.fromEntries(Object.entries(KNOBS).map(([k, all]) => [k, all.map(([label, lo, hi, step], i) =>
    range(label, { lo, hi, step }, state().params[k][i], (v) => change("params", { ...state().params, [k]: state().params[k].map((o, j) => (j === i ? v : o)) })))]));
  const game = riddles(CHALLENGES, change);

  function draw(s) {
    const o = compute(s), colour = (i) => (Math.abs(o.shares[i]) > 1e-3 ? "var(--learned)" : "var(--plain)");
    drawn.losses.move(s.losses, colour);
    drawn.sorted.move(o.order.map((i) => s.losses[i]), (place) => colour(o.order[place]));
    drawn.shares.move(o.shares.map((v) => Math.max(v, -.25)), colour);
    drawn.weights.move(o.weights.map((v) => Math.max(v, -.25)), (place) => colour(o.order[place]));
    whose.forEach((t, place) => write(t, String(o.order[place] + 1)));
    tell.forEach((f) => f());
    names.node.value = s.name;
    for (const [k, all] of Object.entries(knobs)) all.forEach((knob, i) => { knob.root.hidden = k !== s.name; knob.show(s.params[k][i]); });
    game.judge({ ...s, ...o });
    return words(s, o);
  }
  const controls = html("div", { class: "controls" }, names.root, ...Object.values(knobs).flat().map((o) => o.root));
  return { parts: [controls, html("div", { class: "plots" }, losses.root, sorted.root, shares.root, weights.root), game.root], draw };
}

export const render = (context) => mount(context, ["losses", "name", "params"], build);
export default { render };
