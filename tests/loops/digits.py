"Digits with wrong labels for three kinds of loops: the same network, the same batches and the same validation data"
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from metarisk_nb.loop import LearnedWeights
from metarisk_nb.validation import ValidationStream

N, BS = 1000, 100


def arrays(noise=.5, seed=0):
    "Images, labels as given, and true labels of 1,797 digits; 0 to 999 are for training, 1,000 to 1,199 for validation"
    g = torch.Generator().manual_seed(seed)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=g)
    x, y = (x[order].float() - 5) / 6, y[order]
    return x, torch.where(torch.rand(len(y), generator=g) < noise, torch.randint(10, y.shape, generator=g), y), y


def sets(**kwargs):
    x, given, _ = arrays(**kwargs)
    return TensorDataset(x[:N], given[:N]), TensorDataset(x[N:1200], given[N:1200])


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))


def sgd(model): return torch.optim.SGD(model.parameters(), .1, momentum=.9)


def accuracy(model):
    x, _, clean = arrays()
    with torch.no_grad(): return (model.eval()(x[1200:]).argmax(1) == clean[1200:]).float().mean().item()


class Noted(Dataset):
    "A data set that notes which samples it has been asked for"
    def __init__(self, dataset): self.dataset, self.asked = dataset, []
    def __len__(self): return len(self.dataset)
    def __getitem__(self, i):
        self.asked.append(int(i))
        return self.dataset[i]


def plain_loop(order, parts=1, valid_seed=0, learned=True, own=False, opt=sgd, **kwargs):
    "Network and weights of a loop over batches of these samples, `parts` of them to an optimizer step; `own`: it has a loss of its own"
    (train, valid), model = sets(), net()
    opt = opt(model)
    stream = ValidationStream(torch.utils.data.DataLoader(valid, BS), lambda b: ((b[0],), b[1]), seed=valid_seed)
    weights = LearnedWeights(model, stream, N, optimizer=opt, **kwargs)
    for i, ids in enumerate(torch.as_tensor(order)):
        x, y = train.tensors[0][ids], train.tensors[1][ids]
        if learned: weights.listen()
        pred = model(x)
        loss = nn.functional.cross_entropy(pred, y)
        if learned: loss = weights(pred, y, ids, *((loss, 1.) if own else ()))
        (loss / parts).backward()
        if (i + 1) % parts: continue
        opt.step()
        opt.zero_grad()
        weights.stepped()
    return model, weights


def furthest(a, b):
    "Largest difference between the parameters and buffers of two networks, relative where they are larger than 1"
    a, b = a.state_dict(), b.state_dict()
    return max(((a[k].float() - b[k]).abs() / b[k].abs().clamp(min=1)).max().item() for k in a)
