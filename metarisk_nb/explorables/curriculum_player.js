// Two stored runs of the same data, played through training: their weights, where the wrong labels sit, and the curves of the test set.
import { bars, button, fixed, html, lines, mount, plot, range, select, set, svg, ticks, write } from "./kit.js";
import { mean, sum, weights } from "./risks.js";

const COLOURS = { expected: "var(--plain)", paper: "var(--paper)", presumption: "var(--default)" };
const colourOf = (run) => COLOURS[run.method] ?? "var(--learned)";
const SECONDS = 8;
const TENTH = { losses: ["worst", "best"], doubt: ["most doubtful", "least doubtful"] };
const ORDER = { losses: "place in the batch, worst to best loss", doubt: "place in the batch, most to least doubtful" };

const atOrBefore = (steps, step) => Math.max(steps.filter((o) => o <= step).length - 1, 0);
const nearest = (steps, step) => steps.reduce((best, o, i) => (Math.abs(o - step) < Math.abs(steps[best] - step) ? i : best), 0);
const lastOf = ({ runs, a, b }) => Math.max(runs[a].step.at(-1), runs[b].step.at(-1));

// A run at a step: `weights` in percent of the uniform one, `worst` and `best` tenth in percent of all weight, `wrong` labels in percent
function at(run, step) {
  const w = run.weights[atOrBefore(run.steps, step)], tenth = Math.ceil(w.length / 10), i = nearest(run.step, step);
  const wrong = run.wrong.length ? run.wrong[i] : [];
  return {
    weights: w, worst: sum(w.slice(0, tenth)) / w.length, best: sum(w.slice(-tenth)) / w.length,
    wrong, half: wrong.length ? mean(wrong.slice(0, wrong.length / 2)) : null, looked: run.step[i], acc: run.acc[i], risk: run.risk[i],
  };
}

export function compute({ runs, a, b, step }) {
  const { target } = runs[a];
  return { a: at(runs[a], step), b: at(runs[b], step), target: target.name ? weights(target.name, target.params, 100).map((o) => 1e4 * o) : [] };
}

export function words({ runs, a, b, step }, numbers) {
  const says = (name, run, o) => {
    const [worst, best] = TENTH[run.order];
    const labels = o.half === null ? "" : ` At step ${o.looked}, ${fixed(o.half, 0)}% of the labels in the worse half of the losses are wrong.`;
    const tenths = `the ${worst} tenth has ${fixed(o.worst, 0)}% of the weight, the ${best} ${fixed(o.best, 0)}%`;
    return `${name}: ${run.label}: at step ${step} ${tenths}; ${run.end}.${labels}`;
  };
  return `${says("A", runs[a], numbers.a)} ${says("B", runs[b], numbers.b)}`;
}

// Height of n equal parts as an area above zero, or its outline
function steps(p, values, area) {
  const n = values.length, points = values.flatMap((v, i) => [[p.X(100 * i / n), p.Y(v)], [p.X(100 * (i + 1) / n), p.Y(v)]]);
  return lines(area ? [[p.X(0), p.Y(0)], ...points, [p.X(100), p.Y(0)]] : points);
}

const short = (v) => (v && Math.abs(v) < .001 ? v.toExponential(0) : String(v));
const PLACES = [[0, "0%"], [50, "50%"], [100, "100%"]];

