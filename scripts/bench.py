"Time and memory of the hypergradient beside those of its peers: `python scripts/bench.py` (see --help)"
import argparse
import warnings

warnings.filterwarnings("ignore")

from metarisk_nb.lab.bench import bench  # noqa: E402


def options():
    o = argparse.ArgumentParser(description=__doc__)
    o.add_argument("--out", default="nbs/results/cost", help="folder of the results store")
    o.add_argument("--threads", type=int, default=2, help="threads of torch")
    o.add_argument("--quick", action="store_true", help="tiny batches, one round: only shows that it works")
    return o.parse_args()


if __name__ == "__main__": bench(**vars(options()))
