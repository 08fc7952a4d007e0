"Moved to metarisk_nb.lab: scales, plan and cli. This module keeps the old names"

from .lab.cli import main
from .lab.plan import plan, study_runs, times_plain
from .lab.scales import gpus, scales, targets

__all__ = ['targets', 'scales', 'gpus', 'study_runs', 'times_plain', 'plan', 'main']
