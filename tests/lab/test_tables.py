"From runs to verdicts: intervals, paired differences, the paper's tables beside ours"
import random

import numpy as np
import pandas as pd
import pytest
import torch

from metarisk_nb.lab.run import Run
from metarisk_nb.lab.stats import interval
from metarisk_nb.lab.store import record_file, write_record
from metarisk_nb.lab.tables import *


def results(**acc):
    "Results of one setting: method -> test accuracy of seeds 0, 1, ...; None where a run is missing"
    return pd.DataFrame([dict(objective="cvar", method=m, seed=s, test_acc=v, test_risk=-v)
                         for m, vs in acc.items() for s, v in enumerate(vs) if v is not None])


# --- Intervals

def test_paired_takes_the_seeds_that_both_have():
    df = results(learned=[50, None, 53, 51, 60, 55, 56], batch=[48, 10, 50, None, 59, 52, 55], warm=[0] * 7)
    p = paired(df.sample(frac=1, random_state=0), "learned", "batch")
    assert p["diff"] == 2 and p["n"] == 5 and p == interval([2, 3, 1, 3, 1])
    assert np.isnan(paired(df[df.seed < 5], "learned", "batch")["lo"])  # three seeds have both
    assert paired(df, "batch", "learned")["diff"] == -2 and paired(df, "learned", "batch", "test_risk")["diff"] == -2


@pytest.mark.parametrize("df", [results(learned=[1, 2]), results(learned=[1, None], batch=[None, 1]), results(learned=[1, np.nan], batch=[np.nan, 1]),
                                pd.DataFrame(columns=["seed", "method", "test_acc"])], ids=["one method", "other seeds", "nan", "none"])
def test_paired_says_what_is_missing(df):
    with pytest.raises(ValueError, match="no seed has both 'learned' and 'batch'"): paired(df, "learned", "batch")


# --- Tables

def test_beside_shows_ours_and_the_papers():
    df = pd.concat([results(learned=[50, 52], batch=[40, 41, 45]), results(batch=[10]).assign(objective="icvar"), results(batch=[1]).assign(objective="other")])
    t = beside(df, dict(cvar=dict(batch=(39., .5)), icvar=dict(batch=(9., np.nan)), human=dict(warm=(7., 1.5))), column="test_acc")
    assert list(t.index) == ["cvar", "icvar", "human"] and t[("n", "")].tolist() == [2, 1, 0]
    assert list(t.columns) == [("n", ""), ("batch", "here"), ("batch", "paper"), ("warm", "paper"), ("learned", "here")]
    assert t["batch"].values.tolist() == [["42 (2.6)", "39 (0.5)"], ["10", "9"], ["", ""]]
    assert t[("learned", "here")].tolist() == ["51 (1.4)", "", ""] and t[("warm", "paper")].tolist() == ["", "", "7 (1.5)"]


def test_beside_rounds_as_it_is_told():
    t = beside(results(learned=[51.2345, 51.2347]), dict(cvar={}), column="test_acc", digits=5)
    assert t[("learned", "here")].tolist() == ["51.235 (0.00014)"]
    assert beside(results(learned=[1]), paper_risk)[("n", "")].tolist() == [0, 1, 0, 0, 0, 0]


base = [50, 51, 52, 53, 54]
better, worse = [base, [54.1, 55, 55.9, 57, 58.2]], [base, [46.1, 47, 47.9, 49, 50.2]]
equal, open_ = [base, [50.1, 50.9, 52.1, 52.9, 54]], [base, [40, 61, 43, 62, 54]]


@pytest.mark.parametrize("values,here,verdict", [
    (better, "better", dict(better="reproduced", equal="better here", worse="better here")),
    (equal, "equal", dict(better="partly", equal="reproduced", worse="better here")),
    (worse, "worse", dict(better="not reproduced", equal="partly", worse="reproduced")),
    (open_, "no difference seen", dict(better="", equal="", worse=""))], ids=["better", "equal", "worse", "open"])
@pytest.mark.parametrize("claim", ["better", "equal", "worse"])
@pytest.mark.parametrize("column,lower", [("test_acc", False), ("test_risk", True)])
def test_verdicts(values, here, verdict, claim, column, lower):
    df = results(batch=[1, 2, 3, 4, 5], warm=values[0], learned=values[1])
    v = verdicts(df, dict(cvar=claim, icvar="better"), column=column, lower=lower).loc["cvar"]
    assert (v["best other"], v.here, v.paper, v.verdict, v.n) == ("warm", here, claim, verdict[claim], 5)
    p = paired(df, "learned", "warm", column)
    assert (v["diff"], v.lo, v.hi, v.p) == (p["diff"], p["lo"], p["hi"], p["p"]) and v["relative %"] == pytest.approx(100 * p["diff"] / np.mean(values[0]) * (-1 if lower else 1))


