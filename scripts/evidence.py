"""Read the results store as JSON, and compute means, intervals, tests and choices from scratch, without using the package"""
import json
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_1samp

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "nbs/results"


# --- The store

@cache
def records(study):
    "Every record of a study, from its pack and from files of their own"
    lines = (STORE / f"{study}.jsonl").read_text().splitlines() if (STORE / f"{study}.jsonl").exists() else []
    return [json.loads(o) for o in [*lines, *(f.read_text() for f in (STORE / study).glob("*.json"))]]


PLAIN = dict(data="fashion_mini", arch="mlp", noise=0., shift="none", mom=.9, lr=.1, augment=False, opt="sgd", steps=2000, clean_valid=False, valid_share=None)


def runs(study, **where):
    "Records whose configuration has these values; settings that are not named are as in `PLAIN`, and None stands for any value"
    want = {k: v for k, v in {**PLAIN, **where}.items() if v is not None or k == "valid_share"}
    def fits(c): return all(c.get(k, "sgd" if k == "opt" else None) == v for k, v in want.items())
    return [o for o in records(study) if fits(o["config"])]


def by_seed(rows, figure):
    "Seed -> figure, for runs that differ only in the seed"
    out = {o["config"]["seed"]: o["figures"][figure] for o in rows}
    assert len(out) == len(rows), f"{len(rows)} runs for {len(out)} seeds"
    return out


def picked(rows, figure, n=3, by="hyper_acc"):
    """Seed -> figure of the run that noisy hyper-validation rates best, for the seeds that have all `n` settings; None: for all seeds

    Meta-validation decides ties. With `by='test_acc'` the choice is made in hindsight."""
    seeds = {}
    for o in rows: seeds.setdefault(o["config"]["seed"], []).append(o)
    assert n is None or all(len(v) <= n for v in seeds.values()), f"more than {n} settings: {rows[0]['config']}"
    best = {s: max(v, key=lambda o: (o["figures"][by], o["figures"]["valid_acc"])) for s, v in seeds.items() if n in (None, len(v))}
    return {s: o["figures"][figure] for s, o in best.items()}


def at_best(rows, split="hyper_acc"):
    "Seed -> test accuracy at the step at which a validation split was most accurate: noisy hyper-validation by default"
    return {o["config"]["seed"]: max(o["trace"], key=lambda r: r[split])["test_acc"] for o in rows}


def mean(a): return float(np.mean([*a.values()]))


def minus(a, b, percent=False):
    "Mean paired difference, and the ends of Student's interval, or the range if there are fewer than five seeds"
    d = np.array([a[s] - b[s] for s in sorted(a.keys() & b.keys())])
    if percent: d = 100 * d / mean(b)
    if len(d) < 5: return float(d.mean()), float(d.min()), float(d.max())
    half = student.ppf(.975, len(d) - 1) * d.std(ddof=1) / len(d) ** .5
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


# --- The competitors, and the eight rows of the front page

THREE = "gce sce bitempered label_smoothing mixup elr ema two_networks mixture l2rw mwnet".split()
HINDSIGHT = ("class_weights", "logit_adjustment")
NAMES = dict(length="a shorter run", joined="validation data joined", label_smoothing="label smoothing", mixup="mixup", ema="averaged weights",
             gce="GCE", sce="symmetric cross entropy", bitempered="bi-tempered loss", elr="ELR", mixture="trimming by a mixture",
             two_networks="co-teaching", l2rw="L2RW", mwnet="Meta-Weight-Net", class_weights="class weights, hindsight", stopped="plain, stopped early",
             logit_adjustment="logit adjustment, hindsight", expected="plain training", batch="batch risk", warm="warm start")


