import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread costs more than it brings

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available(): return
    for o in items:
        if "gpu" in o.keywords: o.add_marker(pytest.mark.skip(reason="no CUDA device"))
