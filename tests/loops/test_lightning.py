"The callback for Lightning, with the real Lightning: what a plain loop learns, whatever Lightning does around it"
import copy
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from digits import BS, Noted, accuracy, arrays, furthest, net, plain_loop, sets, sgd
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

lightning = pytest.importorskip("lightning", reason="pip install 'metarisk_nb[lightning]'")
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from metarisk_nb.lightning import MetaRiskCallback  # noqa: E402
from metarisk_nb.validation import last_is_target  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Digits(lightning.LightningModule):
    def __init__(self, learned=True):
        super().__init__()
        self.net, self.learned = net(), learned
    def forward(self, x): return self.net(x)
    def configure_optimizers(self): return sgd(self)
    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.meta_risk(self.net(x), y) if self.learned else cross_entropy(self.net(x), y)
    def validation_step(self, batch, batch_idx): self.log("valid_loss", cross_entropy(self(batch[0]), batch[1]))


def loaders(noted=False, **kwargs):
    train, valid = sets()
    train = Noted(train) if noted else train
    return DataLoader(train, BS, shuffle=True, generator=torch.Generator().manual_seed(5), **kwargs), DataLoader(valid, BS)


def fit(tmp_path, module, callbacks, epochs=30, dls=None, ckpt_path=None, **kwargs):
    kwargs = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False) | kwargs
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=tmp_path, callbacks=callbacks, log_every_n_steps=10, **kwargs)
    trainer.fit(module, *(dls or loaders()), ckpt_path=ckpt_path)
    return trainer


def test_it_learns_what_the_plain_loop_learns(tmp_path):
    module, callback, dls = Digits(), MetaRiskCallback(), loaders(noted=True)
    fit(tmp_path, module, [callback], dls=dls)
    order = torch.tensor(dls[0].dataset.asked[2 * 2:]).view(-1, BS)  # two samples were drawn twice, to see whether they are augmented
    model, weights = plain_loop(order)
    assert weights.harmful > .3 and accuracy(module.net) > .85
    torch.testing.assert_close(callback.learned.weights, weights.weights, atol=1e-6, rtol=0)
    assert furthest(module.net, model) < 1e-6
    assert callback.label_report().equals(weights.label_report())


def test_uniform_weights_leave_training_as_it_is_to_the_last_bit(tmp_path):
    with_, without = Digits(), Digits(learned=False)
    fit(tmp_path, with_, [callback := MetaRiskCallback()], epochs=3)
    fit(tmp_path, without, [], epochs=3)
    assert callback.learned.curriculum.uniform and furthest(with_.net, without.net) == 0


class Erased(Digits):
    "A module whose hooks spoil training data, as an augmentation would, and count what they are given"
    def __init__(self, counts, seen):
        super().__init__()
        self.note = lambda: (counts, seen)  # outside the module, which a look leaves as it was
    def on_before_batch_transfer(self, batch, dataloader_idx):
        counts, stage = self.note()[0], self.trainer.state.stage.value
        counts[stage] = counts.get(stage, 0) + 1
        return batch
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (0 * x, y) if self.trainer.training else (x, y)
    def forward(self, x):
        self.note()[1].append(x.abs().sum().item())
        return self.net(x)


def test_validation_data_pass_through_the_hooks_as_validation_data(tmp_path):
    module = Erased(counts := {}, seen := [])
    callback = MetaRiskCallback(valid=loaders()[1])
    trainer = fit(tmp_path, module, [callback], epochs=3, limit_val_batches=0, num_sanity_val_steps=0)
    looks = callback.learned.witness.looks
    assert looks > 1 and counts == dict(train=30, validate=looks)
    assert len(seen) >= looks and min(seen) > 0 and not trainer.validating


