"Moved to metarisk_nb.lab.tables. This module keeps the old names"

from .lab.tables import (as_markdown, beside, bootstrap, compare, four_tables, headlines, paired, paper_acc, paper_clean, paper_noise,
                         paper_risk, verdicts)

__all__ = ['paper_risk', 'paper_acc', 'paper_clean', 'paper_noise', 'bootstrap', 'paired', 'beside', 'verdicts', 'compare',
           'four_tables', 'headlines', 'as_markdown']
