"Steps per second in the paper's setting, and the time of a whole run: `python scripts/bench_gpu.py` (see --help)"
import argparse
import sys
import warnings

from metarisk_nb.lab.cli import stoppable

warnings.filterwarnings("ignore")


def options():
    o = argparse.ArgumentParser(description=__doc__)
    o.add_argument("--seconds", type=float, default=60, help="how long to train in each of the three ways")
    o.add_argument("--data", default="cifar10", help="data set: digits, fashion_mini, cifar10_cut or cifar10")
    o.add_argument("--arch", default="resnet18_32", help="network: mlp, cnn or resnet18_32")
    o.add_argument("--path", help="folder of CIFAR-10; by default METARISK_DATA")
    o.add_argument("--bf16", action="store_true", help="train in mixed precision with bfloat16")
    return o.parse_args()


def main():
    o = options()
    with stoppable("bench_gpu"):
        from metarisk_nb.lab.bench import bench_gpu  # late, so that --help doesn't wait for torch
        try: bench_gpu(**vars(o))
        except OSError as e: sys.exit(f"bench_gpu: {e}")


if __name__ == "__main__": main()
