import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread costs more than it brings

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="the slow tests too")


def pytest_collection_modifyitems(config, items):
    for o in items:
        if "gpu" in o.keywords and not torch.cuda.is_available(): o.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in o.keywords and not config.getoption("--slow"): o.add_marker(pytest.mark.skip(reason="slow: run with --slow, or `make test SLOW=1`"))
