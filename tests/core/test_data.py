"The data sets: damaged files, bad arguments, and what fastai does with the loaders"
import gzip
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import CrossEntropyLossFlat, Learner, accuracy, load_learner, set_seed
from fastai.callback.progress import ProgressCallback  # noqa: F401 (adds Learner.no_bar)
from fastai.interpret import ClassificationInterpretation
from matplotlib import pyplot as plt
from PIL import Image

from metarisk_nb.callback import MetaRisk
from metarisk_nb.data import *

plt.switch_backend("agg")
ROOT, CPU = Path(__file__).parents[2], torch.device("cpu")
NAMES = [f"{o}-{k}-ubyte" for o in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]


def arrays(n=100, c=10, shape=(28, 28)):
    g = np.random.default_rng(0)
    return g.integers(0, 256, (n, *shape), np.uint8), np.arange(n, dtype=np.uint8) % c


def write_idx(folder, pack=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, a in zip(NAMES, [*arrays(), *arrays(30)]):
        raw = bytes([0, 0, 8, a.ndim]) + b"".join(o.to_bytes(4, "big") for o in a.shape) + a.tobytes()
        (folder / f"{name}{'.gz' * pack}").write_bytes(gzip.compress(raw, mtime=0) if pack else raw)
    return folder


def write_images(root, **n):
    for part, m in (n or dict(train=20, test=3)).items():
        for c in ("cat", "dog"):
            (root / part / c).mkdir(parents=True)
            for i in range(m): Image.fromarray(arrays(1, shape=(32, 32, 3))[0][0]).save(root / part / c / f"{i}.png")
    return root


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_idx_files_are_read(tmp_path, pack, inside):
    write_idx(tmp_path / inside, pack)
    dls = fashion_mnist(tmp_path, bs=20, device=CPU)
    assert [len(o.dataset) for o in dls] == [90, 5, 5, 30] and dls.vocab[9] == "Boot"
    x, y = arrays(30)
    test = dls[3].dataset
    assert torch.equal((test.x * test.std + test.mean).round().byte()[:, 0], torch.tensor(x)) and test.y.tolist() == y.tolist()


damages = {
    "shorter than its header": (lambda raw: raw[:7], "differs from what its header says|does not begin"),
    "three bytes": (lambda raw: raw[:3], "does not begin like an idx"),
    "empty": (lambda raw: b"", "does not begin like an idx|cannot be unpacked"),
    "cut": (lambda raw: raw[:-9], "differs from what its header says|cannot be unpacked"),
    "too long": (lambda raw: raw + b"12", "differs from what its header says"),
    "wrong magic": (lambda raw: b"\1" + raw[1:], "does not begin like an idx"),
    "no bytes inside": (lambda raw: raw[:2] + b"\x0d" + raw[3:], "does not begin like an idx"),
}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", damages)
def test_a_damaged_idx_file_is_named(tmp_path, name, damage, pack):
    change, says = damages[damage]
    fn = write_idx(tmp_path, pack) / f"{name}{'.gz' * pack}"
    raw = fn.read_bytes()
    fn.write_bytes(gzip.compress(change(gzip.decompress(raw))) if pack else change(raw))
    with pytest.raises(ValueError, match=f"{name}.* is damaged.*({says})"): fashion_mnist(tmp_path)


@pytest.mark.parametrize("change", [lambda raw: raw[:-30], lambda raw: raw[:5], lambda raw: b"no gzip", lambda raw: b"",
                                    lambda raw: raw[:12] + bytes(o ^ 255 for o in raw[12:40]) + raw[40:]])
def test_a_damaged_gz_file_is_named(tmp_path, change):
    fn = write_idx(tmp_path) / f"{NAMES[2]}.gz"
    fn.write_bytes(change(fn.read_bytes()))
    with pytest.raises(ValueError, match=f"{NAMES[2]}.gz is damaged"): fashion_mnist(tmp_path)


def test_labels_in_place_of_images_are_found(tmp_path):
    write_idx(tmp_path)
    (tmp_path / f"{NAMES[1]}.gz").replace(tmp_path / f"{NAMES[0]}.gz")
    with pytest.raises(ValueError, match=f"{NAMES[0]}.gz is damaged: it does not begin like an idx3"): fashion_mnist(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_idx_file_is_named(tmp_path, name):
    (write_idx(tmp_path) / f"{name}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.gz is missing"): fashion_mnist(tmp_path)


def test_a_missing_data_set_says_how_to_get_it(tmp_path):
    for f, name in ((fashion_mnist, "FashionMNIST"), (cifar10, "CIFAR10")):
        with pytest.raises(FileNotFoundError, match=f"{name} is not in .*get it with torchvision.datasets.{name}"): f(tmp_path)


def test_bundled_data_are_cut_with_the_same_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    make = importlib.import_module("make_fashion_mini")
    monkeypatch.setattr(make, "OUT", tmp_path)
    make.main(write_idx(tmp_path / "idx"))
    x, y = arrays()
    with np.load(tmp_path / "fashion_mini.npz") as z: assert (z["train_x"] == x).all() and (z["train_y"] == y).all() and len(z["test_y"]) == 30
    (tmp_path / "idx" / f"{NAMES[3]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{NAMES[3]}.gz is missing"): make.main(tmp_path / "idx")


def test_folders_of_images_keep_their_names(tmp_path):
    dls = cifar10(write_images(tmp_path), bs=9, device=CPU)
    assert list(dls.vocab) == ["cat", "dog"] and dls.c == 2 and len(dls[3].dataset) == 6


@pytest.mark.parametrize("load,make,n", [(cifar10, write_images, 6), (fashion_mnist, write_idx, 30)])
def test_data_lie_where_the_environment_says(tmp_path, monkeypatch, load, make, n):
    "METARISK_DATA is read by every loader, and a path goes before it"
    make(tmp_path / "one")
    monkeypatch.setenv("METARISK_DATA", str(tmp_path / "one"))
    assert len(load(bs=9, device=CPU)[3].dataset) == n
    with pytest.raises(FileNotFoundError, match="two"): load(tmp_path / "two")
    monkeypatch.setenv("METARISK_DATA", str(tmp_path / "three"))
    with pytest.raises(FileNotFoundError, match=f"is not in {tmp_path / 'three'}"): load()
    assert len(load(tmp_path / "one", bs=9, device=CPU)[3].dataset) == n


def test_root_of_the_data(monkeypatch):
    home = Path.home() / ".cache" / "torchvision"
    monkeypatch.delenv("METARISK_DATA", raising=False)
    assert data_root() == data_root("") == home and data_root("x") == data_root(Path("x")) == Path("x")
    monkeypatch.setenv("METARISK_DATA", "")
    assert data_root() == home
    monkeypatch.setenv("METARISK_DATA", "y")
    assert data_root() == data_root("") == Path("y") and data_root("x") == Path("x")


def test_a_study_reads_where_the_data_lie(tmp_path, monkeypatch):
    from metarisk_nb.lab import train
    seen = []
    monkeypatch.setenv("METARISK_DATA", str(tmp_path))
    monkeypatch.setattr(train, "arrays_of", lambda name, root: seen.append(root) or 1 / 0)
    for path, want in ((None, tmp_path), ("", tmp_path), ("x", Path("x"))):
        with pytest.raises(ZeroDivisionError): train.learner_of(train.Run(data="cifar10"), path)
        assert seen.pop() == want == data_root(path)


def test_a_bad_folder_of_images_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="one/test is missing"): cifar10(write_images(tmp_path / "one", train=20))
    with pytest.raises(FileNotFoundError, match="two/train is missing"): cifar10(write_images(tmp_path / "two", test=20))
    (write_images(tmp_path / "three") / "train/eel").mkdir()
    with pytest.raises(FileNotFoundError, match="three/train: .*classes eel"): cifar10(tmp_path / "three")
    (write_images(tmp_path / "four") / "test/dog").rename(tmp_path / "four/test/eel")
    with pytest.raises(ValueError, match=r"four/test must have the classes of train/, \['cat', 'dog'\], got \['cat', 'eel'\]"): cifar10(tmp_path / "four")
    (tmp_path / "five/train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="five/train"): cifar10(tmp_path / "five")


@pytest.mark.parametrize("change", [lambda raw: b"", lambda raw: b"no image", lambda raw: raw[:200], lambda raw: raw[:40] + raw[60:]])
def test_a_damaged_image_is_named(tmp_path, change):
    fn = write_images(tmp_path) / "train/dog/7.png"
    fn.write_bytes(change(fn.read_bytes()))
    with pytest.raises(ValueError, match="dog/7.png cannot be read as an image"): cifar10(tmp_path)


def test_an_image_of_another_size_is_named(tmp_path):
    Image.new("RGB", (32, 20)).save(write_images(tmp_path) / "train/dog/7.png")
    with pytest.raises(ValueError, match=r"dog/7.png must have the shape \(3, 32, 32\) of the first image, got \(3, 20, 32\)"): cifar10(tmp_path)


x, y = arrays(60, 3, (8, 8))


@pytest.mark.parametrize("change,says", [
    (dict(bs=0), "bs must be a whole number of at least 1, got 0"), (dict(bs=-3), "bs must be a whole number of at least 1, got -3"),
    (dict(bs=55), "bs must be at most 54, the images of the training part, got 55: .* without a full batch"),
    (dict(train=(x[:0], y[:0])), "train is empty"), (dict(test=(x[:0], y[:0])), "test is empty"),
    (dict(train=(x, y[:-1])), "train must have as many labels as images, got 59 and 60"), (dict(test=(x[1:], y)), "test must have as many labels"),
    (dict(train=(x, y * 2)), r"train must have images of all classes 0 ... 4, got none of \[1, 3\]"),
    (dict(classes="a b c d".split()), r"train must have images of all classes 0 ... 3, got none of \[3\]"),
    (dict(classes="a b".split()), "train: labels must be 0 ... 1, got 0 ... 2"), (dict(test=(x, y + 1)), "test: labels must be 0 ... 2, got 1 ... 3"),
    (dict(test=(x, y.astype(int) - 1)), "test: labels must be 0 ... 2, got -1 ... 1"),
    (dict(train=(x[:9], y[:9])), r"train has too few images to be split by shares=\(0.9, 0.05\): 9"), (dict(train=(x.astype(int), y)), "train: images must be uint8 or floats"),
    (dict(train=(x[0], y)), "train: images must be uint8 or floats of shape"), (dict(test=(x[:, 1:], y)), "test: images must be"),
    (dict(train=(x, y / 2)), "train: labels must be a row of whole numbers"), (dict(test=(x, y[:, None])), "test: labels must be a row")])
def test_four_way_names_a_bad_argument(change, says):
    with pytest.raises(ValueError, match=says): four_way(**{**dict(train=(x, y), test=(x, y), bs=20, device=CPU), **change})


@pytest.mark.parametrize("bs", [2.5, True, None])
def test_a_batch_size_is_a_whole_number(bs):
    with pytest.raises(TypeError, match="bs must be a whole number of at least 1"): four_way((x, y), (x, y), bs=bs)
    with pytest.raises(TypeError, match="bs must be a whole number of at least 1"): TensorDL(TensorSet(torch.rand(4, 1, 2, 2), torch.arange(4)), bs)


def test_images_are_scaled_by_those_of_training():
    dls = four_way((x, y), (x[:9], y[:9]), bs=20, device=CPU)
    every = torch.cat([o.dataset.x for o in dls.loaders[:3]])
    assert abs(every.mean()) < 1e-5 and abs(every.std() - 1) < 1e-5
    assert torch.equal(dls[3].dataset.x[:, 0], (torch.tensor(x[:9]).float() - float(x.mean())) / torch.tensor(x).float().std())


@pytest.fixture(scope="module")
def learn():
    set_seed(0)
    dls = fashion_mini(noise=.5, device=CPU)
    learn = Learner(dls, mlp(), CrossEntropyLossFlat(), metrics=accuracy, cbs=MetaRisk())
    learn.remove_cbs(learn.cbs.filter(lambda o: o.name == "progress"))
    with learn.no_logging(): learn.fit(1, .01)
    return learn


@pytest.fixture(scope="module")
def raw(): return np.load(data_path / "fashion_mini.npz")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def shown(): return [o for o in plt.gcf().axes if o.images]


def names(): return [o.get_title() for o in shown()]


def test_show_batch(learn, raw):
    learn.dls[3].show_batch(nrows=2, ncols=4, max_n=7)
    assert len(plt.gcf().axes) == 8 and names() == [fashion_classes[i] for i in raw["test_y"][:7]]
    assert np.allclose(shown()[0].images[0].get_array()[..., 0], raw["test_x"][0] / 255, atol=1e-5)


def test_show_batch_of_one_image(learn):
    dls = learn.dls
    dls.show_batch(unique=True, max_n=4)
    assert len(set(names())) == 1 and len(shown()) == 4
    x, y, samples = dls.show_batch(unique=True, show=False, max_n=3)
    assert len(samples) == 3 and len({o[1] for o in samples}) == 1 and samples[0][1] in fashion_classes
    assert len(list(dls.train)) == 108 and dls.train.one_batch()[1].unique().numel() > 1  # back to all images


def test_show_batch_of_colours_and_numbers():
    c, n = arrays(40, 2, (3, 8, 8))
    dls = four_way((c, n), (c, n), bs=5, device=CPU)
    dls[3].show_batch(max_n=2)
    assert names() == ["0", "1"] and np.allclose(shown()[1].images[0].get_array(), c[1].transpose(1, 2, 0) / 255, atol=1e-5)


@pytest.mark.parametrize("ds_idx", range(4))
def test_show_results(learn, ds_idx):
    learn.show_results(ds_idx=ds_idx, max_n=6, nrows=2, shuffle=False)
    with_titles = [o.split("\n") for o in names()]
    s = learn.dls[ds_idx].dataset
    assert [o[0] for o in with_titles] == [s.vocab[i] for i in s.y[:6]]
    learn.model.eval()
    assert [o[1] for o in with_titles] == [s.vocab[i] for i in learn.model(s.x[:6]).argmax(1)]


def test_predictions_of_new_images(learn, raw):
    preds, y = learn.get_preds(ds_idx=3)
    assert preds.shape == (10_000, 10) and (y.numpy() == raw["test_y"]).all()
    for items in (list(raw["test_x"][:700]), raw["test_x"][:700], torch.tensor(raw["test_x"][:700])[:, None], learn.dls[3].dataset.x[:700]):
        dl = learn.dls.test_dl(items)
        p, none = learn.get_preds(dl=dl)
        assert none is None and torch.allclose(p, preds[:700], atol=1e-6)
    dl.show_batch(max_n=2)
    assert len(shown()) == 2
    p, given = learn.get_preds(dl=learn.dls.test_dl(list(zip(raw["test_x"][:9], raw["test_y"][:9])), with_labels=True, bs=4))
    assert given.tolist() == raw["test_y"][:9].tolist() and torch.allclose(p, preds[:9], atol=1e-6)


def test_predict_and_export(learn, raw, tmp_path):
    name, i, p = learn.predict(raw["test_x"][5])
    assert name == fashion_classes[i] and i == p.argmax() and p.shape == (10,)
    image = learn.predict(Image.fromarray(raw["test_x"][5]), with_input=True)[0]
    assert image.shape == (3, 28, 28) and np.allclose(image[0], raw["test_x"][5] / 255, atol=1e-5)
    learn.export(tmp_path / "learn.pkl")
    assert (tmp_path / "learn.pkl").stat().st_size < 2e6
    again = load_learner(tmp_path / "learn.pkl")
    assert again.predict(raw["test_x"][5])[0] == name


@pytest.mark.parametrize("item,error,says", [
    ("boot.png", TypeError, r"an item must be an image as array or tensor of shape \(1, 28, 28\), not str"),
    (np.zeros((32, 32), np.uint8), ValueError, r"an item must be an image of shape \(1, 28, 28\), got \(32, 32\)")])
def test_predict_names_a_bad_item(learn, item, error, says):
    with pytest.raises(error, match=says): learn.predict(item)
    with pytest.raises(ValueError, match="items must be at least one image"): learn.dls.test_dl([])


def test_interpretation(learn, raw):
    it = ClassificationInterpretation.from_learner(learn, ds_idx=3)
    cm, (_, acc) = it.confusion_matrix(), learn.validate(ds_idx=3)
    assert cm.sum(1).tolist() == [1000] * 10 and abs(cm.trace() / 1e4 - acc) < 1e-6
    losses, idx = it.top_losses(3)
    it.plot_top_losses(3)
    actual = [o.split("/")[1].strip() for o in names()]
    assert actual == [fashion_classes[raw["test_y"][i]] for i in idx] and losses[0] >= losses[1] >= it.losses.median()
    it.plot_confusion_matrix()
    assert it.most_confused()[0][2] == (cm - np.diag(np.diag(cm))).max()


def test_shuffling_is_seeded(learn):
    def order():
        set_seed(3)
        return torch.cat([yb for _, yb in four_way((x, y), (x, y), bs=20, device=CPU).train])
    first = order()
    assert torch.equal(order(), first) and not torch.equal(first, first.sort().values)


# --- Shift and augmentation

def small(n=3000, c=10):
    g = torch.Generator().manual_seed(0)
    x, clean = torch.rand(n, 1, 4, 4, generator=g), torch.randint(0, c, (n,), generator=g)
    return TensorSet(x, noisy_labels(clean, .5, c), clean, [f"class {i}" for i in range(c)], 3., 2.)


def same(a, b): return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("x", "y", "clean"))


def test_long_tail_keeps_fewer_of_each_class():
    s = small()
    t = long_tail(s, 10.)
    kept = t.clean.bincount(minlength=10) / s.clean.bincount(minlength=10)
    assert np.allclose(kept, 10 ** -(np.arange(10) / 9), atol=.1) and kept[0] == 1
    assert (t.vocab, t.mean, t.std) == (s.vocab, s.mean, s.std)
    at = {tuple(o.flatten().tolist()): i for i, o in enumerate(s.x)}
    i = [at[tuple(o.flatten().tolist())] for o in t.x]
    assert i == sorted(set(i)) and torch.equal(t.y, s.y[i]) and torch.equal(t.clean, s.clean[i])  # each image keeps its own labels


def test_long_tail_is_drawn_with_its_seed():
    s = small()
    assert same(long_tail(s, seed=3), long_tail(s, seed=3)) and len(long_tail(s, 1)) == len(s)
    assert not torch.equal(long_tail(s, seed=3).x[:200], long_tail(s, seed=4).x[:200])
    assert same(long_tail(TensorSet(s.x, s.y, s.clean)), long_tail(s))  # without names the labels say how many classes there are


@pytest.mark.parametrize("ratio", [.9, 0, -1, float("nan")])
def test_long_tail_names_a_bad_ratio(ratio):
    with pytest.raises(ValueError, match=f"ratio must be at least 1, got {ratio}"): long_tail(small(), ratio)


def test_worse_images_are_paler_and_noisier():
    s = small()
    x = s.x.clone()
    a, b = worse_images(s, .5, 0), worse_images(s, 0, .3)
    assert torch.equal(a.x, .5 * x) and b.x.std() == pytest.approx(.3, rel=.02) and abs(b.x.mean()) < .01
    both = worse_images(s, .5, .3)
    assert torch.allclose(both.x, a.x + b.x, atol=1e-6) and same(both, worse_images(s, .5, .3)) and torch.equal(s.x, x)
    assert not torch.equal(both.x, worse_images(s, .5, .3, seed=1).x)
    assert torch.equal(both.y, s.y) and torch.equal(both.clean, s.clean) and (both.vocab, both.mean, both.std) == (s.vocab, s.mean, s.std)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9)])