// The plots of two runs; `move` shows them at a step
function stage({ runs, a, b }) {
  const pair = { a: runs[a], b: runs[b] }, both = Object.values(pair), last = lastOf({ runs, a, b });
  const { target } = compute({ runs, a, b, step: 0 });
  const [topA, topB] = both.map((o) => 1.05 * Math.max(...o.weights.map((w) => Math.max(...w)), ...target) / 100);
  const apart = Math.max(topA / topB, topB / topA) > 2.5, common = Math.max(topA, topB), tops = apart ? { a: topA, b: topB } : { a: common, b: common };
  const weigh = {}, wrongs = {};
  for (const [k, run] of Object.entries(pair)) {
    const name = k.toUpperCase(), top = tops[k];
    const p = plot({ title: `${name}: ${run.name}`, x: [0, 100], y: [0, top], xlabel: ORDER[run.order], ylabel: "times uniform",
      xticks: PLACES, yticks: ticks(0, top).map((v) => [v]) });
    const area = svg("path", { fill: colourOf(run), "fill-opacity": .85 });
    p.layer.append(area);
    const d = steps(p, target.map((o) => o / 100)), halo = svg("path", { d, fill: "none", stroke: "var(--ground)", "stroke-width": 2.5, "stroke-opacity": .6 });
    p.layer.append(halo, svg("path", { d, fill: "none", stroke: "var(--ink)", "stroke-width": 1.3, "stroke-dasharray": "5 3" }));
    weigh[k] = { root: p.root, move: (o) => set(area, { d: steps(p, o.weights.map((v) => v / 100), true) }) };
    if (!both.some((o) => o.wrong.length)) continue;
    const ylabel = run.wrong.length ? "" : "not stored";
    const q = plot({ title: "", x: [0, 20], y: [0, 100], xlabel: "sorted losses, worst to best", ylabel, yticks: PLACES });
    const right20 = bars(q, 20, .86), wrong20 = bars(q, 20, .86);
    wrongs[k] = { root: q.root, move: (o) => {
      write(q.heading, o.wrong.length ? `${name}: wrong labels in red, step ${o.looked}` : `${name}: where the wrong labels sit`);
      right20.move(o.wrong.map(() => 100), () => "var(--right)");
      wrong20.move(o.wrong, () => "var(--wrong)");
    } };
  }
  const curve = (key, title, from, to) => {
    const xticks = ticks(0, last).map((v) => [v]), yticks = ticks(from, to).map((v) => [v, short(v)]);
    const p = plot({ title, x: [0, last], y: [from, to], xlabel: "training step", xticks, yticks });
    const cursor = svg("line", { y1: p.Y(from), y2: p.Y(to), stroke: "var(--ink)", "stroke-width": 1 });
    p.layer.append(cursor);
    const dots = Object.fromEntries(Object.entries(pair).map(([k, run]) => {
      const points = run.step.map((s, i) => [p.X(s), p.Y(run[key][i])]), [x, y] = points.at(-1);
      const dot = svg("circle", { r: 4, fill: colourOf(run) });
      const look = { fill: "none", stroke: colourOf(run), "stroke-width": 2, "stroke-dasharray": k === "a" ? "none" : "6 3" };
      p.layer.append(svg("path", { ...look, d: lines(points) }), dot);
      return [k, { y, node: dot, mark: (i) => set(dot, { cx: points[i][0], cy: points[i][1] }), x }];
    }));
    const close = Math.abs(dots.a.y - dots.b.y) < 13, high = dots.a.y < dots.b.y ? "a" : "b";
    for (const [k, o] of Object.entries(dots)) {  // names of curves that end together stand one above the other
      const y = close ? dots[high].y - (k === high ? 20 : 7) : o.y - 6;
      p.layer.append(svg("text", { x: o.x - 6, y, "text-anchor": "end" }, k.toUpperCase()));
    }
    return { root: p.root, move: (step) => {
      set(cursor, { x1: p.X(step), x2: p.X(step) });
      for (const [k, o] of Object.entries(dots)) o.mark(nearest(pair[k].step, step));
    } };
  };
  const asks = { a: pair.a.target.risk, b: pair.b.target.risk };
  const accs = both.flatMap((o) => o.acc), risks = both.flatMap((o) => o.risk), floor = Math.floor((Math.min(...accs) - 1) / 10) * 10;
  const curves = [curve("acc", "Test accuracy (%)", Math.max(floor, 0), Math.min(Math.ceil((Math.max(...accs) + 1) / 10) * 10, 100)),
    curve("risk", `Test risk: ${asks.a === asks.b ? asks.a : `${asks.a} of A, ${asks.b} of B`}`, Math.min(0, ...risks), 1.08 * Math.max(...risks))];
  const rows = ["a", "b"].map((k) => weigh[k]).concat(["a", "b"].filter((k) => wrongs[k]).map((k) => wrongs[k]), curves);
  const dashed = target.length ? `The dashed lines above are the weights of A's target, ${asks.a}.` : `The weights of the target ${asks.a} depend on the losses.`;
  const key = dashed + (apart ? " Mind the scales of the weights: they differ." : "");
  return { roots: rows.map((o) => o.root), key, move: (numbers, step) => {
    for (const k of ["a", "b"]) { weigh[k].move(numbers[k]); wrongs[k]?.move(numbers[k]); }
    for (const o of curves) o.move(step);
  } };
}

// A button that walks through `last()` steps in eight seconds; in ten jumps for those who want less motion
function player(root, state, change) {
  let frame = 0;
  const toggle = button("Play", () => (frame ? stop() : start()));
  function stop() { cancelAnimationFrame(frame); frame = 0; write(toggle, "Play"); }
  function start() {
    const last = lastOf(state()), from = state().step < last ? state().step : 0, began = performance.now();
    const jump = last / (matchMedia("(prefers-reduced-motion: reduce)").matches ? 10 : 100);
    const tick = (now) => {
      if (!root.isConnected) return stop();
      const step = Math.min(from + last * Math.max(now - began, 0) / SECONDS / 1000, last), here = step < last ? Math.floor(step / jump) * jump : last;
      if (Math.round(here) !== state().step) change("step", Math.round(Math.max(here, from)));
      if (here < last) frame = requestAnimationFrame(tick); else stop();
    };
    write(toggle, "Pause");
    frame = requestAnimationFrame(tick);
  }
  return { toggle, stop };
}

function build(change, state) {
  const plots = html("div", { class: "plots" }), key = html("p", { class: "key" }), play = player(plots, state, change);
  const all = (list) => list.map((i) => [i, state().runs[i].label]);
  const fill = (o, list, value) => { o.node.replaceChildren(...all(list).map(([v, s]) => html("option", { value: v }, s))); o.node.value = value; };
  const pick = (k, v) => {
    play.stop();
    const s = { ...state(), [k]: +v }, { beside } = s.runs[s.a];
    if (!beside.includes(s.b)) s.b = beside[0];
    change("a", s.a);
    change("b", s.b);
    if (s.step > lastOf(s)) change("step", lastOf(s));
  };
  const a = select("Run A", all(state().runs.map((_, i) => i)), state().a, (v) => pick("a", v)), b = select("Run B", [], 0, (v) => pick("b", v));
  const step = range("Step", { lo: 0, hi: 1, step: 1, digits: 0 }, 0, (v) => { play.stop(); change("step", v); });
  let shown = "", now;
  function draw(s) {
    const pair = `${s.a} ${s.b}`, numbers = compute(s);
    if (pair !== shown) {
      now = stage(s);
      plots.replaceChildren(...now.roots);
      write(key, now.key);
      a.node.value = s.a;
      fill(b, s.runs[s.a].beside, s.b);
      set(step.node, { max: lastOf(s), step: Math.max(Math.round(lastOf(s) / 100), 1) });
      shown = pair;
    }
    step.show(s.step);
    now.move(numbers, s.step);
    return words(s, numbers);
  }
  const chosen = html("div", { class: "controls" }, a.root, b.root), moved = html("div", { class: "controls" }, play.toggle, step.root);
  return { parts: [chosen, moved, plots, key], draw };
}

export const render = (context) => mount(context, ["runs", "a", "b", "step"], build);
export default { render };
