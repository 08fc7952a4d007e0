// The risk functionals of lesson 00 in closed form. `p` are the parameters in the order of the Python classes.

export const sum = (a) => a.reduce((s, o) => s + o, 0);
export const mean = (a) => sum(a) / a.length;
const spread = (a) => Math.max(...a) - Math.min(...a);

// Name -> weight of the worst share `u` of the samples
const cumulative = {
  expected: (u) => u,
  cvar: (u, alpha) => Math.min(u / alpha, 1),
  icvar: (u, alpha) => Math.max((u - 1 + alpha) / alpha, 0),
  trimmed: (u, alpha) => Math.min(Math.max((u - alpha) / (1 - 2 * alpha), 0), 1),
  human: (u, a, b) => {
    const F = 1 - u, k = (3 - 3 * b) / (a * a - a + 1);
    return u - k * (F ** 3 - (a + 1) * F ** 2 + a * F);
  },
  extremile: (u, r) => 1 - (1 - u) ** r,
};

export const isSpectral = (name) => name in cumulative;

// Weights of the n places of a sorted batch, worst first
export function weights(name, p, n) {
  const c = Array.from({ length: n + 1 }, (_, i) => cumulative[name](i / n, ...p));
  const w = c.slice(1).map((o, i) => o - c[i]).map((o) => (o > 1e-9 / n ? o : 0)), total = sum(w);
  return w.map((o) => o / total);
}

function softmax(l, t) {
  const top = t > 0 ? Math.max(...l) : Math.min(...l), e = l.map((o) => Math.exp(t * (o - top))), total = sum(e);
  return e.map((o) => o / total);
}

function logMeanExp(l, t) {
  const top = t > 0 ? Math.max(...l) : Math.min(...l);
  return top + Math.log1p(mean(l.map((o) => Math.expm1(t * (o - top))))) / t;
}

// The t > 0 at which softmax(t l) is -log(alpha) away from uniform, as `_tilt` finds it
function tilt(l, alpha) {
  const budget = -Math.log(alpha), reach = Math.max(spread(l), 1e-8), width = 64;
  const far = (g) => Math.log(l.length) + sum(softmax(l, 10 ** g / reach).map((q) => (q > 0 ? q * Math.log(q) : 0)));
  let lo = -6, hi = 10;
  for (let round = 0; round < 8; round++) {
    const grid = Array.from({ length: width }, (_, i) => lo + (hi - lo) * i / (width - 1));
    const i = Math.min(Math.max(grid.filter((g) => far(g) < budget).length, 1), width - 1);
    [lo, hi] = [grid[i - 1], grid[i]];
  }
  return 10 ** hi / reach;
}

const others = {
  meanvar: (l, c) => {
    const m = mean(l);
    return { value: m + c * mean(l.map((o) => (o - m) ** 2)), influence: l.map((o) => (1 + 2 * c * (o - m)) / l.length) };
  },
  entropic: (l, t) => {
    const u = Math.abs(t) < 1e-12 ? 1e-12 : t;
    return { value: logMeanExp(l, u), influence: softmax(l, u) };
  },
  evar: (l, alpha) => {
    if (alpha === 1) return { value: mean(l), influence: l.map(() => 1 / l.length) };
    const t = tilt(l, alpha);
    return { value: logMeanExp(l, t) - Math.log(alpha) / t, influence: softmax(l, t) };
  },
};

// The risk of losses sorted from worst to best, and its derivative with respect to each
export function risk(name, p, sorted) {
  if (!isSpectral(name)) return others[name](sorted, ...p);
  const w = weights(name, p, sorted.length);
  return { value: sum(sorted.map((l, i) => l * w[i])), influence: w };
}
