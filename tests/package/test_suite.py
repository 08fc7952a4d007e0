"How the tests are spread over processes"
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def conftest():
    spec = importlib.util.spec_from_file_location("conf", Path(__file__).parents[1] / "conftest.py")
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


class Item:
    def __init__(self, nodeid, *fixtures, skip=False): self.nodeid, self.fixturenames, self.marks, self.skip = nodeid, fixtures, [], skip
    def add_marker(self, o): self.marks.append(o.args[0])
    def get_closest_marker(self, name): return self.skip and name == "skip"


def test_what_shares_a_fixture_stays_together_and_what_takes_long_starts_first(conftest, monkeypatch):
    monkeypatch.setattr(conftest, "SHARED", dict(wheel="wheel"))
    monkeypatch.setattr(conftest, "SECONDS", dict(slow=5, slower=9, wheel=4))
    items = [Item("a"), Item("wheel-1", "wheel", "tmp_path"), Item("slow"), Item("slower", skip=True), Item("wheel-2", "wheel"), Item("b"), Item("slower-2")]
    conftest.arrange(items)
    assert [o.nodeid for o in items] == ["slower-2", "wheel-1", "wheel-2", "slow", "a", "slower", "b"]
    assert [o.nodeid for o in items if o.marks] == ["wheel-1", "wheel-2"] and items[1].marks == ["wheel"]


ROOT = Path(__file__).parents[2]


def test_what_shares_a_fixture_runs_in_one_process(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_two.py").write_text("import pytest\n@pytest.fixture(scope='module')\ndef wheel(): pass\ndef test_a(wheel): pass\ndef test_b(wheel): pass\n")
    how = ["-n2", "--dist", "loadgroup", "--no-loadscope-reorder", "-v", "-p", "no:cacheprovider"]
    out = subprocess.run([sys.executable, "-m", "pytest", *how, tmp_path], cwd=tmp_path, capture_output=True, text=True).stdout
    ran = re.findall(r"\[(gw\d)\].*PASSED .*::test_\w(@\w+)?", out)
    assert len(ran) == 2 and len({*ran}) == 1 and ran[0][1] == "@wheel", out


@pytest.mark.parametrize("given,expected", [
    (dict(), 3), (dict(args=[ROOT / "tests/core", ROOT / "tests/lab"]), 3), (dict(numprocesses=0), 0), (dict(numprocesses=7), 7), (dict(args=[__file__]), None),
    (dict(args=[ROOT / "tests", f"{__file__}::test_x"]), None), (dict(keyword="cvar"), None), (dict(usepdb=True), None), (dict(collectonly=True), None), (dict(workerinput={}), None)])
def test_folders_run_in_parallel_and_n_has_the_last_word(conftest, monkeypatch, given, expected):
    monkeypatch.setattr(conftest, "workers", lambda: 3)
    option = dict(numprocesses=None, keyword="", markexpr="", lf=False, collectonly=False, usepdb=False)
    config = SimpleNamespace(args=[str(o) for o in given.get("args", [ROOT / "tests"])], option=SimpleNamespace(**option | {k: v for k, v in given.items() if k in option}))
    if "workerinput" in given: config.workerinput = given["workerinput"]
    conftest.pytest_cmdline_main(config)
    assert config.option.numprocesses == expected


@pytest.mark.parametrize("cpus,expected", [(1, 0), (2, 2), (3, 3), (64, 4)])
def test_one_process_per_processor(conftest, monkeypatch, cpus, expected):
    monkeypatch.setattr(conftest.os, "sched_getaffinity", lambda _: range(cpus), raising=False)
    assert conftest.workers() == expected