def rivals(studies, figure, steps, **where):
    "Method -> figure by seed, for every method that is not told the rate and is neither plain training nor an older method of our own"
    def of(steps=steps, **more): return [o for s in studies for o in runs(s, steps=steps, **where, **more)]
    def lengths(m): return [o for n in (steps // 4, steps // 2, steps) for o in of(n, method=m)]
    found = {m: picked(of(method=m), figure) for m in THREE} | {m: picked(of(method=m), figure, by=figure) for m in HINDSIGHT}
    found |= dict(length=picked(lengths("expected"), figure), joined=picked(lengths("joined"), figure))
    if figure == "test_acc": found["stopped"] = at_best(of(method="expected"))
    return {m: o for m, o in found.items() if o}


def row_of(studies, figure, steps=2000, **where):
    "A row with plain training, the default, its strongest rival, and both differences"
    def of(m): return by_seed([o for s in studies for o in runs(s, steps=steps, method=m, **where)], figure)
    plain, default, others = of("expected"), of("presumption"), rivals(studies, figure, steps, **where)
    best = min((m for m in others if others[m].keys() == default.keys()), key=lambda m: minus(default, others[m])[0])
    return dict(n=len(default), plain=mean(plain), learned=mean(default), rival=NAMES[best], best=mean(others[best]),
                against_plain=minus(default, plain), against_best=minus(default, others[best]))


def target_row(study, objective, figure):
    "A target risk on right labels: plain training, the learned risk, the best hand-made one, and both differences in percent"
    of = {m: by_seed(runs(study, objective=objective, method=m), figure) for m in ("expected", "batch", "warm", "learned")}
    best = min(("expected", "batch", "warm"), key=lambda m: mean(of[m]))
    return dict(n=len(of["learned"]), plain=mean(of["expected"]), learned=mean(of["learned"]), rival=NAMES[best], best=mean(of[best]),
                against_plain=minus(of["learned"], of["expected"], True), against_best=minus(of["learned"], of[best], True))


def front_page():
    "The eight rows, in their order"
    people = dict(data="cifar10_second", arch="cnn", steps=3000)
    rows = [row_of(["second"], "test_balanced", noise=.41, noise_kind="worse", augment=True, **people),
            row_of(["second"], "test_balanced", noise=.41, noise_kind="worse", **people),
            row_of(["fresh", "rivals"], "test_acc"),
            row_of(["fresh", "rivals"], "test_acc", noise=.2, noise_kind="uniform"),
            row_of(["fresh", "rivals"], "test_acc", noise=.4, noise_kind="uniform", shift="tail20"),
            row_of(["fresh", "rivals"], "test_acc", noise=.4, noise_kind="uniform", data="digits", steps=600),
            target_row("cooled", "cvar", "test_cooled"), target_row("risk", "icvar", "test_risk")]
    tasks = ["41% human errors, crops and flips", "41% human errors, no augmentation", "fashion, right labels", "fashion, 20% uniform",
             "fashion, 40% uniform, tail 20:1", "digits, 40% uniform", "fashion, right labels", "fashion, right labels"]
    measures = ["accuracy"] * 6 + ["CVaR, best temperatures", "inverted CVaR, as trained"]
    return [dict(task=t, measure=m, **o) for t, m, o in zip(tasks, measures, rows)]


# --- Figures that the first screens of the lessons mention

CUT = dict(data="cifar10_cut", arch="cnn", steps=3000)


def risk(objective, method, study="risk", figure="test_risk", **where):
    "Seed -> figure of a study of targets; 'half' is the first half of the warm start, which is plain training with a schedule of its own"
    if method != "half": return by_seed(runs(study, objective=objective, method=method, **where), figure)
    warm = runs(study, objective=objective, method="warm", **where)
    return {o["config"]["seed"]: next(r for r in o["trace"] if 2 * r["step"] == o["config"]["steps"])[figure] for o in warm}


def cooled(objective, method): return risk(objective, method, "cooled", "test_cooled")
def acc(objective, method, **where): return risk(objective, method, figure="test_acc", **where)
def ends(a, b):
    "The ends of an interval, which needs five seeds"
    assert len(a.keys() & b.keys()) >= 5
    return minus(a, b)[1:]


def below(a, b): return ends(a, b)[1] < 0                         # the whole interval
def open_(a, b): return ends(a, b)[0] <= 0 <= ends(a, b)[1]      # no difference seen
def ratio(a, b): return mean(a) / mean(b)


def shift(kind, method, clean_valid, figure="test_acc", **where):
    return by_seed(runs("shift", shift=kind, method=method, clean_valid=clean_valid, objective="expected", **where), figure)


def stopped(kind, clean_valid):
    "Plain training, read at the step that is best on its validation split"
    return at_best(runs("shift", shift=kind, method="expected", clean_valid=clean_valid), "valid_acc")


def bench(method, figure="test_acc", study="harmless", **where): return by_seed(runs(study, method=method, **where), figure)
def unshifted(): return mean(bench("expected"))
def field(method, **where): return rivals(["fresh", "rivals"], "test_acc", where.pop("steps", 2000), **where)[method]


HALF, FIFTH = dict(noise=.5, noise_kind="uniform"), dict(noise=.2, noise_kind="uniform")
NOISY = [HALF, FIFTH, *(dict(noise=.4, noise_kind=o) for o in ("pairflip", "classwise")), dict(noise=.3, noise_kind="doubtful"),
         dict(noise=.4, noise_kind="uniform", shift="tail20"), dict(data="digits", noise=.4, noise_kind="uniform", steps=600)]


def noisy(method, clean=False, share=None, **noise):
    return by_seed(runs("noise", method=method, clean_valid=clean, valid_share=share, **(noise or HALF)), "test_acc")


def shorter(study, **where):
    "Plain training, of the length that noisy hyper-validation chooses"
    return rivals([study], "test_acc", where.pop("steps", 2000), **where)["length"]


def fresh(method, figure="test_acc", **where): return bench(method, figure, "fresh", **where)


def p_equal(d, margin):
    "Two one-sided tests: does the mean lie within the margin?"
    assert len(d) >= 5
    return max(ttest_1samp(d, -margin, alternative="greater").pvalue, ttest_1samp(d, margin, alternative="less").pvalue)


def equal(a, b, margin=1.): return p_equal(np.array([a[s] - b[s] for s in sorted(a.keys() & b.keys())]), margin) < .05


def corrected(ps):
    "Holm's correction"
    out, largest = [0.] * len(ps), 0.
    for i, k in enumerate(np.argsort(ps)): out[k] = largest = max(largest, min(1., ps[k] * (len(ps) - i)))
    return out


# The paper's claims, Tables 3 to 6: better, equal to or worse than the best hand-made risk
TARGETS = "expected cvar icvar human meanvar trimmed".split()
TABLES = [("risk", TARGETS, ("expected", "batch", "warm"), "test_risk", "= + + - - ="), ("risk", TARGETS, ("batch", "warm"), "test_acc", "= + + = - +"),
          ("noise", [True], ("expected",), "test_acc", "= + + +"), ("noise", [False], ("expected",), "test_acc", "= + + +")]


def cells(study, rows, methods, figure):
    "Method -> figures by seed, for each row of one of the paper's tables"
    if study == "risk": return [{m: risk(o, m, figure=figure) for m in methods} for o in rows]
    return [{m: noisy(m, rows[0] and rate > 0, noise=rate) for m in methods} for rate in (0., .05, .2, .5)]


def said_of(method):
    "How a method compares in every row of the four tables, after Holm's correction over each table, and what the paper says"
    out = []
    for study, rows, others, figure, claims in TABLES:
        lower, table = figure == "test_risk", cells(study, rows, (method, *others), figure)
        best = [(min if lower else max)(others, key=lambda m: mean(c[m])) for c in table]
        ds = [np.array([c[method][s] - c[b][s] for s in sorted(c[method].keys() & c[b].keys())]) for c, b in zip(table, best)]
        margins = [.05 * mean(c[b]) if lower else 1. for c, b in zip(table, best)]
        different = corrected([ttest_1samp(d, 0).pvalue for d in ds])
        same = corrected([p_equal(d, m) for d, m in zip(ds, margins)])
        signs = [("+" if (d.mean() < 0) == lower else "-") if p < .05 else "=" if e < .05 else "?" for d, p, e in zip(ds, different, same)]
        out += zip(signs, claims.split())
    return out


def kept(method): return sum(here == claim for here, claim in said_of(method))


SAFE = [dict(), dict(mom=0.), dict(opt="adam", lr=1e-3), dict(opt="adam", lr=1e-2), dict(steps=200), dict(augment=True), dict(data="digits", steps=600),
        dict(shift="tail20"), dict(shift="tail20", mom=0.), dict(shift="balance"), dict(data="digits_300", steps=300, noise=.3),
        *(dict(data="shapes", arch="cnn:16-32-64/1-2-2", steps=320, noise=o) for o in (0., .32)),
        *(dict(data=d, steps=n, noise=o) for d, n in (("topics", 640), ("table", 960)) for o in (0., .3))]


@cache
def safe():
    "Learned minus plain in balanced accuracy, task by task and seed by seed"
    def gains(plain, default): return {s: v - plain[s] for s, v in default.items()}
    return [gains(bench("expected", "test_balanced", **o), bench("presumption", "test_balanced", **o)) for o in SAFE]


def convicted():
    "Runs of the default with right labels in all studies, and those of them that lost weight"
    rows = [o for study in ("harmless", "fresh") for where in SAFE if not where.get("noise") for o in runs(study, method="presumption", **where)]
    rows += [o for study, data in (("human", "cifar10_cut"), ("second", "cifar10_second")) for augment in (False, True)
             for o in runs(study, method="presumption", data=data, arch="cnn", steps=3000, augment=augment)]
    return rows, [o for o in rows if o["harmful"] > 0]