def test_the_module_is_left_as_it_was_and_its_file_needs_no_package(tmp_path):
    module, dls = Digits(), loaders()
    sampler, names = dls[0].batch_sampler.sampler, set(vars(module))
    trainer = fit(tmp_path, module, [MetaRiskCallback()], epochs=2, dls=dls)
    assert not hasattr(module, "meta_risk") and set(vars(module)) <= names | {"_hparams"}
    assert dls[0].batch_sampler.sampler is sampler
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    code = f"""
import sys, torch
sys.modules['metarisk_nb'] = None  # nobody can import it
state = torch.load({str(tmp_path / 'a.ckpt')!r}, weights_only=True)
assert [*state['callbacks']] == ['MetaRiskCallback'], [*state['callbacks']]
net = torch.nn.Sequential(torch.nn.Linear(64, 128, bias=False), torch.nn.BatchNorm1d(128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
net.load_state_dict({{k.removeprefix('net.'): v for k, v in state['state_dict'].items()}})
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path):
    def dls():
        train, valid = sets()
        return DataLoader(train, BS, shuffle=False), DataLoader(valid, BS)
    through = Digits()
    one = MetaRiskCallback()
    fit(tmp_path, through, [one, lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", every_n_epochs=12, save_top_k=-1)],
        epochs=24, dls=dls(), enable_checkpointing=True)
    first = min((tmp_path / "kept").iterdir())
    resumed, two = Digits(), MetaRiskCallback()
    fit(tmp_path, resumed, [two], epochs=24, dls=dls(), ckpt_path=first)
    assert not one.learned.curriculum.uniform
    assert torch.equal(one.learned.weights, two.learned.weights) and furthest(through, resumed) == 0


@pytest.mark.parametrize("parts, epochs", [(2, 20), (3, 20)])
def test_accumulated_gradients_keep_lightnings_normaliser_in_a_last_partial_group_too(tmp_path, parts, epochs):
    "With three parts, the tenth batch of a pass is a group of its own"
    module, callback, dls = Digits(), MetaRiskCallback(), loaders(noted=True)
    trainer = fit(tmp_path, module, [callback], epochs, dls=dls, accumulate_grad_batches=parts)
    assert trainer.global_step == epochs * -(-10 // parts)
    order = torch.tensor(dls[0].dataset.asked[4:]).view(-1, BS)
    model, weights = by_hand(order, parts)
    assert not weights.curriculum.uniform
    torch.testing.assert_close(callback.learned.weights, weights.weights, atol=1e-6, rtol=0)
    assert furthest(module.net, model) < 1e-6


def by_hand(order, parts):
    "As `plain_loop`, but a pass ends a group, whose losses are divided by `parts` even where there are fewer"
    from digits import LearnedWeights, N, ValidationStream
    (train, valid), model = sets(), net()
    opt = sgd(model)
    weights = LearnedWeights(model, ValidationStream(DataLoader(valid, BS), last_is_target), N, optimizer=opt)
    for i, ids in enumerate(order):
        weights.listen()
        pred = model(train.tensors[0][ids])
        (weights(pred, train.tensors[1][ids], ids) / parts).backward()
        if (i % 10 + 1) % parts and i % 10 != 9: continue
        opt.step()
        opt.zero_grad()
        weights.stepped()
    return model, weights


def test_mixed_precision(tmp_path):
    module, callback = Digits(), MetaRiskCallback()
    fit(tmp_path, module, [callback], precision="bf16-mixed")
    assert accuracy(module.net) > .85 and callback.learned.harmful > .3
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_workers_and_a_validation_loader_of_its_own(tmp_path):
    "With workers, sample numbers are known from the second pass on"
    module, (train, valid) = Digits(), loaders(num_workers=1, persistent_workers=True)
    callback = MetaRiskCallback(valid, network=module.net)
    fit(tmp_path, module, [callback], epochs=12, dls=(train, None))
    report = callback.label_report()
    _, given, clean = arrays()
    assert (given != clean)[report["index"][:100].tolist()].float().mean() > .9 and report["seen"].max() == 11


def test_what_was_learned_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Digits(), [MetaRiskCallback()], epochs=30, logger=logger)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names, last = rows[0].split(","), [r.split(",") for r in rows if r.split(",")[rows[0].split(",").index("meta_risk/harmful")]][-1]
    said = dict(zip(names, last))
    assert float(said["meta_risk/harmful"]) > .3 and float(said["meta_risk/worst_quarter"]) < .1 and float(said["meta_risk/looks"]) > 3


def test_without_validation_data_nothing_begins(tmp_path):
    with pytest.raises(ValueError, match="valid="): fit(tmp_path, Digits(), [MetaRiskCallback()], dls=(loaders()[0], None))
    with pytest.raises(ValueError, match="split="): last_is_target(dict(x=1))


class Skips(Digits):
    "Every other pass it leaves out a batch, and of one batch it takes a part"
    def training_step(self, batch, batch_idx):
        x, y = batch
        if batch_idx == 2 and self.current_epoch % 2: return None
        if batch_idx == 4: x, y = x[:60], y[:60]
        return self.meta_risk(self.net(x), y)


def test_a_batch_that_is_skipped_or_cut_leaves_the_numbers_of_the_others(tmp_path):
    module, callback = Skips(), MetaRiskCallback()
    fit(tmp_path, module, [callback])
    _, given, clean = arrays()
    assert (given != clean)[callback.label_report()["index"][:200].tolist()].float().mean() > .95 and accuracy(module.net) > .85


def test_each_fit_begins_anew_though_a_checkpoint_was_tested_before(tmp_path):
    callback, module, (train, valid) = MetaRiskCallback(), Digits(), loaders()
    trainer = fit(tmp_path, module, [callback, lightning.pytorch.callbacks.ModelCheckpoint(tmp_path)], 20, (train, valid), enable_checkpointing=True)
    assert callback.learned.harmful > .3
    trainer.validate(module, valid, ckpt_path="best", verbose=False)
    fit(tmp_path, Digits(), [callback], 1, (train, valid))
    assert callback.learned.harmful == 0


def test_after_an_error_module_and_loader_are_as_they_were(tmp_path):
    class Fails(Digits):
        def on_train_epoch_end(self): raise RuntimeError("no more")
    module, dls = Fails(), loaders()
    sampler = dls[0].batch_sampler.sampler
    with pytest.raises(RuntimeError, match="no more"): fit(tmp_path, module, [MetaRiskCallback()], dls=dls)
    assert dls[0].batch_sampler.sampler is sampler and not hasattr(module, "meta_risk")


def test_outside_training_it_is_the_mean(tmp_path):
    class Shared(Digits):
        def validation_step(self, batch, batch_idx): self.log("valid_loss", self.meta_risk(self.net(batch[0]), batch[1]))
        test_step = validation_step
    module, (train, valid), callback = Shared(), loaders(), MetaRiskCallback()
    trainer = fit(tmp_path, module, [callback], 12, (train, valid))
    before = callback.learned.weights
    got = trainer.test(module, valid, verbose=False)[0]["valid_loss"]
    x, y = valid.dataset.tensors
    with torch.no_grad(): want = cross_entropy(module.eval().net(x), y).item()
    assert abs(got - want) < 1e-5 and torch.equal(callback.learned.weights, before)
    with torch.no_grad(): assert abs(callback(module.net(x), y).item() - want) < 1e-5, "after all fits, too"


def test_folds_and_loaders_that_come_anew_each_pass(tmp_path):
    train, valid = sets()
    folds = DataLoader(train, BS, sampler=torch.utils.data.SubsetRandomSampler(range(200, 1000)))
    callback = MetaRiskCallback()
    fit(tmp_path, Digits(), [callback], 20, (folds, DataLoader(valid, BS)))
    assert callback.label_report()["index"].min() >= 200 and callback.learned.curriculum.passes == pytest.approx(20)
    class Anew(Digits):
        def train_dataloader(self): return DataLoader(train, BS, shuffle=True)
        def val_dataloader(self): return DataLoader(valid, BS)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=12, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
                                enable_model_summary=False, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Anew())
    assert callback.label_report()["seen"].eq(12).all()


def test_a_stream_of_unknown_length(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(sets()[0])
    module, callback = Digits(), MetaRiskCallback()
    fit(tmp_path, module, [callback], 20, (DataLoader(Stream(), BS), loaders()[1]))
    assert callback.learned.harmful > .3
    with pytest.raises(ValueError, match="ids"): callback.label_report()


def test_two_optimizers_one_of_them_adam(tmp_path):
    "The second moments of the one that holds the last layer are used, and looks follow the batches"
    class Two(Digits):
        automatic_optimization = False
        def configure_optimizers(self): return sgd(self.net[:3]), torch.optim.Adam(self.net[3].parameters(), 1e-2)
        def training_step(self, batch, batch_idx):
            for o in self.optimizers(): o.zero_grad()
            self.manual_backward(self.meta_risk(self.net(batch[0]), batch[1]))
            for o in self.optimizers(): o.step()
    callback = MetaRiskCallback()
    fit(tmp_path, Two(), [callback], 12)
    w = callback.learned.witness
    assert callback.learned.step == 119 and w.looks <= 6 and len(w.optimizers) == 2
    assert [o for o in w.optimizers if w.head.found.weight in o.state] == [w.optimizers[1]] and callback.learned.harmful > 0


def test_a_module_that_gives_probabilities_is_told_what_to_do(tmp_path):
    class Soft(Digits):
        def forward(self, x): return self.net(x).softmax(1)
    with pytest.raises(ValueError, match="network="): fit(tmp_path, Soft(), [MetaRiskCallback()])
    module = Soft()
    fit(tmp_path, module, [MetaRiskCallback(network=module.net)], 1)


class Rows(Digits):
    "Its batches say which rows they are, and it notes what the callback says"
    def __init__(self, said):
        super().__init__()
        self.said = lambda: said
    def training_step(self, batch, batch_idx):
        x, y, rows = batch
        ids = self.meta_risk._ids
        self.said().append(None if ids is None else torch.equal(ids, rows))
        return self.meta_risk(self.net(x), y)


class Reads(Rows):
    "In the middle of a pass it reads the training data, as a nearest-neighbour probe does"
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 3: assert len([*self.trainer.train_dataloader]) == 10


class Fetches(Rows):
    "It fetches its batches itself"
    def training_step(self, dataloader_iter): return super().training_step(next(dataloader_iter)[0], 0)


def some_are_lost(items):
    "As a collator does that meets samples it cannot read"
    batch = torch.utils.data.default_collate(items)
    return None if batch[2].remainder(7).eq(0).sum() > 16 else batch


@pytest.mark.parametrize("kind, kwargs, known", [
    (Rows, {}, True), (Reads, {}, True), (Rows, dict(collate_fn=some_are_lost), True), (Fetches, {}, None),
    (Rows, dict(num_workers=1, in_order=False), None)], ids=["plain", "read meanwhile", "lost batches", "fetched by hand", "out of order"])
def test_sample_numbers_are_right_or_unknown(tmp_path, kind, kwargs, known):
    train, valid = sets()
    train = torch.utils.data.TensorDataset(*train.tensors, torch.arange(len(train)))
    dl = DataLoader(train, BS, shuffle=True, generator=torch.Generator().manual_seed(5), **kwargs)
    fit(tmp_path, kind(said := []), [MetaRiskCallback()], 2, (dl, DataLoader(valid, BS)))
    assert set(said) == {known} and 10 < len(said) <= 20 and (len(said) < 20) == ("collate_fn" in kwargs)


def in_tens(n): return [[*range(i, i + 10)] for i in range(0, n, 10)]


@pytest.mark.parametrize("several", [False, True], ids=["batches of one's own", "several loaders"])
def test_passes_are_counted_where_no_loader_says_the_size_of_a_batch(tmp_path, several):
    class Either(Digits):
        def training_step(self, batch, batch_idx): return super().training_step(batch["a"] if several else batch, batch_idx)
    train, valid = sets()
    dl = DataLoader(train, batch_sampler=in_tens(len(train)))
    fit(tmp_path, Either(), [callback := MetaRiskCallback()], 2, (dict(a=dl, b=DataLoader(valid, 2)) if several else dl, DataLoader(valid, BS)))
    assert callback.learned.curriculum.passes == pytest.approx(2) and callback.learned.n_items == (1200 if several else 1000)


@pytest.mark.parametrize("later", [range(800), range(100, 600)], ids=["more", "others"])
def test_where_the_data_change_between_passes_numbers_are_unknown_from_then_on(tmp_path, later):
    train, valid = sets()
    class Grows(Digits):
        def train_dataloader(self): return DataLoader(torch.utils.data.Subset(train, range(500) if self.current_epoch < 2 else later), BS, shuffle=True)
        def val_dataloader(self): return DataLoader(valid, BS)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=4, callbacks=[callback := MetaRiskCallback()], logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1)
    with pytest.warns(UserWarning, match="sample numbers are unknown"): trainer.fit(Grows())
    assert callback.label_report()["seen"].tolist() == [2] * 500


def test_validation_data_that_lightning_has_not_read_yet(tmp_path):
    fit(tmp_path, Digits(), [callback := MetaRiskCallback()], 2, num_sanity_val_steps=0, check_val_every_n_epoch=5)
    assert callback.learned.witness.looks == 1


def test_a_compiled_module_is_told_that_its_layer_is_not_heard(tmp_path):
    module = torch.compile(Digits(), backend="eager")
    with pytest.raises(ValueError, match="compiled model"): fit(tmp_path, module, [MetaRiskCallback()], 1)


def test_a_copy_of_the_module_shares_the_callback_and_a_copy_of_the_callback_is_another(tmp_path):
    class Copies(Digits):
        def on_train_start(self): assert copy.deepcopy(self.meta_risk) is self.meta_risk
    callback = MetaRiskCallback()
    fit(tmp_path, Copies(), [callback, lightning.pytorch.callbacks.StochasticWeightAveraging(1e-2)], 3)
    other = copy.deepcopy(callback)
    assert other is not callback and other.learned.step == callback.learned.step


def test_before_a_fit_there_is_no_report():
    with pytest.raises(ValueError, match="needs a fit"): MetaRiskCallback().label_report()


def test_two_processes_learn_the_same_weights(tmp_path):
    r = subprocess.run([sys.executable, Path(__file__).with_name("two_lightning.py"), tmp_path], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    assert torch.equal(a["weights"], b["weights"]) and a["weights"][:20].sum() < .1
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"] if "running" not in k and "num_batches" not in k)
    assert a["accuracy"] > .85 and len(a["weights"]) == 100
