"One thread per process and one process per processor: the longest tests start first, and those that share an expensive fixture stay together"
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread costs more than it brings

import pytest
import torch

torch.set_num_threads(1)

# Fixtures that are made once, and not once per process: the tests that use one of them run in the same process
SHARED = {"built": "site", "handout": "handout", "lesson": "widgets", "wheel": "wheel", "results": "distributed"}
# Seconds of the tests that take long, by a part of their name, with the fixture made for them; rough figures are enough, they only decide what starts first
SECONDS = {"test_risk_explorer": 40, "test_no_problem_is_found": 30, "pages_in_a_browser": 30, "axe_finds": 10, "killed": 30, "test_wheel": 20,
           "two_sweeps": 16, "two_processes_learn": 8, "demo_does_its_job": 12, "handout_has": 15, "bundled_runs": 8, "test_notebook_runs": 8,
           "[03_": 15, "[05_": 20, "[07_": 14, "[08_": 12, "[09": 12, "test_loop_learns": 5, "two_processes_learn_the_same": 20}


@pytest.fixture(autouse=True)
def no_autocast_left_open():
    "A test that leaves autocast open lets every later one train on out-of-date copies of the parameters"
    yield
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1): torch.autocast_decrement_nesting()
    assert depth == 0, "autocast is still open after this test"


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="the slow tests too")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    "Folders run in parallel, at most four processes; a file or a single test does not. `-n` overrides this"
    o = config.option
    folders = all(os.path.isdir(a) for a in config.args) and not (o.keyword or o.markexpr or getattr(o, 'lf', False) or o.collectonly or o.usepdb)
    if o.numprocesses is None and not hasattr(config, "workerinput") and folders: o.numprocesses = workers()


def workers():
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if n < 2 else min(n, 4)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    for o in items:
        if "gpu" in o.keywords and not torch.cuda.is_available(): o.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in o.keywords and not config.getoption("--slow"): o.add_marker(pytest.mark.skip(reason="slow: run with --slow, or `make test SLOW=1`"))
    if hasattr(config, "workerinput"): arrange(items)


def arrange(items):
    "Put what shares a fixture into one group, and the groups that take longest first"
    unit, total = {}, {}
    for o in items:
        group = next((g for f, g in SHARED.items() if f in getattr(o, "fixturenames", ())), None)
        if group: o.add_marker(pytest.mark.xdist_group(group))
        unit[o] = group or o.nodeid
        seconds = 0 if o.get_closest_marker("skip") else max([s for k, s in SECONDS.items() if k in o.nodeid], default=0)
        total[unit[o]] = total.get(unit[o], 0) + seconds
    items.sort(key=lambda o: -total[unit[o]])
