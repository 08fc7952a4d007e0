"Loaders of every kind: samples that do not stack, and options, generators and attributes that a copy of a loader must keep"
import random
import warnings
from itertools import chain
from types import MethodType

import fastai.data.load
import numpy as np
import pytest
import torch
from common import CPU, ce, equal, state
from fastai.basics import SGD, Callback, DataLoaders, Learner, TfmdDL, set_seed
from fastai.callback.data import PartialDL, WeightedDL
from fastai.data.load import DataLoader as FastaiLoader
from fastai.data.load import SkipItemException
from torch import nn
from torch.utils.data import BatchSampler, Dataset, IterableDataset, Sampler, SubsetRandomSampler
from torch.utils.data import DataLoader as TorchLoader

from metarisk_nb.callback import MetaRisk


def by_number(pred, y): return ce(pred, y.long() % 3)
def mean_by_number(pred, y): return by_number(pred, y).mean()


class Numbered(Dataset):
    "(a point, its number in the data set), or an image or a row of tokens whose size depends on the number"
    def __init__(self, ids, kind="points", size=lambda i: 4 + i % 3): self.ids, self.kind, self.size = list(ids), kind, size
    def __len__(self): return len(self.ids)
    def __getitem__(self, k):
        i = self.ids[k]
        g = torch.Generator().manual_seed(i)
        if self.kind == "images": return torch.randn(1, self.size(i), 5, generator=g), i
        if self.kind == "tokens": return torch.randint(0, 9, (self.size(i),), generator=g), i
        return torch.randn(6, generator=g), i


class Stream(IterableDataset):
    "A stream of points in an order of its own, out of a generator of its own"
    def __init__(self, ids, generator): self.data, self.generator = Numbered(ids), generator
    def __len__(self): return len(self.data)
    def __iter__(self): return (self.data[i] for i in torch.randperm(len(self.data), generator=self.generator).tolist())


class Tokens(nn.Module):
    def __init__(self): super().__init__(); self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
    def forward(self, x): return self.head(self.embed(x).mean(1))


models = {"points": lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(.2), nn.Linear(8, 3)), "tokens": Tokens,
          "images": lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))}


class Ends(Callback):
    "Stops a training whose loader has been sent back to its start again and again"
    batches = 0
    def before_batch(self):
        self.batches += 1
        assert self.batches < 500, "the epoch does not end"


def run(make, cbs=None, kind="points", n=2, loss=mean_by_number):
    "A Learner on the loaders of `make`, trained from the same seed each time, and the warnings"
    set_seed(0)
    learn = Learner(make(), models[kind](), loss, opt_func=SGD, cbs=cbs).add_cb(Ends())
    set_seed(1)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit(n, .01)
    return learn, [str(w.message) for w in said if str(w.message).startswith("MetaRisk")]


def learned_on(make, kind="points", **kwargs):
    "The validation batches that MetaRisk learns on, as tuples of numbers, and its warnings"
    seen = []
    def spy(pred, y): seen.append(tuple(y.tolist())); return by_number(pred, y)
    learn, said = run(make, MetaRisk.first_edition(every=1, warmup=0, loss_func=by_number, meta_loss=spy, **kwargs), kind)
    assert learn.meta_risk.skipped == 0 and seen
    return seen, said


def fresh_batches(make, **kwargs):
    "The training batches that MetaRisk draws for itself, as tuples of numbers"
    own, seen = [], []
    class Look(Callback):
        def before_batch(self):
            if self.training: own.append(tuple(self.y.tolist()))
    def spy(pred, y): seen.append(tuple(y.tolist())); return by_number(pred, y)
    run(make, [MetaRisk.first_edition(every=1, warmup=0, fresh=True, n_inner=2, loss_func=spy, meta_loss=by_number, **kwargs), Look()])
    return [o for o in seen if o not in own]


def as_plain(make, kind="points", **kwargs):
    "Is training with `meta_lr=0` the same as training without MetaRisk, to the last bit?"
    plain, _ = run(make, kind=kind)
    zero, _ = run(make, MetaRisk.first_edition(meta_lr=0., every=1, loss_func=by_number, meta_loss=by_number, **kwargs), kind)
    return equal(state(plain), state(zero)) and plain.recorder.losses == zero.recorder.losses


# --- Samples that do not stack

TRAIN, VALID = range(60), range(60, 100)


