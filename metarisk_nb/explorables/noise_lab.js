// All methods at a kind of label noise: accuracy at the end and at the step that noisy validation chooses, and where the wrong labels sit.
import { bars, fixed, html, mount, plot, select, set, svg, ticks, write } from "./kit.js";
import { mean } from "./risks.js";

const FEW = 5, ROW = 32, PERCENT = [[0, "0%"], [50, "50%"], [100, "100%"]];
const READINGS = ["last", "early"];

const of = ({ tasks, data }) => tasks.filter((o) => o.data === data);
const found = ({ tasks, data, noise }) => tasks.find((o) => o.data === data && o.noise === noise);
const halfOf = (wrong) => mean(wrong.slice(0, wrong.length / 2));

// Everything that is shown, as numbers: the axis covers everything that the tasks on these data have reached
export function compute(state) {
  const { rows } = found(state), row = rows.find((o) => o.method === state.method) ?? null;
  const readings = of(state).flatMap((o) => o.rows).flatMap((o) => [o.last, o.early]), all = readings.flatMap((o) => [...o.points, ...o.ends]);
  const lo = Math.max(Math.floor((Math.min(...all) - .5) / 5) * 5, 0), hi = Math.min(Math.ceil((Math.max(...all) + .5) / 5) * 5, 100);
  return { rows, row, lo, hi, half: row?.wrong.length ? row.wrong.map(halfOf) : null };
}

export function words(state, { rows, row, lo, half }) {
  const seeds = (n) => `${n} seed${n === 1 ? "" : "s"}`;
  const each = rows.map((o) => `${o.name} ${fixed(o.last.mean, 1)}% (${fixed(o.early.mean, 1)}%, ${seeds(o.n)})`).join(", ");
  const few = rows.some((o) => o.n < FEW) ? " Fewer than five seeds: no interval." : "";
  const axis = lo > 0 ? ` The axis begins at ${lo}%.` : "";
  const labels = half
    ? `With ${row.name} ${fixed(half[0], 0)}% of the labels in the worse half of the losses are wrong early in training, and ${fixed(half[1], 0)}% at the end.`
    : `Where the wrong labels of ${row.name} sat is not stored.`;
  const { title, noise } = found(state);
  return `${title}, ${noise}: test accuracy at the last step, and in brackets at the step that noisy validation chooses: ${each}.${few}${axis} ${labels}`;
}

// One reading of a method: the mean with its interval, or the single runs where they are fewer than five
function mark(p, reading, y, last, colour) {
  const look = { fill: last ? colour : "var(--ground)", stroke: colour, "stroke-width": 1.6 };
  const dot = (v, r) => svg("circle", { ...look, cx: p.X(v), cy: y, r });
  if (!reading.ends.length) return reading.points.map((v) => dot(v, 3));
  const [a, b] = reading.ends;
  return [svg("line", { x1: p.X(a), x2: p.X(b), y1: y, y2: y, stroke: colour, "stroke-width": last ? 2.4 : 1.4 }), dot(reading.mean, 4)];
}