def test_one_seed_gives_no_verdict():
    v = verdicts(results(batch=[1], learned=[2]), dict(cvar="better"), column="test_acc", lower=False).loc["cvar"]
    assert (v.here, v.verdict, v.n, v["diff"]) == ("too few seeds", "", 1, 1)


def test_the_number_of_rows_is_corrected_for():
    "A difference that stands alone at p = .03 does not among six"
    shaky = [[50, 51, 52, 53, 54], [51.6, 51.4, 54.9, 53.2, 56.6]]
    one = results(batch=shaky[0], learned=shaky[1])
    rows = pd.concat([one.assign(objective=o) for o in "abcdef"])
    alone, among = (verdicts(rows[rows.objective.isin([*o])], dict.fromkeys(o, "better"), column="test_acc", lower=False) for o in ("a", "abcdef"))
    assert .005 < alone.p["a"] < .05 and alone.here["a"] == "better"
    assert among.p.tolist() == pytest.approx([6 * alone.p["a"]] * 6) and set(among.here) == {"no difference seen"} and (among.verdict == "").all()


def test_rows_without_runs_have_no_verdict():
    df = results(batch=[1, 2], learned=[2, 3])
    assert list(verdicts(df, dict(cvar="better", human="equal")).index) == ["cvar"]
    for o in (df[df.method == "batch"], df[df.method == "learned"]): assert verdicts(o, dict(cvar="better")).empty
    assert verdicts(df, dict(cvar="better"), others=["expected"]).empty and verdicts(df, dict(cvar="better"), learned="paper").empty


def test_constants_of_the_paper():
    assert paper_risk["cvar"] == dict(expected=(2.301, .0317), batch=(1.917, .00962), warm=(1.773, .00976), paper=(1.721, .0156))
    assert paper_risk["icvar"]["paper"] == (1.341e-7, 3.23e-8) and paper_risk["trimmed"]["batch"] == (.04401, .00153)
    assert paper_acc["expected"] == dict(batch=(91.12, .29), paper=(90.76, .47)) and paper_acc["icvar"]["batch"] == (16.78, 1.48)
    assert paper_clean[.5] == dict(expected=(60.18, 2.94), paper=(68.75, 1.42)) and paper_noise[.2]["oracle"] == (82.31, .376)
    assert [list(o) for o in (paper_risk, paper_acc)] == [["expected", "cvar", "icvar", "human", "meanvar", "trimmed"]] * 2
    assert list(paper_clean) == list(paper_noise) == [0., .05, .2, .5]


# --- A comparison of one's own

def fits(**scores):
    "Method -> a function of the seed that gives the score of that seed"
    return {m: v.__getitem__ for m, v in scores.items()}


def test_compare_pairs_every_method_with_the_first():
    a, b, c = [50, 60, 70, 80, 90], [51, 62, 71, 82, 91], [49, 61, 69, 81, 90]
    scores, t = compare(fits(plain=a, learned=b, other=c), seeds=5)
    assert scores.values.tolist()[:4] == [["plain", 0, 50.], ["learned", 0, 51.], ["other", 0, 49.], ["plain", 1, 60.]] and len(scores) == 15
    p = paired(scores, "learned", "plain", "score")
    assert t.loc["learned", list(p)].to_dict() == p | dict(p=2 * p["p"]) and t.verdict.to_dict() == dict(learned="better", other="no difference seen")
    assert t.index.name == "against plain" and list(t.columns) == ["diff", "lo", "hi", "n", "p", "verdict"]
    assert compare(fits(plain=a, learned=b), seeds=range(5), lower=True)[1].verdict["learned"] == "worse"
    assert compare(fits(plain=a, learned=b), seeds=[3, 1])[1].loc["learned", ["diff", "n", "verdict"]].tolist() == [2, 2, "too few seeds"]


