"""Notebooks, each in a process of its own that is forked from this one, which has the heavy imports behind it; their figures are looked at

`serve` reads a notebook's path from each line of stdin, and answers with a line on stdout: its exit status, its processor seconds and what it wrote of its errors.
"""
import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

# What most notebooks import, from outside the package; the package itself is imported by each process
HEAVY = ["fastai.vision.all", "ipywidgets", "matplotlib.pyplot", "nbdev.test", "seaborn", "sklearn.datasets"]


def watch(found):
    "Put what is wrong with each figure that a cell shows into the list `found`"
    sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
    from figures import problems
    from IPython.core import pylabtools
    show = pylabtools.print_figure

    def print_figure(fig, *args, **kwargs):
        found.extend(problems(fig))
        return show(fig, *args, **kwargs)
    pylabtools.print_figure = print_figure


def run(fn):
    "As `nbdev-test` does: with IN_TEST set, in the notebook's folder, without the cells that are marked slow, gpu or notest"
    from nbdev.test import nbdev_test
    watch(found := [])
    nbdev_test(fn)
    assert not found, "\n".join(["a figure cannot be read on a page:", *found])


def child(fn, log):
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY)): os.dup2(os.open(os.devnull, mode), fd)
    os.dup2(log, 2)
    status = 1
    try:
        run(fn)
        status = 0
    except SystemExit as e: status = e.code
    except BaseException: traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve():
    for o in HEAVY: importlib.import_module(o)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as log:
            pid = os.fork()
            if not pid: child(json.loads(line), log.fileno())
            _, status, used = os.wait4(pid, 0)
            log.seek(0)
            says = log.read().decode(errors="replace")[-5000:]
            print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, says]), flush=True)
