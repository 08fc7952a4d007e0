"Risk functionals and meta-learned reducers for mini-batch training"

from importlib.metadata import version as _version

__version__ = _version("metarisk_nb")