def test_ours_is_held_against_the_best_rival_stopped_runs_included():
    a, b, c = [50, 60, 70, 80, 90], [54, 63, 74, 83, 94], [51, 62, 71, 82, 91]
    runs = dict(plain=lambda s: dict(last=a[s], stopped=b[s]), learned=c.__getitem__, hand=lambda s: a[s] + 1 - s % 2)
    scores, t = compare(runs, ours="learned")
    assert scores.values.tolist()[:4] == [["plain", 0, 50.], ["plain, stopped", 0, 54.], ["learned", 0, 51.], ["hand", 0, 51.]]
    assert list(t.index) == ["plain, stopped", "hand", "plain"] and t.index.name == "learned minus"
    assert list(t.verdict) == ["worse", "no difference seen", "better"] and t["diff"].tolist() == pytest.approx([-2.2, .8, 1.4])
    assert t.loc["plain", "p"] == paired(scores, "learned", "plain", "score")["p"]  # the best rival decides: no correction
    low = compare(runs, lower=True, ours="learned")[1]
    assert list(low.index) == ["plain", "hand", "plain, stopped"] and list(low.verdict) == ["worse", "no difference seen", "better"]
    assert list(compare(runs)[1].index) == ["plain, stopped", "learned", "hand"]


def test_compare_gives_each_method_the_same_random_state_and_leaves_yours_alone():
    draw = lambda seed: sum(map(float, (random.random(), np.random.rand(), torch.rand(()))))
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    scores, t = compare(dict(a=draw, b=lambda seed: torch.tensor(draw(seed) + 1)), seeds=5)
    assert t.loc["b", ["diff", "lo", "hi"]].tolist() == pytest.approx([1, 1, 1], abs=1e-5) and scores.score.nunique() == 10
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]
    with pytest.raises(ZeroDivisionError): compare(dict(a=draw, b=lambda seed: draw(seed) / 0))
    assert torch.equal(torch.get_rng_state(), state[0])


one = fits(a=[1] * 5, b=[2] * 5)


@pytest.mark.parametrize("kwargs,error,says", [
    (dict(methods=dict(a=float)), TypeError, "methods must be a dict of two functions of a seed or more, the first to compare with, got {'a': "),
    (dict(methods=dict(a=1., b=2.)), TypeError, "methods must be a dict of two functions of a seed or more"),
    (dict(methods=[float, float]), TypeError, "methods must be a dict of two functions of a seed or more"),
    (dict(methods=one | dict(c=lambda seed: [.3, .9])), TypeError, r"methods\['c'\] must return one number, got \[0.3, 0.9\]"),
    (dict(methods=one | dict(c=lambda seed: None)), TypeError, r"methods\['c'\] must return one number, got None"),
    (dict(methods=one | dict(c=lambda seed: np.nan if seed else 1)), ValueError, r"methods\['c'\] must return a finite number, got nan with seed 1"),
    (dict(methods=one, ours="c"), ValueError, "ours must be one of a, b, got 'c'"),
    (dict(methods=one | dict(c=lambda seed: dict(last=1, stopped=None))), TypeError, r"methods\['c'\] must return one number, got None"),
    (dict(methods=one, seeds=0), ValueError, "seeds must be a whole number of at least 1, got 0"),
    (dict(methods=one, seeds=2.), TypeError, "seeds must be a whole number of at least 1, got 2.0"),
    (dict(methods=one, seeds=[1, "2"]), TypeError, "seeds must be a whole number of at least 0, got '2'"),
    (dict(methods=one, seeds=[]), ValueError, r"seeds must hold at least one seed, and each only once, got \[\]"),
    (dict(methods=one, seeds=[1, 2, 1]), ValueError, r"seeds must hold at least one seed, and each only once, got \[1, 2, 1\]")])
def test_compare_says_what_it_wants(kwargs, error, says):
    with pytest.raises(error, match=says): compare(**kwargs)


# --- A whole store

def store_of(folder, runs):
    "Records as a sweep writes them, with figures made up: (run, test accuracy)"
    for r, acc in runs:
        rec = dict(key=r.key, config=r.config, figures=dict(test_risk=1 - acc / 100, test_acc=acc), seconds=1., trace=[])
        write_record(record_file(r, folder), rec)
    return folder


@pytest.fixture
def store(tmp_path):
    cell = lambda study, means, **kw: [(Run(study, "fashion_mini", method=m, seed=s, **kw), v + s) for m, v in means.items() for s in range(5)]
    runs = [*cell("risk", dict(expected=50, batch=60, warm=65, learned=70, paper=55), objective="cvar"),
            *cell("risk", dict(expected=80, batch=80), objective="expected"),
            *cell("noise", dict(expected=90, learned=90)), *cell("noise", dict(expected=50, learned=75, oracle=80, gce=99), noise=.5),
            *cell("noise", dict(expected=50, learned=85, joined=99), noise=.5, clean_valid=True),
            *cell("noise", dict(expected=10, learned=5), noise=.5, clean_valid=True, valid_share=.02),  # another setting
            *[(Run("risk", "digits", objective="cvar", method=m), 1.) for m in ("batch", "learned")]]      # other data
    return store_of(tmp_path, runs)


