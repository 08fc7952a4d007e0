"The default beside its rivals: what is chosen by whom, and what the store must hold for the table"
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from metarisk_nb.lab import rivals
from metarisk_nb.lab.methods import best_temperature
from metarisk_nb.lab.rivals import *
from metarisk_nb.lab.scales import bench_row, harmless
from metarisk_nb.lab.store import load_results
from metarisk_nb.lab.targets import cooled_table
from metarisk_nb.risk import as_risk


def runs(*rows):
    "Results of the task with 50% uniform noise: (method, seed, steps, hyper_acc, test_balanced)"
    base = dict(arch="mlp", noise_kind="uniform", shift="none", mom=.9, lr=.1, augment=False, opt=np.nan, **bench_row(dict(noise=.5)))
    names = "method", "seed", "steps", "hyper_acc", "test_balanced"
    return pd.DataFrame([{**base, **dict(zip(names, o)), "test_worst": 50., "test_calibration": 5., "valid_acc": 50., "meta": f"setting={i}"}
                         for i, o in enumerate(rows)])


ROWS = [("presumption", 0, 2000, 0, 83.), ("expected", 0, 2000, 60, 70.), ("expected", 0, 1000, 70, 80.), ("expected", 0, 500, 65, 82.),
        ("gce", 0, 2000, 71, 81.), ("gce", 0, 2000, 72, 79.), ("gce", 0, 2000, 70, 85.), *[("elr", 0, 2000, o, 11. + o) for o in (73, 72, 71)]]


def test_noisy_hyper_validation_chooses_and_the_test_set_does_not():
    c = contestants(runs(*ROWS), dict(noise=.5))
    assert {k: o.test_balanced.tolist() for k, o in c.items()} == dict(learned=[83], plain=[70], first=[], length=[80], GCE=[79], ELR=[84])


def test_a_rival_counts_where_it_had_all_its_settings():
    c = contestants(runs(*ROWS[:-1], ("gce", 1, 2000, 99, 90.)), dict(noise=.5))
    assert c["GCE"].index.tolist() == [0] and "ELR" not in c


def test_meta_validation_decides_between_settings_that_hyper_validation_likes_equally():
    df = runs(*[("gce", 0, 2000, 70, 80. + i) for i in range(3)])
    df["valid_acc"] = [60., 62., 61.]
    assert chosen(df, n=3).test_balanced.tolist() == [81] and chosen(df.sample(frac=1, random_state=0), n=3).test_balanced.tolist() == [81]
    twice = pd.concat([df, df.tail(1)])  # a run that two studies have is one run
    assert chosen(twice, n=3).test_balanced.tolist() == [81]


def test_a_length_of_another_task_is_no_rival():
    c = contestants(runs(*ROWS, ("expected", 0, 200, 99, 85.)), dict(noise=.5))
    assert c["length"].test_balanced.tolist() == [80]
    assert "length" not in contestants(runs(*ROWS[:2], ("expected", 0, 200, 99, 85.)), dict(noise=.5))


def test_fewer_than_five_seeds_have_no_interval():
    several = [(m, seed, 2000, 0, 70. + 3 * (m == "presumption") + seed % 2) for m in ("presumption", "expected") for seed in range(4)]
    c = contestants(runs(*several), dict(noise=.5))
    assert rivals._against(c["learned"], c["plain"], "test_balanced")[0] == 3
    assert np.isnan(rivals._against(c["learned"], c["plain"], "test_balanced")[1:]).all()


def test_human_labels_and_fresh_seeds_have_tables_of_their_own():
    people, fresh, old = bench_table(study="human", kinds=["people"]), bench_table(study="fresh"), bench_table()
    assert len(people) == 6 and people.n.min() >= 2 and people["plain lo"].isna().all()
    assert people["plain"][people.task.str.contains("crops")].tolist() == pytest.approx([0, 0, 0], abs=.05)  # plain training
    both = old.set_index("task").join(fresh.set_index("task"), rsuffix=" fresh", how="inner")
    assert len(both) == 34 and (both["plain fresh"] - both["plain"]).abs().max() < 3
    assert (both["plain fresh"][(both.wrong == 0) & ~both.index.str.contains("shapes")] == 0).all()
    words = bench_words(old, fresh)["minus plain, fresh seeds"]
    assert words.astype(bool).all() and words.str.contains("to").all()


def test_runs_of_another_task_do_not_count():
    df = runs(*ROWS)
    df = df.astype(dict(opt=object))
    df.loc[0, "opt"], df.loc[1, "noise"] = "adam", .2
    c = contestants(df, dict(noise=.5))
    assert not len(c["learned"]) and not len(c["plain"]) and len(contestants(df, dict(noise=.5, opt="adam"))["learned"]) == 1