def stacked(samples):
    x, y = zip(*samples)
    return torch.tensor(np.stack([o.numpy() for o in x])), torch.tensor(y)


def size(i): return 4 + i % 3
def late(i): return 9 if i > 97 else 5


ragged = {  # the size of a sample, and the validation loader
    "fastai": (size, lambda: TfmdDL(Numbered(VALID, "images", size), bs=1, num_workers=0, device=CPU)),
    "fastai's basic loader": (size, lambda: FastaiLoader(Numbered(VALID, "images", size), bs=1, device=CPU)),
    "torch": (size, lambda: TorchLoader(Numbered(VALID, "images", size))),
    "shuffled": (size, lambda: TorchLoader(Numbered(VALID, "images", size), shuffle=True)),
    "a collate_fn of one's own": (size, lambda: TorchLoader(Numbered(VALID, "images", size), collate_fn=stacked)),
    "in a worker process": (size, lambda: TorchLoader(Numbered(VALID, "images", size), num_workers=1)),
    "only the last ones differ": (late, lambda: TorchLoader(Numbered(VALID, "images", late))),
}


def ragged_loaders(name):
    size, valid = ragged[name]
    return DataLoaders(TorchLoader(Numbered(range(14), "images", size), shuffle=True), valid())


@pytest.mark.parametrize("name,meta_bs", [(o, n) for o in ragged for n in (200, 12) if (o, n) != ("in a worker process", 12)])
def test_samples_that_do_not_stack_are_read_in_the_loaders_own_batches(name, meta_bs):
    seen, said = learned_on(lambda: ragged_loaders(name), "images", meta_bs=meta_bs)
    assert {len(o) for o in seen} == {1} and set(chain(*seen)) <= set(VALID) and len(set(seen)) > 10
    assert len([o for o in said if "one batch of the loader" in o]) == 1
    if meta_bs == 12 or "worker" in name: assert as_plain(lambda: ragged_loaders(name), "images", meta_bs=meta_bs)


class Rows(Numbered):
    "36 rows of tokens: 12 of each length, one length after another"
    def __init__(self): super().__init__(chain(*([i for i in VALID if size(i) == n][:12] for n in (4, 5, 6))), "tokens", size)


buckets = {"torch": lambda: TorchLoader(Rows(), 4), "sampler": lambda: TorchLoader(Numbered(VALID, "tokens", size), 4, sampler=[i - 60 for i in Rows().ids]),
           "fastai": lambda: TfmdDL(Rows(), bs=4, num_workers=0, device=CPU), "basic": lambda: FastaiLoader(Rows(), bs=4, device=CPU)}


@pytest.mark.parametrize("name,meta_bs", [*((o, 200) for o in buckets), ("torch", 10), ("fastai", 10), ("basic", 20), ("sampler", 20)])
def test_batches_that_only_stack_in_the_loaders_own_order_come_whole_and_in_any_order(name, meta_bs):
    def make(): return DataLoaders(TorchLoader(Numbered(TRAIN, "tokens", lambda i: 5), 6, shuffle=True), buckets[name]())
    own = {tuple(Rows().ids[i:i + 4]) for i in range(0, 36, 4)}
    seen, said = learned_on(make, "tokens", meta_bs=meta_bs)
    assert set(seen) == own and seen[:9] != sorted(seen[:9])
    assert len([o for o in said if "one batch of the loader" in o]) == 1
    assert as_plain(make, "tokens", meta_bs=meta_bs)


def test_it_is_said_once_in_several_fits():
    learn, said = run(lambda: ragged_loaders("torch"), MetaRisk.first_edition(every=1, loss_func=by_number, meta_loss=by_number), "images", 1)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        learn.fit(1, .01)
    assert len(said) == 1 and not [o for o in again if "one batch of the loader" in str(o.message)]


def test_a_fault_of_the_data_set_is_raised_as_it_is():
    class Broken(Numbered):
        def __getitem__(self, k): raise OSError("no such picture")
    with pytest.raises(OSError, match="no such picture"):
        run(lambda: DataLoaders(TorchLoader(Numbered(TRAIN), 6), TorchLoader(Broken(VALID), 4)), MetaRisk.first_edition(every=1, loss_func=by_number))


def pad(samples):
    n = max(len(x) for x, _ in samples)
    return [(torch.cat([x, x.new_zeros(n - len(x))]), y) for x, y in samples]


