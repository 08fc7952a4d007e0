"One of two processes that train one model with the `Trainer`: halves of a batch each"
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import torch  # noqa: E402
from digits import accuracy  # noqa: E402
from hugging import trainer  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    t = trainer(Path(sys.argv[1]) / "out", epochs=30, bs=50, ddp_backend="gloo")
    t.train()
    state = dict(weights=t.meta_risk.weights, model=t.model.state_dict(), accuracy=accuracy(t.model.net))
    torch.save(state, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
