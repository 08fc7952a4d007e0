// What all explorables are built of: elements, a plot whose axes stay still, things to drag, and words.

export const clamp = (x, lo, hi) => Math.min(Math.max(x, lo), hi);

// A number with `d` decimals, a tie going to the even digit, as Python writes it
export function fixed(x, d) {
  const exact = Math.abs(x).toFixed(60), cut = exact.length - 60 + d, down = exact.slice(0, d ? cut : cut - 1), last = +down.at(-1);
  const tie = /^50*$/.test(exact.slice(cut)) && last % 2 === 0;
  return tie ? (x < 0 ? "-" : "") + down : x.toFixed(d);
}
// Without the last bits, in which two ways to add may differ
export const settled = (x) => Math.round(x * 1e9) / 1e9;
export const percent = (x) => fixed(100 * x, 0) + "%";

function made(node, attrs, children) {
  set(node, attrs);
  node.append(...children.filter((o) => o !== null));
  return node;
}
export function set(node, attrs) {
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (node.getAttribute(k) !== String(v)) node.setAttribute(k, v);
  }
}
export const html = (tag, attrs = {}, ...children) => made(document.createElement(tag), attrs, children);
export const svg = (tag, attrs = {}, ...children) => made(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, children);
export const write = (node, words) => { if (node.textContent !== words) node.textContent = words; };

let made_ids = 0;
export const newId = () => `explorable-${++made_ids}`;

