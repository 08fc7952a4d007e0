"The benchmark's own parts: every contender does the same work, the report says what was met and what failed"
import json

import pytest
import torch
import torch.nn.functional as F

from metarisk_nb.lab.bench import bench_gpu, measure_cost, overhead, peak_memory, take_turns, throughput
from metarisk_nb.lab.contenders import contenders, cost_model, peers, work, workloads
from metarisk_nb.lab.report import load_costs, overhead_ratios, plot_cost, report
from metarisk_nb.lab.run import Run

small = dict(mlp=20, cnn=16, resnet18=8)  # batches, so that the tests stay short


@pytest.mark.parametrize("name", workloads)
@pytest.mark.parametrize("method,k,least", [("exact", 1, .99999), ("exact", 2, .999), ("finite_difference", 1, .999), ("finite_difference", 2, .99), ("first_order", 1, .99999)])
def test_every_method_agrees_with_the_unroll_in_float32(name, method, k, least):
    o = work(name, k, small[name])
    assert F.cosine_similarity(contenders[method](o)(), peers["unroll"](o)(), 0) > least


@pytest.mark.parametrize("name", [o for o in peers if o != "unroll"])
def test_peers_do_the_same_work_twice(name):
    pytest.importorskip(dict(betty="betty").get(name, name))
    o = work("mlp", 2, 20)
    want, f = peers["unroll"](o)(), peers[name](o)
    for _ in range(2): torch.testing.assert_close(f(), want, rtol=1e-4, atol=1e-7)


def test_cost_model(): assert [cost_model(m, 5, 2) for m in ("exact", "higher", "first_order", "finite_difference")] == [47, 47, 31, 34]


def test_turns_name_a_failure_and_time_the_rest(monkeypatch):
    def broken(o): raise ImportError("no such library")
    monkeypatch.setitem(contenders, "broken", broken)
    rows = take_turns(work("mlp", 1, 4), ["exact", "unroll", "broken"], 3)
    assert rows["broken"] == dict(failed="ImportError: no such library")
    assert len(rows["unroll"]["seconds"]) == len(rows["forward"]["seconds"]) == 3 and rows["unroll"]["error"] < 1e-4


def test_store_and_report(tmp_path, monkeypatch):
    monkeypatch.setattr("metarisk_nb.lab.bench.peak_memory", lambda name, k, names, *_: dict.fromkeys(names, 10.) | dict(exact=3.))
    r = measure_cost("mlp", 1, 1, ["exact", "unroll", "first_order"], skip=dict(first_order="left out here"), b=4, out=tmp_path)
    assert load_costs(tmp_path) == [json.loads((tmp_path / "mlp_1.json").read_text())] == [r] and not [*tmp_path.glob(".*.tmp")]
    r["rows"]["exact"]["seconds"], r["rows"]["unroll"]["seconds"] = [1., 1.], [2., 2.]
    out = report([r])
    assert "first_order        not measured: left out here" in out
    assert "exact, mlp, K=1: time by the best peer 0.5 (goal: at most 0.7): met" in out
    r["rows"]["exact"]["seconds"] = [3., 3.]
    assert "time by the best peer 1.5 (goal: at most 0.7): not met" in report([r])
    assert len(plot_cost([r])) == 1


def test_memory_of_an_unroll_grows_and_ours_does_not():
    few, many = [peak_memory("cnn", k, ["unroll", "exact"], 32) for k in (1, 4)]
    if not few: pytest.skip("needs /proc")
    assert many["unroll"] > 2 * few["unroll"] and many["exact"] < .6 * many["unroll"]


def test_unknown_workload_is_named():
    with pytest.raises(ValueError, match="name must be one of mlp, cnn, resnet18, got 'vgg'"): work("vgg", 1)


def test_throughput_counts_the_steps_after_the_first_twenty(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("metarisk_nb.lab.bench.clock", lambda: float(next(clock)))  # one second between its start and its end
    monkeypatch.setattr("metarisk_nb.lab.bench.time.perf_counter", lambda: 0.)
    assert throughput(Run(steps=60), 10) == 40.
    monkeypatch.undo()
    assert throughput(Run(steps=10**6), .2) > 0  # ends long before its steps are over
    with pytest.raises(ValueError, match="run must have more than 20 steps, got steps=20"): throughput(Run(steps=20))


def test_the_paper_setting_at_small_size(capsys):
    bench_gpu(.2, "digits", "cnn:4-8/1-2", bf16=True)
    out = capsys.readouterr().out.splitlines()
    assert "digits, cnn:4-8/1-2, batches of 100, bfloat16, on " in out[0]
    assert [o.split("  ")[0] for o in out[1:]] == ["plain", "MetaRisk()", "MetaRisk.paper()"] and "1.00 times plain" in out[1]
    assert all("minutes for 20,000 steps" in o for o in out[1:])


def test_overhead_of_a_run():
    o = overhead(Run(data="digits", noise=.4, steps=2000), turns=1, seconds=.2, threads=1)
    r = overhead_ratios(o)
    assert len(r["time"]) == 3 and r["time"][1] == o["expected"]["rates"][0] / o["presumption"]["rates"][0]
    if o["presumption"]["mb"] is not None: assert r["memory"] == o["presumption"]["mb"] / o["expected"]["mb"] > 0