def padded(samples):
    x, y = zip(*pad(samples))
    return torch.stack(x), torch.tensor(y)


@pytest.mark.parametrize("valid", [lambda: TfmdDL(Numbered(VALID, "tokens", size), bs=4, num_workers=0, before_batch=pad, device=CPU),
    lambda: FastaiLoader(Numbered(VALID, "tokens", size), bs=4, before_batch=pad, device=CPU), lambda: TorchLoader(Numbered(VALID, "tokens", size), 4, collate_fn=padded)],
    ids=["fastai", "basic", "torch"])
def test_sequences_that_are_padded_make_batches_of_meta_bs(valid):
    def make(): return DataLoaders(TorchLoader(Numbered(TRAIN, "tokens", lambda i: 5), 6, shuffle=True), valid())
    seen, said = learned_on(make, "tokens", meta_bs=10)
    assert {len(o) for o in seen} == {10} and set(chain(*seen)) == set(VALID) and not said
    assert {len(o) for o in learned_on(make, "tokens")[0]} == {40}
    assert as_plain(make, "tokens", meta_bs=10)


def test_a_batch_sampler_that_buckets_by_length_keeps_its_batches():
    own = [[i - 60 for i in Rows().ids[k:k + 4]] for k in range(0, 36, 4)]
    def make():
        valid = TorchLoader(Numbered(VALID, "tokens", size), batch_sampler=own)
        return DataLoaders(TorchLoader(Numbered(TRAIN, "tokens", lambda i: 5), 6, shuffle=True), valid)
    assert set(learned_on(make, "tokens")[0]) == {tuple(i + 60 for i in o) for o in own}
    assert as_plain(make, "tokens")


# --- Options of torch's loaders

class Faked:
    "Batches made in this process, for a loader that asks for workers"
    def __init__(self, loader): self._reset(loader)
    def _reset(self, loader, first_iter=False): self.loader, self.batches = loader, iter(loader._index_sampler)
    def __iter__(self): return self
    def __next__(self): return self.loader.collate_fn([self.loader.dataset[i] for i in next(self.batches)])


@pytest.fixture
def loaders_with_workers(monkeypatch):
    "All loaders that are iterated over with workers, which are faked"
    seen = []
    def faked(loader): seen.append(loader); return Faked(loader)
    monkeypatch.setattr(torch.utils.data.dataloader, "_MultiProcessingDataLoaderIter", faked)
    monkeypatch.setattr(fastai.data.load, "_loaders", (lambda o: seen.append(o) or iter(o), fastai.data.load._loaders[1]))
    return seen


def start(worker): pass


options = {"worker_init_fn": start, "multiprocessing_context": "spawn", "pin_memory": True, "persistent_workers": True, "prefetch_factor": 5, "timeout": 60, "in_order": False}


@pytest.mark.parametrize("where", ["valid", "draws", "fresh", "batch sampler", "ragged"])
def test_a_copy_of_a_torch_loader_keeps_its_options(loaders_with_workers, where):
    kw, kind = {"num_workers": 2, **options}, "tokens" if where in ("draws", "ragged") else "points"
    plain = TorchLoader(Numbered(TRAIN, kind, lambda i: 5), 6, shuffle=True)
    if where == "batch sampler": asked = TorchLoader(Numbered(VALID), batch_sampler=BatchSampler(range(40), 8, True), **kw)
    else: asked = TorchLoader(Numbered(TRAIN if where == "fresh" else VALID, kind, size if where == "ragged" else lambda i: 5), 1 if where == "ragged" else 6, **kw)
    dls = DataLoaders(asked, TorchLoader(Numbered(VALID), 6)) if where == "fresh" else DataLoaders(plain, asked)
    run(lambda: dls, MetaRisk.first_edition(every=1, meta_bs=10, fresh=where == "fresh", loss_func=by_number, meta_loss=by_number), kind, 1)
    copies = [o for o in loaders_with_workers if o is not asked]
    assert copies and not [k for o in copies for k in ("num_workers", *options) if getattr(o, k) != getattr(asked, k)]


class Opened(Numbered):
    "A data set that every process must open for itself, as with HDF5 or LMDB"
    file = None
    def __getitem__(self, k):
        if self.file is None: raise RuntimeError("the file is not open in this process")
        return super().__getitem__(k)


