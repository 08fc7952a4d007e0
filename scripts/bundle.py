"The small set of stored runs that ships with the package: `python scripts/bundle.py [--check]`"
import gzip
import json
import sys
from pathlib import Path

from metarisk_nb.lab.run import digest
from metarisk_nb.widget import stored_runs

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "metarisk_nb/data/results.json.gz"

runs = [o for study in ("risk", "noise") for o in stored_runs(ROOT / "nbs/results" / study)]
new = dict(runs=runs, check=digest(runs))
if "--check" in sys.argv: sys.exit(json.loads(gzip.decompress(FILE.read_bytes())) != new and "run `make prepare`: the bundled runs are stale")
FILE.write_bytes(gzip.compress(json.dumps(new, separators=(",", ":")).encode(), mtime=0))
