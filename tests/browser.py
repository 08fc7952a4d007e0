"A real Chromium for the tests: no request leaves this machine, console errors are kept"
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

CHROME = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]
MUST = os.environ.get("CI_BROWSER") == "1"  # what would be skipped fails instead
LOCAL = "127.0.0.1", "localhost"


def missing():
    "What a browser test lacks here, '' where nothing"
    if not CHROME: return "no Chromium on PATH"
    return "" if importlib.util.find_spec("playwright") else "playwright is not installed"


def needs_browser(f): return pytest.mark.browser(pytest.mark.skipif(not MUST and bool(missing()), reason=missing() or "-")(f))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *args): pass  # the browser left in the middle of a file


@contextmanager
def serve(folder):
    "Serve a folder on a free loopback port; gives the address, with the last slash"
    with _Server(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{s.server_address[1]}/"
        finally: s.shutdown()


@contextmanager
def _notebook_server(log, address, *args):
    "A server of notebooks on loopback, until the block ends; gives its `address` with the port filled in"
    port = free_port()
    with log.open("w") as out:
        p = subprocess.Popen([sys.executable, "-m", *(o.format(port=port) for o in args)], cwd=log.parent, stdout=out, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                if p.poll() is not None: pytest.fail(log.read_text())
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0: break
                time.sleep(.5)
            yield address.format(port=port)
        finally:
            p.terminate()
            p.wait(20)


def voila(nb, tmp):
    "Serve a notebook as a page"
    return _notebook_server(tmp / "voila.txt", "http://127.0.0.1:{port}/", "voila", str(nb), "--no-browser", "--port={port}", "--Voila.ip=127.0.0.1", "--show_tracebacks=True")


def jupyterlab(nb, tmp):
    "A plain JupyterLab that has a notebook open"
    open_to_all = "--ServerApp.token=", "--ServerApp.password=", "--allow-root", f"--ServerApp.root_dir={nb.parent}"
    return _notebook_server(tmp / "lab.txt", f"http://127.0.0.1:{{port}}/lab/tree/{nb.name}", "jupyter", "lab", "--no-browser", "--port={port}", *open_to_all)


@contextmanager
def page(url=None, width=1100, height=1600, wait="load", timeout=120_000, scale=1):
    "A page of a new headless Chromium: `errors` holds its console and script errors, `outside` the requests that were not local and so aborted"
    if missing(): pytest.fail(missing())  # only with CI_BROWSER=1: `needs_browser` skips before
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=CHROME, headless=True, args=ARGS)
        try:
            p = chrome.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
            p.errors, p.outside = [], []

            def route(r):
                u = urlsplit(r.request.url)
                if u.scheme in ("data", "blob") or u.hostname in LOCAL: return r.continue_()
                p.outside.append(r.request.url)
                r.abort()
            p.route("**/*", route)
            p.on("pageerror", lambda e: p.errors.append(str(e)))
            p.on("console", lambda m: p.errors.append(f"{m.text} ({m.location.get('url')})") if m.type == "error" else None)
            if url: p.goto(url, wait_until=wait, timeout=timeout)
            yield p
        finally: chrome.close()
