"Moved to metarisk_nb.lab: contenders, bench and report. This module keeps the old names"

from .lab.bench import bench, bench_gpu, heavy, overhead, overhead_runs, peak_memory, take_turns, throughput
from .lab.bench import measure_cost as measure
from .lab.bench import rounds as plan
from .lab.contenders import Work, Workload, contenders, cost_model, cross_entropy, ours, peers, work, workloads
from .lab.report import best_peer, every, images, load_costs, model_ratio, overhead_ratios, plot_cost, ratio, report
from .lab.report import goals as targets

__all__ = ['Work', 'Workload', 'workloads', 'ours', 'peers', 'contenders', 'every', 'images', 'targets', 'overhead_runs',
           'plan', 'heavy', 'cross_entropy', 'work', 'cost_model', 'take_turns', 'peak_memory', 'measure', 'load_costs',
           'ratio', 'best_peer', 'model_ratio', 'report', 'throughput', 'overhead', 'overhead_ratios', 'bench', 'bench_gpu',
           'plot_cost']
