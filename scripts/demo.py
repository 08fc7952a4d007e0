"Train on real images with half of the training labels randomised: `python scripts/demo.py` (see --help)"
import argparse
import math
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path

warnings.filterwarnings("ignore", category=FutureWarning)

try:
    import matplotlib
    matplotlib.use("agg")
    import fastai.callback.progress  # noqa: F401 (adds methods to Learner)
    import fastai.callback.schedule  # noqa: F401
    import matplotlib.pyplot as plt
    import torch
    from fastai.basics import SGD, Callback, CrossEntropyLossFlat, Learner, accuracy, set_seed

    from metarisk_nb.callback import BatchRisk, MetaRisk
    from metarisk_nb.data import fashion_mini
    from metarisk_nb.lab.cli import stoppable
    from metarisk_nb.networks import mlp
    from metarisk_nb.plot import plot_evolution, plot_scores
    from metarisk_nb.risk import ICVaR
except ImportError as e:
    sys.exit(f"demo: {e.name or e} is missing: run `make demo`, which installs what it needs, or `pip install .`")
except KeyboardInterrupt:
    print("demo: stopped", file=sys.stderr)
    sys.exit(130)


def options():
    o = argparse.ArgumentParser(description=__doc__)
    o.add_argument("--noise", type=float, default=.5, help="share of the training labels to randomise, in [0, 1)")
    o.add_argument("--steps", type=int, default=2000, help="training steps, rounded up to whole epochs of 108")
    o.add_argument("--seed", type=int, default=0)
    o.add_argument("--out", default="demo.png", type=Path, help="where to save the picture")
    o = o.parse_args()
    if not 0 <= o.noise < 1: sys.exit(f"demo: --noise must be in [0, 1), got {o.noise}")
    if o.steps < 200: sys.exit(f"demo: --steps must be at least 200, got {o.steps}")
    o.out = check_out(o.out)
    return o


def part(out): return out.with_name(f".part-{out.name}")


def save(fig, out):
    "Save under a temporary name, then rename, so that an old picture stays until the new one is complete"
    try:
        fig.savefig(part(out), dpi=150)
        part(out).replace(out)
    finally:
        with suppress(OSError): part(out).unlink()


def check_out(out):
    "The path of the picture; ends the program before training if an empty file cannot be saved there"
    if out.is_dir(): sys.exit(f"demo: --out must be a file to write, got the folder {out}")
    out = out if out.suffix else out.with_suffix(".png")
    try: plt.figure(figsize=(1, 1)).savefig(part(out))
    except (OSError, ValueError) as e: sys.exit(f"demo: --out {out} cannot be written: {getattr(e, 'strerror', None) or e}")
    finally:
        with suppress(OSError): part(out).unlink()
    plt.close()
    return out


def learner(noise, seed, cbs=None):
    "A Learner with the same data, network and initial weights for every method"
    set_seed(seed)
    dls = fashion_mini(noise=noise, seed=seed)
    opt = {"mom": .9, "decouple_wd": False}
    return Learner(dls, mlp(), CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, wd=5e-4, wd_bn_bias=True,
                   opt_func=lambda ps, **kw: SGD(ps, **{**kw, **opt}))


class LinePerEpoch(Callback):
    "Print one line per epoch, for pipes and logs, where a bar would be kilobytes of carriage returns"
    order = 60  # after the Recorder

    def after_epoch(self):
        loss, _, acc = self.recorder.values[-1]
        print(f"  epoch {self.epoch + 1} of {self.n_epoch}: training loss {loss:.2f}, {100 * acc:.0f}% of the noisy validation labels", flush=True)


def fit(learn, n_epoch):
    "The paper's schedule: one cycle .005 -> .1 -> 5e-6"
    bar = sys.stdout.isatty()
    with learn.no_logging(), nullcontext() if bar else learn.no_bar():
        learn.fit_one_cycle(n_epoch, .1, div=20, div_final=2e4, moms=(.9, .9, .9), cbs=None if bar else LinePerEpoch())


