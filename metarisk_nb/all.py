"Everything at once, the fastai way: `from metarisk_nb.all import *`"

from .risk import *
from .reducer import *
from .hypergrad import *
from .callback import *
from .groups import ColumnGroups, GroupRisk, last_target  # noqa: F401
from .by_group import group_report  # noqa: F401
from .data import *
from .cleaning import *
from .lab.datasets import cifar10_classes, network, study_data  # noqa: F401
from .lab.methods import StepsDL, measure, recipes  # noqa: F401
from .lab.run import Run, rules  # noqa: F401
from .lab.store import history, load_results, record  # noqa: F401
from .lab.sweep import run, sweep  # noqa: F401
from .plot import *
from .widget import *
