"Moved to metarisk_nb.lab: run, store and sweep. This module keeps the old names"

from .lab.run import Run, rules
from .lab.store import history, load_results, record
from .lab.sweep import run, sweep

__all__ = ['rules', 'Run', 'run', 'sweep', 'load_results', 'record', 'history']