@pytest.mark.parametrize("pad", [4, 1])
def test_crop_and_flip_against_a_loop(shape, pad):
    n, (c, h, w) = 50, shape
    x = torch.rand(n, c, h, w) - torch.arange(1., c + 1)[:, None, None]  # each channel has its own black
    torch.manual_seed(7)
    got, labels = RandomCropFlip(pad)((x, torch.arange(n)), split_idx=0)
    assert torch.equal(labels, torch.arange(n)) and RandomCropFlip(pad)((x,), split_idx=1)[0] is x
    torch.manual_seed(7)
    top, left = (torch.randint(2 * pad + 1, (n, 1)) for _ in range(2))
    mirrored, black = torch.rand(n, 1) < .5, x.amin((0, 2, 3))
    for i in range(n):
        wide = black[:, None, None].expand(c, h + 2 * pad, w + 2 * pad).clone()
        wide[:, pad:-pad, pad:-pad] = x[i]
        want = wide[:, top[i]:top[i] + h, left[i]:left[i] + w]
        assert torch.allclose(got[i], want.flip(2) if mirrored[i] else want, atol=1e-6)
    assert 10 < mirrored.sum() < 40 and len(top.unique()) == len(left.unique()) == 2 * pad + 1


def test_crop_and_flip_are_for_training_images_alone():
    dls = four_way((x, y), (x, y), bs=20, device=CPU)
    train, test = (dls[i].new(after_batch=RandomCropFlip()) for i in (0, 3))
    plain, (got, labels) = dls[3].one_batch(), test.one_batch()
    assert torch.equal(got, plain[0]) and torch.equal(labels, plain[1])
    seen, own = [], set(map(tuple, dls.train_ds.x.flatten(1).tolist()))
    for xb, yb in train:
        assert xb.shape == (20, 1, 8, 8) and xb.dtype == dls.train_ds.x.dtype and yb.dtype == torch.int64
        seen += map(tuple, xb.flatten(1).tolist())
    assert len(seen) == 40 and len(own & set(seen)) < 10
