"One of two processes that Lightning starts: digits with the learned weights, halves of a batch each"
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
warnings.filterwarnings("ignore")
import lightning  # noqa: E402
import torch  # noqa: E402
from digits import accuracy, sets  # noqa: E402
from test_lightning import Digits  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from metarisk_nb.lightning import MetaRiskCallback  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    (train, valid), module, callback = sets(), Digits(), MetaRiskCallback()
    trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=30, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                                enable_model_summary=False, callbacks=[callback])
    trainer.fit(module, DataLoader(train, 50, shuffle=True), DataLoader(valid, 50))
    state = dict(weights=callback.learned.weights, model=module.state_dict(), accuracy=accuracy(module.net))
    torch.save(state, Path(sys.argv[1]) / f"{trainer.global_rank}.pt")
