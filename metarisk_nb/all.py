"Everything at once, the fastai way: `from metarisk_nb.all import *`"

from .risk import *
from .reducer import *
from .hypergrad import *
from .callback import *
from .data import *
from .training import *
from .study import *
from .plot import *
from .widget import *
