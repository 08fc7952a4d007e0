"Gather the results of each study in one file: `python scripts/pack.py`; runs that sweeps are still writing stay in files of their own"
from pathlib import Path

from metarisk_nb.lab.scales import scales
from metarisk_nb.lab.store import pack_study

RESULTS = Path(__file__).resolve().parents[1] / "nbs/results"

for study in sorted({*scales["cpu"], "default"}):
    if (RESULTS / study).is_dir(): pack_study(RESULTS / study)
