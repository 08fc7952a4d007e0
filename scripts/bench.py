"Time and memory of the hypergradient beside those of its peers: `python scripts/bench.py` (see --help)"
import argparse
import sys
import warnings

from metarisk_nb.lab.cli import stoppable

warnings.filterwarnings("ignore")


def options():
    o = argparse.ArgumentParser(description=__doc__)
    o.add_argument("--out", default="nbs/results/cost", help="folder of the results store")
    o.add_argument("--threads", type=int, default=2, help="number of threads that torch may use")
    o.add_argument("--quick", action="store_true", help="tiny batches and one round, which only show that it works")
    return o.parse_args()


def main():
    o = options()
    with stoppable("bench", "; what was measured is stored"):
        from metarisk_nb.lab.bench import bench  # late, so that --help doesn't wait for torch
        try: bench(**vars(o))
        except OSError as e: sys.exit(f"bench: {e}")


if __name__ == "__main__": main()