// The rows of a task; `choose` marks one of them
function chart(state, pick) {
  const { rows, lo, hi } = compute(state), most = Math.max(...of(state).map((o) => o.rows.length));
  const size = { x: [lo, hi], y: [most, 0], left: 152, height: most * ROW + 62 };
  const p = plot({ title: "Test accuracy", ...size, xlabel: lo > 0 ? `%, from ${lo}%` : "%", xticks: ticks(lo, hi).map((v) => [v]) });
  p.layer.append(...ticks(lo, hi).map((v) => svg("line", { x1: p.X(v), x2: p.X(v), y1: p.Y(0), y2: p.Y(most), stroke: "var(--line)", "stroke-width": .7 })));
  const drawn = rows.map((row, i) => {
    const y = p.Y(i + .5), band = svg("rect", { x: 0, y: y - ROW / 2 + 1, width: 340, height: ROW - 2, rx: 3, fill: "transparent" });
    const name = svg("text", { x: 146, y: y - 3, "text-anchor": "end" }, row.name), marks = svg("g");
    const figures = svg("text", { x: 146, y: y + 11, class: "label", "text-anchor": "end" }, READINGS.map((k) => fixed(row[k].mean, 1)).join(" · "));
    const node = svg("g", { style: "cursor: pointer", onclick: () => pick(row.method) }, band, marks, figures, name);
    p.layer.append(node);
    return { row, choose: (method) => {
      const here = row.method === method, colour = here ? "var(--learned)" : "var(--faint)";
      set(band, { fill: here ? "var(--band)" : "transparent" });
      set(name, { "font-weight": here ? 700 : 400 });
      set(figures, { style: here ? "fill: var(--ink)" : "" });
      marks.replaceChildren(...READINGS.flatMap((k, j) => mark(p, row[k], y + (j ? 6 : -5), !j, colour)));
    } };
  });
  return { root: p.root, choose: (method) => drawn.forEach((o) => o.choose(method)) };
}

// Wrong labels among the sorted losses
function labels(when) {
  const p = plot({ title: "", x: [0, 20], y: [0, 100], xlabel: "sorted losses, worst to best", yticks: PERCENT });
  const right = bars(p, 20, .86), wrong = bars(p, 20, .86), none = Array(20).fill(0);
  return { root: p.root, move: (row, values) => {
    write(p.heading, values ? `Wrong labels in red, ${when}` : "Their places are not stored");
    right.move(values ? none.map(() => 100) : none, () => "var(--right)");
    wrong.move(values ?? none, () => "var(--wrong)");
  } };
}

function build(change, state) {
  const left = html("div"), early = labels("early in training"), late = labels("at the end");
  const names = new Map(state().tasks.map((o) => [o.data, o.title])), wish = (all, v, other) => (all.includes(v) ? v : other);
  // A value that the new choice does not have is replaced by one that it has
  function pick(k, v) {
    const s = { ...state(), [k]: v };
    const noises = of(s).map((o) => o.noise);
    s.noise = wish(noises, s.noise, wish(noises, "50% uniform", noises.at(-1)));
    const methods = found(s).rows.map((o) => o.method);
    s.method = wish(methods, s.method, wish(methods, "expected", methods[0]));
    for (const o of ["data", "noise", "method"]) if (s[o] !== state()[o]) change(o, s[o]);
  }
  const data = select("Data", [...names], state().data, (v) => pick("data", v)), noise = select("Noise", [], "", (v) => pick("noise", v));
  const method = select("Look at", [], "", (v) => pick("method", v));
  const fill = (o, options, value) => { o.node.replaceChildren(...options.map(([v, s]) => html("option", { value: v }, s))); o.node.value = value; };
  let shown = "", now;
  function draw(s) {
    const numbers = compute(s), task = `${s.data} ${s.noise}`;
    if (task !== shown) {
      now = chart(s, (v) => pick("method", v));
      left.replaceChildren(now.root);
      data.node.value = s.data;
      fill(noise, of(s).map((o) => [o.noise, o.noise]), s.noise);
      fill(method, numbers.rows.map((o) => [o.method, o.name]), s.method);
      shown = task;
    }
    method.node.value = s.method;
    now.choose(s.method);
    early.move(numbers.row, numbers.row.wrong[0]);
    late.move(numbers.row, numbers.row.wrong[1]);
    return words(s, numbers);
  }
  const lines95 = "Lines are 95% intervals over at least five seeds; with fewer seeds, each run is a dot.";
  const shorter = "Hollow marks and second numbers: at the step of the same run that noisy validation chooses.";
  const key = html("p", { class: "key" }, `Filled marks and first numbers: at the last step. ${shorter} ${lines95}`);
  const controls = html("div", { class: "controls" }, data.root, noise.root, method.root);
  return { parts: [controls, html("div", { class: "plots" }, left, html("div", {}, early.root, late.root)), key], draw };
}

export const render = (context) => mount(context, ["tasks", "data", "noise", "method"], build);
export default { render };