def open_file(worker): torch.utils.data.get_worker_info().dataset.file = "open"


@pytest.mark.parametrize("where", ["valid", "fresh", "batch sampler"])
def test_data_that_each_worker_opens_for_itself(where):
    kw = dict(num_workers=1, worker_init_fn=open_file)
    def make():
        if where == "fresh": return DataLoaders(TorchLoader(Opened(TRAIN), 20, shuffle=True, **kw), TorchLoader(Numbered(VALID), 20))
        how = dict(batch_sampler=BatchSampler(range(40), 20, True)) if where == "batch sampler" else dict(batch_size=20)
        return DataLoaders(TorchLoader(Numbered(TRAIN), 20, shuffle=True), TorchLoader(Opened(VALID), **how, **kw))
    assert as_plain(make, fresh=where == "fresh")


@pytest.mark.parametrize("how", [lambda: dict(batch_sampler=BatchSampler(SubsetRandomSampler(range(60)), 20, True)), lambda: dict(batch_size=20, shuffle=True)], ids=["batch sampler", "ordinary"])
def test_workers_that_stay_alive_serve_the_training_alone(how):
    def make(): return DataLoaders(TorchLoader(Numbered(TRAIN), **how(), num_workers=1, persistent_workers=True, timeout=15), TorchLoader(Numbered(VALID), 20))
    assert as_plain(make, fresh=True, n_inner=2)
    own = []
    class Look(Callback):
        def before_batch(self):
            if self.training: own.append(tuple(self.y.tolist()))
    run(make, [MetaRisk.first_edition(every=1, fresh=True, loss_func=by_number, meta_loss=by_number), Look()])
    assert len(own) == 6 and sorted(chain(*own[:3])) == sorted(chain(*own[3:])) == list(TRAIN)


# --- Generators

class Drawn(Sampler):
    "An order out of a generator of one's own: torch's, numpy's or Python's"
    def __init__(self, n, rng): self.n, self.rng = n, rng
    def __len__(self): return self.n
    def __iter__(self):
        order = list(range(self.n))
        if isinstance(self.rng, torch.Generator): return iter(torch.randperm(self.n, generator=self.rng).tolist())
        self.rng.shuffle(order)
        return iter(order)


class Seeded(Sampler):
    "A sampler that seeds its generator before each pass"
    def __init__(self, n, generator): self.n, self.generator, self.epoch = n, generator, 0
    def __len__(self): return self.n
    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(self.n, generator=self.generator.manual_seed(self.epoch)).tolist())


class Noisy(Numbered):
    "Points with noise out of a generator of the data set's own"
    def __init__(self, ids, generator): super().__init__(ids); self.generator = generator
    def __getitem__(self, k):
        x, y = super().__getitem__(k)
        return x + torch.randn(6, generator=self.generator), y


def torchs(): return torch.Generator().manual_seed(7)


generators = {  # the generator, and a training loader out of it
    "batch sampler": (torchs, lambda g: TorchLoader(Numbered(TRAIN), batch_sampler=BatchSampler(SubsetRandomSampler(range(60), generator=g), 20, True))),
    "own sampler": (torchs, lambda g: TorchLoader(Numbered(TRAIN), 20, sampler=Drawn(60, g))),
    "numpy": (lambda: np.random.default_rng(7), lambda g: TorchLoader(Numbered(TRAIN), 20, sampler=Drawn(60, g))),
    "numpy's old one": (lambda: np.random.RandomState(7), lambda g: TorchLoader(Numbered(TRAIN), batch_sampler=BatchSampler(Drawn(60, g), 20, False))),
    "Python": (lambda: random.Random(7), lambda g: TorchLoader(Numbered(TRAIN), 20, sampler=Drawn(60, g))),
    "seeded each pass": (torchs, lambda g: TorchLoader(Numbered(TRAIN), 20, sampler=Seeded(60, g))),
    "stream": (torchs, lambda g: TorchLoader(Stream(TRAIN, g), 20)),
    "fastai stream": (torchs, lambda g: FastaiLoader(Stream(TRAIN, g), bs=20, device=CPU)),
    "data set": (torchs, lambda g: TorchLoader(Noisy(TRAIN, g), 20, shuffle=True)),
    "fastai data set": (torchs, lambda g: TfmdDL(Noisy(TRAIN, g), bs=20, shuffle=True, num_workers=0, device=CPU)),
    "subset": (torchs, lambda g: TorchLoader(torch.utils.data.Subset(Noisy(TRAIN, g), range(40)), 20, shuffle=True)),
    "loader": (torchs, lambda g: TorchLoader(Numbered(TRAIN), batch_sampler=BatchSampler(SubsetRandomSampler(range(60), generator=g), 20, True), generator=g)),
    "shuffle": (torchs, lambda g: TorchLoader(Numbered(TRAIN), 20, shuffle=True, generator=g)),
}