def test_every_task_is_in_the_store_with_five_seeds():
    t = bench_table()
    assert t.task.tolist() == [task_name(o) for rows in harmless.values() for o in rows] and t.task.is_unique and (t.n >= 5).all()
    assert t[["plain", "plain lo", "plain hi", "harmful"]].notna().all(axis=None) and (t.ELR.notna() == (t.kind == "noisy")).all()
    words = bench_words(t)
    assert len(words) == len(t) and words["minus the strongest of what is free"].astype(bool).tolist() == (t.kind == "noisy").tolist()


@pytest.mark.parametrize("risk", ["expected", "cvar:.5", "meanvar", "trimmed"])
def test_the_best_temperature_is_found_whatever_the_scale_of_the_outputs(risk):
    g, risk = torch.Generator().manual_seed(0), as_risk(risk)
    z = 2 * torch.randn(4000, 5, generator=g)
    y = z.softmax(1).multinomial(1, generator=g)[:, 0]
    def at(t): return risk(F.cross_entropy(z / t, y, reduction="none")).item()
    t = best_temperature(z, y, risk)
    assert at(t) <= min(at(o) for o in np.geomspace(.02, 50, 300)) + 1e-4 and t == pytest.approx(best_temperature(3 * z, y, risk) / 3, rel=.02)
    if str(risk) == str(as_risk("expected")): assert t == pytest.approx(1, abs=.06)  # the labels were drawn from these very outputs


def test_risks_are_compared_after_their_temperatures():
    t, raw = (cooled_table(column=o).query("data == 'digits'").set_index("target") for o in ("test_cooled", "test_risk"))
    assert set(t.index) == {"expected", "cvar", "icvar", "human", "meanvar", "trimmed"} and (t.n == 5).all()
    assert t.loc[["expected", "cvar", "human", "meanvar"], ["learned", "plain", "batch risk", "warm start"]].notna().all(axis=None)
    assert (t["plain lo"] <= t["plain"])[t["plain"].notna()].all()
    assert t.loc["cvar", "learned"] < raw.loc["cvar", "learned"]  # a temperature of the validation data lowers the test risk


def test_the_label_report_beside_other_finders():
    t = suspects_table().set_index("task")
    whole = t[t.n >= 5].dropna(subset="cleanlab")
    assert len(whole) >= 6 and (whole["minus cleanlab"] > 0).all() and (whole.lo > -.01).all()
    patterns = whole.loc[["fashion, 40% classwise", "fashion, 40% pairflip"]]  # where all the others learn the noise
    assert (patterns.lo > .1).all() and (patterns["label report"] > patterns[["margin", "mean loss", "last loss"]].max(axis=1) + .05).all()
    assert (whole["label report"] > whole[["margin", "mean loss", "last loss"]].max(axis=1) - .02).all()
    share = suspects_table(figure="share").set_index("task")
    uniform = [o for o in share.index if o.startswith("fashion") and "uniform" in o and "tail" not in o]
    assert len(uniform) >= 5 and ((share["label report"] - share.wrong).abs()[uniform] < .05).all()
    assert share.loc["fashion, right labels", "label report"] < .03


def test_the_length_of_a_rivals_run_is_chosen_on_noisy_labels():
    df = load_results("suspects").query("data == 'fashion_mini' and noise_kind == 'pairflip' and method == 'crossval'")
    best = df.loc[df.groupby("seed").hyper_acc.idxmax()]
    assert df.steps.nunique() == 3 and len(best) == 5
    assert suspects_table().set_index("task").loc["fashion, 40% pairflip", "cleanlab"] == pytest.approx(best.cleanlab_auroc.mean())


def test_a_second_run_stands_beside_the_first():
    t = second_runs_table().set_index("task")
    fashion = t[t.index.str.startswith("fashion")]
    assert len(fashion) >= 5 and (fashion.n == 5).all() and (fashion["without suspects"] > fashion["plain"] + 3).all()
    for k in ("without suspects", "with suggested labels"):
        assert (fashion[f"{k} lo"] <= fashion[f"{k} d"]).all() and fashion[f"{k} d"].abs().max() < 2
        assert np.allclose(fashion[k] - fashion.learned, fashion[f"{k} d"])


def test_a_table_of_finders_without_runs(tmp_path):
    (tmp_path/"suspects").mkdir()
    assert suspects_table(tmp_path).empty and second_runs_table(tmp_path).empty
