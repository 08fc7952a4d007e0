"Moved to metarisk_nb.lab: datasets and methods. This module keeps the old names"

from .lab.datasets import cifar10_classes, network, study_data
from .lab.methods import StepsDL, measure, recipes

__all__ = ['cifar10_classes', 'study_data', 'recipes', 'network', 'measure', 'StepsDL']