def position(rng):
    return rng.get_state().tolist() if isinstance(rng, torch.Generator) else rng.bit_generator.state if isinstance(rng, np.random.Generator) else str(
        rng.getstate() if isinstance(rng, random.Random) else rng.get_state())


@pytest.mark.parametrize("name", generators)
def test_the_users_generator_is_neither_moved_nor_shared(name):
    new, loader = generators[name]
    def after(cbs=None):
        g = new()
        learn, _ = run(lambda: DataLoaders(loader(g), TorchLoader(Numbered(VALID), 20)), cbs)
        return state(learn), position(g), learn.recorder.losses
    plain, meta = after(), after(MetaRisk.first_edition(meta_lr=0., every=1, fresh=True, n_inner=3, loss_func=by_number, meta_loss=by_number))
    assert equal(plain[0], meta[0]) and plain[1:] == meta[1:]


@pytest.mark.parametrize("name", ["batch sampler", "own sampler", "numpy", "Python", "stream", "shuffle"])
def test_fresh_batches_are_drawn_from_the_callbacks_own_stream(name):
    new, loader = generators[name]
    def make(): return DataLoaders(loader(new()), TorchLoader(Numbered(VALID), 20))
    a, b, c = fresh_batches(make, seed=1), fresh_batches(make, seed=1), fresh_batches(make, seed=2)
    assert a == b != c and all(set(o) <= set(TRAIN) and len(o) == 20 for o in a)


# --- What fastai's `new` forgets

