"Cut the bundled data from Fashion-MNIST's four idx files, once: `python scripts/make_fashion_mini.py FOLDER`"
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from metarisk_nb.readers import idx_array

OUT = Path(__file__).parents[1] / "metarisk_nb/data"
SEED, PER_CLASS = 0, 1200


def main(folder):
    (x, y), (tx, ty) = [[idx_array(Path(folder), f"{o}-{k}-ubyte") for k in ("images-idx3", "labels-idx1")] for o in ("train", "t10k")]
    rng = np.random.default_rng(SEED)
    keep = np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == c))[:PER_CLASS] for c in range(10)]))
    data = dict(train_x=x[keep], train_y=y[keep], train_index=keep.astype(np.int32), test_x=tx, test_y=ty)
    fn = OUT / "fashion_mini.npz"
    np.savez_compressed(fn, **data)
    about = dict(
        file=fn.name, sha256=hashlib.sha256(fn.read_bytes()).hexdigest(), licence="MIT, see LICENSE.fashion-mnist",
        source="Fashion-MNIST, Zalando Research, https://github.com/zalandoresearch/fashion-mnist",
        cut=f"{PER_CLASS} training images of each class, drawn with numpy's default_rng({SEED}) and kept in their order "
            "(train_index holds their places among the 60,000), and all 10,000 test images; made by scripts/make_fashion_mini.py",
        arrays={k: [list(v.shape), str(v.dtype)] for k, v in data.items()})
    (OUT / "fashion_mini.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__": main(sys.argv[1])
