"Write the small set of stored runs that ships with the package: `python scripts/bundle.py [--check]`"
import gzip
import json
import sys
from pathlib import Path

from metarisk_nb.lab.run import Run, digest
from metarisk_nb.lab.scales import bench_row, contested, people
from metarisk_nb.stored import stored_runs

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "metarisk_nb/data/results.json.gz"
# Methods that ran with all seeds on nearly every task with wrong labels
FIELD = "presumption expected joined label_smoothing mixup gce sce elr mixture two_networks mwnet learned oracle".split()
HUMAN = [dict(o, data="cifar10_second") for o in people["people"]]
TASKS = [Run(**bench_row(o)) for o in (*contested["noisy"], *HUMAN)]
SAME = "data noise noise_kind shift augment mom lr opt".split()


def of_the_lab(run):
    "Is this a run of one of the tasks, with a method and a length that the noise lab shows?"
    if run["method"] not in FIELD: return False
    return any(run["length"] in (o.steps // 4, o.steps // 2, o.steps) and all(run[k] == getattr(o, k) for k in SAME) for o in TASKS)


def of(study): return stored_runs(ROOT / "nbs/results" / study)


runs = [*of("risk"), *of("noise"), *(o for study in ("fresh", "rivals", "second") for o in of(study) if of_the_lab(o))]
new = dict(runs=runs, check=digest(runs))
if "--check" in sys.argv: sys.exit(json.loads(gzip.decompress(FILE.read_bytes())) != new and "run `make prepare`: the bundled runs are stale")
FILE.write_bytes(gzip.compress(json.dumps(new, separators=(",", ":")).encode(), mtime=0))
