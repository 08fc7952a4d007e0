"Processes that are real and yet start at once: they fork off a server that has imported torch and fastai for all of them"
import multiprocessing
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import psutil

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["metarisk_nb.lab.sweep", "metarisk_nb.lab.plan", "metarisk_nb.lab.cli", "forks"])


def _call(f, args, out, terminal):
    "Run `f` with its output in the file `out`, or on the terminal of that name, which Ctrl-C comes from"
    if terminal: os.setsid()  # the terminal opened next is the process's own
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background of a shell have inherited that it is ignored
    fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for i in (1, 2): os.dup2(fd, i)
    sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2))
    f(*args)


class Forked:
    "A function of a module in a process of its own; `wait` gives its exit status and what it printed"
    def __init__(self, f, *args, out): self.out, self.pid = Path(out), self._start(f, args, out, False)

    def _start(self, f, args, out, terminal):
        self.process = context.Process(target=_call, args=(f, args, str(out), terminal))
        self.process.start()
        return self.process.pid

    def wait(self, seconds=300):
        self.process.join(seconds)
        if self.process.exitcode is None:
            for o in [*psutil.Process(self.pid).children(recursive=True), self.process]: o.kill()
            raise AssertionError(f"it goes on and on: {self.said()}")
        return self.process.exitcode, self.said()

    def said(self): return self.out.read_text()


class OnTerminal(Forked):
    "The same on a terminal, on which keys can be pressed"
    def __init__(self, f, *args):
        self.master, self.slave = pty.openpty()
        self.text = ""
        self.pid = self._start(f, args, os.ttyname(self.slave), True)

    def press(self, key): os.write(self.master, key)

    def said(self):
        "Everything so far"
        while select.select([self.master], [], [], 0)[0]: self.text += os.read(self.master, 65536).decode()
        return self.text

    def wait(self, seconds=300):
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end:  # a terminal that nobody reads holds up who writes to it
            self.said()
            self.process.join(.05)
        return super().wait(0)


def wait_for(ok, seconds=300):
    end = time.monotonic() + seconds
    while not ok():
        assert time.monotonic() < end, "waited too long"
        time.sleep(.02)
