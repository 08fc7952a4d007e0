"Two processes with DistributedDataParallel on the CPU: they learn what one process learns from the joined batches"
import json
import os
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from common import fit, learner, net

from metarisk_nb.callback import MetaRisk
from metarisk_nb.processes import unwrapped

pytest.importorskip("accelerate", reason="pip install 'metarisk_nb[distributed]'")
import distributed_worker  # noqa: E402

WORKER = Path(__file__).with_name("distributed_worker.py")


def start(out, rank, port, *settings):
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(map(str, (WORKER.parents[1], WORKER.parents[2]))), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return subprocess.Popen([sys.executable, WORKER, out, json.dumps(settings)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def two(out, *settings, other=None):
    "Run two processes through `settings`, the second one through `other` where given; what each got, or their exit codes and what they said"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    procs = [start(out, 0, port, *settings), start(out, 1, port, *(other or settings))]
    said = []
    for p in reversed(procs):
        try: said.insert(0, p.communicate(timeout=200 if not said or other is None else 20)[0])
        except subprocess.TimeoutExpired:  # waits for one that is dead
            p.kill()
            said.insert(0, p.communicate()[0])
    if any(p.returncode for p in procs): return tuple(p.returncode for p in procs), said
    return [[torch.load(out / f"{i} rank {r}.pth") for r in range(2)] for i in range(len(settings))]


def close(a, b, eps): return all((x - y).abs().max() < eps for x, y in zip(a, b))


SETTINGS = [dict(kind="plain"), dict(kind="batch", risk="cvar:.3"), dict(), dict(n_inner=3), dict(n_inner=3, method="finite_difference", meta_bs=30),
            dict(n_inner=2, fresh=True, knots=None, risk="cvar:.3"), dict(kind="batch", risk="groups:dro"), dict(kind="batch", risk="groups:worst"),
            dict(risk="groups:worst"), dict(bn=True, epochs=1)]
WEIGHED = dict(weight=[.2, 1., 3.], reduction="sum")
OWN = [dict(kind="plain", **WEIGHED), dict(kind="batch", risk="expected", **WEIGHED), dict(meta_lr=1e-7, **WEIGHED)]

DEFAULT = dict(kind="default", epochs=3)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    got = two(tmp_path_factory.mktemp("two"), *SETTINGS, *OWN, DEFAULT)
    assert isinstance(got, list), got
    return got


@pytest.mark.parametrize("i", range(len(SETTINGS)), ids=[str(o) for o in SETTINGS])
def test_two_processes_learn_what_one_learns_from_the_joined_batches(i, results, tmp_path):
    (a, b), settings = results[i], SETTINGS[i]
    assert close(a["phi"], b["phi"], 1e-45) and len(a["phi"]) == (0 if "kind" in settings else 10 * settings.get("epochs", 2))
    if "bn" in settings: return  # each process has the statistics of its own part
    c = distributed_worker.run(tmp_path, join=2, **settings)
    assert close(a["theta"], b["theta"], 1e-45) and close(a["theta"], c["theta"], 1e-4) and close(a["phi"], c["phi"], 1e-3)
    assert not a["phi"] or a["phi"][-1].abs().max() > .05
    assert close(a["risk"], b["risk"], 1e-6) and close(a["risk"], c["risk"], 1e-3)  # of the whole validation set


def test_uniform_weights_are_the_own_loss_of_each_process(results):
    plain, *others = [a for a, _ in results[len(SETTINGS):-1]]
    assert all(close(plain["theta"], o["theta"], 1e-3) for o in others) and others[1]["phi"][-1].any()


def test_every_process_knows_every_sample(results, tmp_path):
    a, b = (o["samples"] for o in results[-1])
    assert all(torch.equal(a[k], b[k]) for k in a if k != "decoy")  # the first process has saved, so it counted earlier
    assert (a["visits"] == 3).all() and not a["seen"].isnan().any()
    one = distributed_worker.run(tmp_path, join=2, **DEFAULT)["samples"]
    order = distributed_worker.joined(200, 10, 2)
    assert all((a[k][order] == one[k]).all() for k in ("label", "visits")) and close([a["loss"][order]], [one["loss"]], 1e-3)
    assert close([a["seen"][order]], [one["seen"]], 1e-3)


def test_synchronised_batch_norm_is_refused():
    learn = learner(MetaRisk(), model=torch.nn.SyncBatchNorm.convert_sync_batchnorm(net()))
    with pytest.raises(TypeError, match="pass sync_bn=False to distrib_ctx"): fit(learn)


def test_data_parallel_is_unwrapped():
    model = net()
    plain, parallel = [fit(learner(MetaRisk(every=1), model=m)) for m in (deepcopy(model), torch.nn.DataParallel(model))]
    assert close([parallel.meta_risk.weights], [plain.meta_risk.weights], 1e-6) and unwrapped(parallel.model) is parallel.model.module


def test_a_killed_worker_and_a_run_that_goes_on_from_the_last_save(tmp_path):
    codes, said = two(tmp_path, dict(epochs=2), other=[dict(epochs=2, die=15)])
    assert codes[1] == 9 and codes[0], said
    assert (tmp_path / "models" / "meta.pth").exists()
    whole, = two(tmp_path / "whole", dict(epochs=2))
    rest, = two(tmp_path, dict(epochs=2, start=1))
    assert close(rest[0]["phi"], whole[0]["phi"][10:], 1e-6) and close(rest[0]["theta"], whole[0]["theta"], 1e-6) and close(rest[0]["phi"], rest[1]["phi"], 1e-45)