// An SVG with axes over `x` and `y` (each [lowest, highest]); X and Y give pixels, `at` the numbers under a pointer
export function plot({ title, x, y, xlabel = "", ylabel = "", xticks = [], yticks = [], height = 200, width = 340, left = 40 }) {
  const right = 8, top = 24, bottom = xlabel ? 38 : 22, id = newId();
  const X = (v) => left + (width - left - right) * (v - x[0]) / (x[1] - x[0]);
  const Y = (v) => height - bottom - (height - top - bottom) * (v - y[0]) / (y[1] - y[0]);
  const tick = ([v, words]) => [v, words ?? String(v)];
  const ticks = svg("g", { class: "ticks", "aria-hidden": "true" },
    ...xticks.map(tick).map(([v, s]) => svg("text", { x: X(v), y: height - bottom + 15, "text-anchor": "middle" }, s)),
    ...yticks.map(tick).map(([v, s]) => svg("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, s)));
  const heading = svg("text", { id, class: "title", x: left, y: 14 }, title);
  const layer = svg("g");
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-labelledby": id },
    heading, ticks,
    svg("line", { class: "axis", x1: left, x2: width - right, y1: Y(Math.max(y[0], 0)), y2: Y(Math.max(y[0], 0)) }),
    svg("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }),
    svg("text", { class: "label", x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle", "aria-hidden": "true" }, xlabel),
    svg("text", { class: "label", x: width - right, y: 14, "text-anchor": "end", "aria-hidden": "true" }, ylabel), layer);
  const at = (e) => {
    const box = root.getBoundingClientRect();
    const px = (e.clientX - box.left) * width / box.width, py = (e.clientY - box.top) * height / box.height;
    return [x[0] + (px - left) * (x[1] - x[0]) / (width - left - right), y[0] + (height - bottom - py) * (y[1] - y[0]) / (height - top - bottom)];
  };
  return { root, layer, X, Y, at, heading, x, y, width: X(x[1]) - X(x[0]) };
}

// A layer of the plot `p` that ends at its axes, whatever is drawn there
export function inside(p) {
  const id = newId(), [x0, x1] = p.x.map(p.X), [y1, y0] = p.y.map(p.Y);
  p.layer.append(svg("clipPath", { id }, svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0 })));
  const layer = svg("g", { "clip-path": `url(#${id})` });
  p.layer.append(layer);
  return layer;
}

// About `n` round numbers in [lo, hi], for an axis
export function ticks(lo, hi, n = 4) {
  const raw = (hi - lo) / n, unit = 10 ** Math.floor(Math.log10(raw)), step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw * .999);
  return Array.from({ length: Math.floor(hi / step + 1e-9) - Math.ceil(lo / step - 1e-9) + 1 }, (_, i) => +((Math.ceil(lo / step - 1e-9) + i) * step).toPrecision(12));
}

// Lines from point to point as the path of an SVG element
export const lines = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// Bars from zero, a share `wide` of their places; `move(values, colours)` redraws them
export function bars(p, n, wide = .8) {
  const rects = Array.from({ length: n }, () => svg("rect", { rx: 1 }));
  p.layer.append(...rects);
  const step = p.width / n;
  return {
    move(values, colour) {
      rects.forEach((r, i) => {
        const a = p.Y(0), b = p.Y(values[i]);
        set(r, { x: p.X(0) + step * (i + (1 - wide) / 2), y: Math.min(a, b), width: step * wide, height: Math.abs(a - b), fill: colour(i) });
      });
    },
  };
}

// Call `move(event)` while mouse, pen or finger holds `node`
export function dragged(node, move) {
  node.addEventListener("touchstart", (e) => e.preventDefault(), { passive: false }); // the page does not scroll meanwhile
  node.addEventListener("pointerdown", (e) => {
    node.setPointerCapture(e.pointerId);
    node.focus({ preventScroll: true });
    move(e);
    e.preventDefault();
  });
  node.addEventListener("pointermove", (e) => { if (node.hasPointerCapture(e.pointerId)) move(e); });
}

// Call `move(by)` for the keys that `moves` has; the page or the notebook does not see them
function keyed(node, moves, move) {
  node.addEventListener("keydown", (e) => {
    if (!(e.key in moves)) return;
    e.preventDefault();
    e.stopPropagation();
    move(moves[e.key]);
  });
}

// Make `node` a slider: drag with mouse or finger, arrow keys, Page Up and Down, Home and End.
// `read(event)` gives the value under the pointer, `get()` the value now, `put(value)` changes it, `says(value)` tells it in words.
export function slider(node, { label, lo, hi, step, read, get, put, says = (v) => fixed(v, 1), upright = true }) {
  const change = (v) => put(clamp(v, lo, hi));
  set(node, { role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": lo, "aria-valuemax": hi, "aria-orientation": upright ? "vertical" : "horizontal" });
  const moves = { ArrowUp: step, ArrowRight: step, ArrowDown: -step, ArrowLeft: -step, PageUp: 5 * step, PageDown: -5 * step, Home: -Infinity, End: Infinity };
  keyed(node, moves, (by) => change(Math.round((get() + clamp(by, lo - hi, hi - lo)) * 1e6) / 1e6));
  dragged(node, (e) => change(read(e)));
  return () => set(node, { "aria-valuenow": fixed(get(), 2), "aria-valuetext": says(get()) });
}

// Make `node` a point that moves in the plane: drag, arrow keys, Page Up and Down, Home and End. `lo`, `hi` and the values are pairs;
// what a screen reader has as the value of the slider is the first number, and `says` tells both.
export function movable(node, { label, lo, hi, step, read, get, put, says = (v) => v.map((o) => fixed(o, 2)).join(", ") }) {
  const change = (v) => put(v.map((o, i) => clamp(Math.round(o * 1e6) / 1e6, lo[i], hi[i])));
  set(node, { role: "slider", tabindex: 0, "aria-label": label, "aria-roledescription": "point in the plane", "aria-valuemin": lo[0], "aria-valuemax": hi[0] });
  const moves = {
    ArrowRight: [step, 0], ArrowLeft: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step], PageUp: [0, 5 * step], PageDown: [0, -5 * step],
    Home: [lo[0] - hi[0], 0], End: [hi[0] - lo[0], 0],
  };
  let grabbed = [0, 0];
  keyed(node, moves, (by) => change(get().map((o, i) => o + by[i])));
  dragged(node, (e) => {
    const at = read(e);
    if (e.type === "pointerdown") grabbed = get().map((o, i) => o - at[i]);
    else change(at.map((o, i) => o + grabbed[i]));
  });
  return () => set(node, { "aria-valuenow": fixed(get()[0], 2), "aria-valuetext": says(get()) });
}

export function select(label, options, value, change) {
  const id = newId(), node = html("select", { id, onchange: () => change(node.value) }, ...options.map(([v, words]) => html("option", { value: v }, words ?? v)));
  node.value = value;
  return { root: html("span", { class: "control" }, html("label", { for: id }, label), node), node };
}

export function range(label, { lo, hi, step, digits = 2 }, value, change) {
  const id = newId(), shown = html("output", { for: id });
  const show = (v) => { node.value = v; write(shown, fixed(+v, digits)); };
  const node = html("input", { id, type: "range", min: lo, max: hi, step, oninput: () => { show(node.value); change(+node.value); } });
  show(value);
  return { root: html("span", { class: "control" }, html("label", { for: id }, label), node, shown), node, show };
}

export const button = (words, click) => html("button", { type: "button", onclick: click }, words);

// Code to paste: `show(text)` changes it, the button copies it
export function copyable(label) {
  const pre = html("pre"), copy = button("Copy", () => clipboard(pre.textContent).catch(chosen).then(thanks));
  let back = 0;
  const clipboard = async (text) => navigator.clipboard.writeText(text);
  function chosen() {  // the old way, for pages that may not use the clipboard
    getSelection().selectAllChildren(pre);
    document.execCommand("copy");
  }
  function thanks() {
    write(copy, "Copied");
    clearTimeout(back);
    back = setTimeout(() => write(copy, "Copy"), 2000);
  }
  return { root: html("div", { class: "copyable" }, html("div", { class: "controls" }, html("b", {}, label), copy), pre), show: (text) => write(pre, text) };
}

// A question to play with: pick one, see whether it is solved, or let its answer `change` the values
export function riddles(list, change) {
  const verdict = html("span", { class: "verdict", role: "status" });
  const pick = select("Try this:", [["", "choose a challenge"], ...list.map((o, i) => [i, o.ask])], "", () => judge());
  const answer = button("Show an answer", () => Object.entries(list[pick.node.value].answer).forEach(([k, v]) => change(k, v)));
  const root = html("div", { class: "riddle controls" }, pick.root, answer, verdict);
  let last = {};
  function judge(numbers = last) {
    last = numbers;
    const o = list[pick.node.value];
    answer.hidden = !o;
    write(verdict, o ? (o.solved(numbers) ? "Solved: " + o.why : "Not yet.") : "");
  }
  return { root, judge };
}

// Draw into `el` what `model` holds: `build(change)` gives the parts and `draw(state)`, `draw` the words.
// `change(k, v)` sets a value and draws once in the next frame; the kernel, if there is one, is told at most ten times per second.
// Until then the value is kept here: in the model, the kernel's echo of an earlier one would move it back under the hand.
export function mount({ model, el }, keys, build) {
  el.classList.add("explorable");
  const says = html("p", { role: "status" });
  let frame = 0, told = 0, spoken = 0, untold = {};
  const get = (k) => untold[k] ?? model.get(k);
  const state = () => Object.fromEntries(keys.map((k) => [k, get(k)]));
  const redraw = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint(); }); };
  function tell() {
    for (const [k, v] of Object.entries(untold)) model.set(k, v);
    [told, untold] = [0, {}];
    model.save_changes();
  }
  const change = (k, v) => {
    untold[k] = v;
    redraw();
    told ||= setTimeout(tell, 100);
  };
  const sizes = () => String(keys.map((k) => Array.isArray(get(k)) && get(k).length));
  let draw, built;
  function start() {
    const made = build(change, state);
    [draw, built] = [made.draw, sizes()];
    el.replaceChildren(...made.parts, says);
  }
  function paint(now = false) {
    if (built !== sizes()) start();  // the kernel may send another number of losses
    const words = draw(state());
    clearTimeout(spoken);
    spoken = setTimeout(() => write(says, words), now ? 0 : 150);
  }
  model.on("change", redraw);
  paint(true);
  return () => {
    if (told) { clearTimeout(told); tell(); }
    cancelAnimationFrame(frame);
    clearTimeout(spoken);
    model.off("change", redraw);
  };
}