def test_four_tables(store):
    t = four_tables(store=store)
    assert list(t) == [f"Table {i}" for i in (3, 4, 5, 6)]
    risk, learned, paper = t["Table 3"]
    assert risk.loc["cvar", ("learned", "here")] == "0.28 (0.016)" and ("learned", "paper") not in risk
    assert risk.loc["cvar", ("warm", "paper")] == "1.773 (0.0098)" and risk[("n", "")].to_dict() == dict(expected=5, cvar=5, icvar=0, human=0, meanvar=0, trimmed=0)
    assert learned.loc["cvar", ["best other", "here", "verdict"]].tolist() == ["warm", "better", "reproduced"]
    assert paper.loc["cvar", ["best other", "here", "verdict"]].tolist() == ["warm", "worse", "not reproduced"] and list(paper.index) == ["cvar"]
    acc, learned, _ = t["Table 4"]
    assert acc.loc["cvar", ("learned", "here")] == "72 (1.6)" and learned.loc["cvar", "diff"] == 5
    clean, learned, _ = t["Table 5"]
    assert clean[("learned", "here")].tolist() == ["92 (1.6)", "", "", "87 (1.6)"] and learned.verdict.to_dict() == {0.: "reproduced", .5: "reproduced"}
    noisy, learned, paper = t["Table 6"]
    assert noisy[("learned", "here")].tolist() == ["92 (1.6)", "", "", "77 (1.6)"] and noisy.loc[.5, ("oracle", "here")] == "82 (1.6)"
    assert learned.loc[.5, ["best other", "diff", "n"]].tolist() == ["expected", 25, 5] and paper.empty


def headline(folder, **means):
    "The difference in the short form of a store with some seeds of CVaR: method -> test risk of each"
    for m, risks in means.items():
        for s, risk in enumerate(risks):
            r = Run("risk", "fashion_mini", objective="cvar", method=m, seed=s)
            write_record(record_file(r, folder), dict(key=r.key, config=r.config, figures=dict(test_risk=risk, test_acc=0.), seconds=1., trace=[]))
    return headlines(store=folder)["difference (95%)"].tolist()


@pytest.mark.parametrize("batch,learned,says", [
    ([1.] * 5, [1.] * 5, "+0.0% (+0.0% to +0.0%)"),                  # no difference at all
    ([1., 2., 3., 4., 5.], [1., 2., 3., 4., 5.], "+0.0% (+0.0% to +0.0%)"),
    ([2.] * 5, [1., 2., 3., 2., 2.], "+0.0% (-43.9% to +43.9%)"),    # none in the mean, and a spread: 2.776 * .7071 / 5**.5 / 2
    ([0.] * 5, [0.] * 5, "+0 (+0 to +0)"),                           # of nothing there is no percentage
    ([0.] * 5, [.25] * 5, "+0.25 (+0.25 to +0.25)"),
    ([4.] * 5, [5.] * 5, "+25.0% (+25.0% to +25.0%)"),
    ([4.] * 3, [3., 2., 4.], "-25.0%")], ids=str)                    # few seeds have no interval
def test_a_difference_of_zero_is_no_nan(tmp_path, recwarn, batch, learned, says):
    got, = headline(tmp_path, expected=[9.] * 5, batch=batch, learned=learned)
    assert [o for o in recwarn if issubclass(o.category, RuntimeWarning)] == []  # nothing was divided by zero
    assert got == says


@pytest.mark.parametrize("values", [[0., 0., 0.], [-1., 0., 1.]])
def test_a_best_of_zero_has_no_relative_difference(values):
    v = verdicts(results(batch=values, learned=[1, 2, 3]), dict(cvar="better"), column="test_acc", lower=False, others=["batch"]).loc["cvar"]
    assert v["diff"] == 2 and np.isnan(v["relative %"]) and v.n == 3


def test_four_tables_of_an_empty_store(tmp_path):
    for table, *judged in four_tables(store=tmp_path).values():
        assert set(table[("n", "")]) == {0} and all(o.empty for o in judged) and not [c for c in table if c[1] == "here"]


def test_claims_are_for_the_rows_of_the_paper():
    for claims, table in ((risk_claims, paper_risk), (acc_claims, paper_acc), (noise_claims, paper_clean), (noise_claims, paper_noise)):
        assert list(claims) == list(table) and set(claims.values()) <= {"better", "equal", "worse"}
