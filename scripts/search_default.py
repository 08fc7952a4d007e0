"Find the best settings for `MetaRisk()` by successive halving on the hyper-validation split: `python scripts/search_default.py STAGE`"
import argparse
import sys
import warnings
from itertools import product

from metarisk_nb.lab.cli import stoppable
from metarisk_nb.lab.run import Run
from metarisk_nb.lab.sweep import sweep

warnings.filterwarnings("ignore", category=FutureWarning)

SETTINGS = [{}, dict(meta_lr=.2), dict(meta_lr=.6), dict(meta_lr=.1), dict(every=10), dict(every=40, meta_lr=.8), dict(meta_bs=100), dict(meta_bs=500),
            dict(meta_loss="gce"), dict(knots=8), dict(floor=.8), dict(relax=10), dict(relax=40), dict(warmup=0), dict(warmup=5), dict(n_inner=5, method="first_order")]  # the default, and one change at a time

FASHION = dict(data="fashion_mini", steps=2000)
TASKS = dict(
    digits=[dict(data="digits", steps=600, noise=r, noise_kind=k) for r, k in ((0., "uniform"), (.2, "uniform"), (.4, "uniform"), (.2, "pairflip"), (.4, "pairflip"))],
    short=[dict(FASHION, steps=200, noise=r) for r in (0., .2, .5)],
    fashion=[dict(FASHION, noise=r) for r in (0., .2, .5)],
    cut=[dict(data="cifar10_cut", arch="cnn", steps=3000, noise=.5)],
    whole=[dict(data="cifar10", arch="cnn:16-32-64-64", steps=2000, noise=.5)],
    targets=[dict(FASHION, objective=o) for o in ("cvar:.1", "icvar:.1", "trimmed:.1")])


def name(setting): return " ".join(f"{k}={v}" for k, v in setting.items()) or "default"


def runs(tasks, seeds, methods, settings):
    "What to train, by name of the method"
    plain = {m: [Run("default", method=m, seed=s, **t) for t, s in product(tasks, seeds)] for m in methods}
    return plain | {name(o): [Run("default", seed=s, meta=o, **t) for t, s in product(tasks, seeds)] for o in settings}


def label(row):
    noise = f" {100*row.noise:.0f}%{' pair' if row.noise_kind == 'pairflip' and row.noise else ''}" if row.objective == "expected" else ""
    return f"{row.data[:7]} {row.steps} {row.objective if row.objective != 'expected' else ''}{noise}"


def table(tasks, seeds, jobs, methods, settings, figure):
    "Mean (sd) of `figure` over the seeds, one row per method and one column per task"
    todo = runs(tasks, seeds, methods, settings)
    df = sweep([r for o in todo.values() for r in o], jobs=jobs).drop_duplicates("key").set_index("key")
    for method, rs in todo.items():
        d = df.loc[[r.key for r in rs]]
        g = d.groupby(d.apply(label, axis=1), sort=False)[figure]
        cells = "  ".join(f"{k}: {m:.3f} ({s:.3f})" for k, m, s in zip(g.groups, g.mean(), g.std()))
        print(f"{g.mean().mean():8.3f}  {method:45} {cells}", flush=True)


def main():
    o = argparse.ArgumentParser(description=__doc__)
    o.add_argument("stage", choices=list(TASKS))
    o.add_argument("--pick", type=int, nargs="*", default=[], help=f"indices of the settings in SETTINGS to train, 0 to {len(SETTINGS) - 1}")
    o.add_argument("--methods", nargs="*", default=[], help="other methods to train: expected, oracle, coteaching, gce, paper, batch, warm")
    o.add_argument("--seeds", type=int, default=2)
    o.add_argument("--jobs", type=int, default=1)
    o.add_argument("--figure", help="column to show; by default hyper_clean_acc, or hyper_risk for targets")
    o = o.parse_args()
    figure = o.figure or ("hyper_risk" if o.stage == "targets" else "hyper_clean_acc")
    with stoppable("search_default", "; what is stored is kept, and the same command continues from there"):
        try: table(TASKS[o.stage], range(o.seeds), o.jobs, o.methods, [SETTINGS[i] for i in o.pick], figure)
        except (OSError, RuntimeError) as e: sys.exit(f"search_default: {e}")


if __name__ == "__main__": main()