def accuracy_of(learn):
    "Accuracy on the 10,000 test images, in percent"
    with learn.no_bar(): return 100 * learn.validate(ds_idx=3)[1]


def plain(o, n_epoch):
    learn = learner(o.noise, o.seed)
    fit(learn, n_epoch)
    return learn, "nothing: every loss counts the same"


def learned(o, n_epoch):
    learn = learner(o.noise, o.seed, MetaRisk())
    fit(learn, n_epoch)
    return learn, f"{100*learn.meta_risk.harmful:.0f}% of a batch does harm, and has lost its weight"


def clean(o, n_epoch):
    "Learned weights on right labels, where there is nothing to do"
    learn = learner(0., o.seed, MetaRisk())
    fit(learn, n_epoch)
    return learn, f"on right labels {100*learn.meta_risk.harmful:.0f}% does harm"


def oracle(o, n_epoch):
    "A warm start, then ICVaR with the share of right labels, which it is told"
    clean = 1 - o.noise * .9
    learn = learner(o.noise, o.seed)
    fit(learn, n_epoch - n_epoch // 2)
    learn.add_cb(BatchRisk(ICVaR(clean)))
    fit(learn, n_epoch // 2)
    return learn, f"nothing: it is told to drop the worst {100*(1-clean):.0f}% after half time"


def picture(o, learn, scores):
    "Learned weights through training, and the accuracies"
    fig, axs = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=[3, 2])
    h = learn.meta_risk.history
    plot_evolution(h.steps, h.weights, axs[0], title="How much each loss of a batch counts, learned while training")
    wrong = 90 * o.noise
    if wrong:
        axs[0].axvspan(0, wrong, color="crimson", alpha=.07, lw=0)
        axs[0].text(wrong / 2, .97 * axs[0].get_ylim()[1], f"{wrong:.0f}% of the labels are wrong", ha="center", va="top", color="crimson")
    where = dict(loc="upper right") if wrong < 25 else dict(loc="lower left", bbox_to_anchor=(.02, .03))  # clear of the uniform line
    axs[0].legend(title="training step", frameon=False, ncols=2, fontsize=9, **where)
    plot_scores(scores, axs[1], title="Accuracy on clean test images")
    return fig


def main():
    o = options()
    device = "GPU" if torch.cuda.is_available() else "CPU"
    if device == "CPU": torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings
    n_epoch = max(2, math.ceil(o.steps / 108))
    print(f"Fashion-MNIST, 10,800 training images, {100*o.noise:.0f}% of the labels random, no clean data; "
          f"{108 * n_epoch} steps on the {device}, seed {o.seed}")
    rows, scores = [], {}
    for name, method in {"plain": plain, "learned": learned, "oracle": oracle, "clean": clean}.items():
        print(f"\n{name}: {'Learner(..., cbs=MetaRisk())' if name in ('learned', 'clean') else 'for comparison'}", flush=True)
        start = time.perf_counter()
        learn, what = method(o, n_epoch)
        seconds = time.perf_counter() - start
        scores[name] = accuracy_of(learn)
        rows.append((name, scores[name], seconds, what))
        if name == "learned": meta = learn
    print(f"\n{'method':9}{'test accuracy':>14}{'seconds':>9}   what it learned about the batch")
    for name, acc, seconds, what in rows: print(f"{name:9}{acc:13.1f}%{seconds:9.1f}   {what}")
    try: save(picture(o, meta, scores), o.out)
    except OSError as e: sys.exit(f"demo: the picture could not be saved to {o.out}: {e}")
    print(f"\nThe picture: {o.out}\nNext: `make lab` opens the notebooks; begin with nbs/index.ipynb")


if __name__ == "__main__":
    with stoppable("demo", "; no picture was saved"): main()