class Chosen(TfmdDL):
    "A loader with an argument of its own"
    def __init__(self, dataset, ids, **kwargs): super().__init__(dataset, **kwargs); self.ids = ids
    def get_idxs(self): return self.shuffle_fn(self.ids) if self.shuffle else list(self.ids)
    def __len__(self): return -(-len(self.ids) // self.bs)


class Late(TfmdDL):
    "A loader whose attribute is set after it was made"
    ids = None
    def get_idxs(self): return super().get_idxs() if self.ids is None else list(self.ids)


def late_loader(data):
    dl = Late(data, bs=10, num_workers=0, device=CPU)
    dl.ids = range(20)
    return dl


def patched(data, **kwargs):
    dl = FastaiLoader(data, bs=10, device=CPU, **kwargs)
    dl.get_idxs = MethodType(lambda self: list(range(20)), dl)
    return dl


first_20 = {"n": lambda o: FastaiLoader(o, bs=10, n=20, device=CPU), "n of TfmdDL": lambda o: TfmdDL(o, bs=10, n=20, num_workers=0, device=CPU),
            "argument": lambda o: Chosen(o, ids=range(20), bs=10, num_workers=0, device=CPU), "attribute": late_loader, "method": patched}


@pytest.mark.parametrize("meta_bs", [500, 5])
@pytest.mark.parametrize("name", first_20)
@pytest.mark.parametrize("kind", ["points", "tokens"])
def test_a_fastai_loader_of_a_part_of_the_data_is_learned_on_in_that_part(name, meta_bs, kind):
    def make(): return DataLoaders(TorchLoader(Numbered(TRAIN, kind, lambda i: 5), 20, shuffle=True), first_20[name](Numbered(VALID, kind, lambda i: 5)))
    seen, _ = learned_on(make, kind, meta_bs=meta_bs)
    assert set(chain(*seen)) <= set(range(60, 80))
    if meta_bs == 5: assert as_plain(make, kind, meta_bs=meta_bs)


@pytest.mark.parametrize("name", ["n", "n of TfmdDL", "argument", "attribute", "method"])
def test_fresh_batches_come_out_of_the_part_of_the_data_that_a_fastai_loader_gives(name):
    def make(): return DataLoaders(first_20[name](Numbered(TRAIN)), TorchLoader(Numbered(VALID), 20))
    assert set(chain(*fresh_batches(make))) <= set(range(20))
    assert as_plain(make, fresh=True, n_inner=2)


class SkipsFirst(Numbered):
    def __getitem__(self, k):
        if k == 0: raise SkipItemException
        return super().__getitem__(k)


@pytest.mark.parametrize("meta_bs", [500, 7])
def test_a_loader_whose_first_item_is_skipped(meta_bs):
    def make(): return DataLoaders(TorchLoader(Numbered(TRAIN), 20), TfmdDL(SkipsFirst(VALID), bs=10, num_workers=0, device=CPU))
    assert as_plain(make, meta_bs=meta_bs) and set(chain(*learned_on(make, meta_bs=meta_bs)[0])) <= set(VALID[1:])


@pytest.mark.parametrize("kind", [FastaiLoader, TfmdDL, Chosen])
def test_a_copy_of_a_fastai_loader_keeps_its_options(loaders_with_workers, kind):
    option = dict(persistent_workers=True, pin_memory_device="cuda", timeout=60, pin_memory=True, **({"ids": range(40)} if kind is Chosen else {}))
    asked = kind(Numbered(VALID), bs=10, num_workers=2, device=CPU, **option)
    run(lambda: DataLoaders(TorchLoader(Numbered(TRAIN), 20), asked), MetaRisk.first_edition(every=1, loss_func=by_number, meta_loss=by_number), n=1)
    copies = [o for o in loaders_with_workers if o is not asked.fake_l]
    assert copies and all(getattr(o, k) == v and o.num_workers == 2 for o in copies for k, v in option.items() if k != "ids")


@pytest.mark.parametrize("train", [lambda: TfmdDL(Numbered(TRAIN), bs=20, shuffle=True, num_workers=0, device=CPU), lambda: FastaiLoader(Numbered(TRAIN), bs=20, shuffle=True, device=CPU),
    lambda: WeightedDL(Numbered(TRAIN), bs=20, shuffle=True, wgts=np.arange(60.), num_workers=0, device=CPU), lambda: PartialDL(Numbered(TRAIN), bs=20, partial_n=40, num_workers=0, device=CPU)],
    ids=["TfmdDL", "basic", "weighted", "partial"])
@pytest.mark.parametrize("shown", [False, True])
def test_a_copy_draws_for_itself(train, shown):
    def make():
        dl = train()
        if shown: dl.get_idxs = dl.get_idxs  # as `show_batch(unique=True)` leaves it
        return DataLoaders(dl, TorchLoader(Numbered(VALID), 20))
    assert as_plain(make, fresh=True, n_inner=3)
    a, b, c = fresh_batches(make, seed=1), fresh_batches(make, seed=1), fresh_batches(make, seed=2)
    assert a == b != c


# --- Subclasses of torch's loader

class Moved(TorchLoader):
    "Adds 1000 to the numbers of what it gives"
    by = 0
    def __iter__(self): return ((x, y + self.by) for x, y in super().__iter__())


class Forever(TorchLoader):
    "One iterator for all epochs, which saves the start of the workers"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = self.endless()
    def endless(self):
        while True: yield from super().__iter__()
    def __iter__(self): return (next(self.batches) for _ in range(len(self)))


def moved(data, **kwargs):
    dl = Moved(data, 10, **kwargs)
    dl.by = 999
    return dl


def test_a_subclass_keeps_what_it_does_to_its_batches():
    def make(): return DataLoaders(moved(Numbered(TRAIN), shuffle=True), moved(Numbered(VALID)))
    for meta_bs in 500, 7: assert set(chain(*learned_on(make, meta_bs=meta_bs)[0])) == {i + 999 for i in VALID}
    assert set(chain(*fresh_batches(make))) <= {i + 999 for i in TRAIN}
    assert as_plain(make, fresh=True, n_inner=2)


def test_a_subclass_with_an_iterator_of_its_own_goes_on_where_it_was():
    def make(): return DataLoaders(Forever(Numbered(TRAIN), 10, shuffle=True), Forever(Numbered(VALID), 10))
    assert as_plain(make, fresh=True, n_inner=2) and set(chain(*fresh_batches(make))) <= set(TRAIN)
    assert set(chain(*learned_on(make, meta_bs=7)[0])) == set(VALID)
