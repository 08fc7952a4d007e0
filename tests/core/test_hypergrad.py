"The hypergradient against a full unroll: several architectures, every target risk, K = 1, 2, 5"
import pytest
import torch
import torch.nn.functional as F
from reference import ce, same, unroll
from torch import nn
from torch.nn.utils import parametrizations

from metarisk_nb.data import cnn, resnet18_32
from metarisk_nb.hypergrad import NoDerivative, hypergradient
from metarisk_nb.kernels import plain_kernels
from metarisk_nb.reducer import SortedReducer
from metarisk_nb.risk import *
from metarisk_nb.risk import risks


class Tied(nn.Module):
    "One matrix used twice, one parameter not used at all"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Parameter(torch.zeros(2))
        self.b.weight = self.a.weight
    def forward(self, x): return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(2, 8), nn.Linear(8, 3)
    def forward(self, x):
        h = x.new_zeros(len(x), 8)
        for o in x.view(len(x), 3, 2).unbind(1): h = self.cell(o, h)
        return self.out(h)


class Steps(nn.Module):
    "A layer of torch's that reads the six numbers as three steps of two"
    def __init__(self, layer, n, first=None):
        super().__init__()
        self.first, self.layer, self.out = first or nn.Identity(), layer, nn.Linear(n, 3)
    def forward(self, x):
        o = self.layer(self.first(x.view(len(x), 3, 2)))
        return self.out((o[0] if isinstance(o, tuple) else o).mean(1))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3
    @staticmethod
    def backward(ctx, g): return 3 * ctx.saved_tensors[0]**2 * g


class Once(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g): return 3 * ctx.saved_tensors[0]**2 * g


class Custom(nn.Module):
    "An `autograd.Function` without a forward-mode derivative"
    def __init__(self, f):
        super().__init__()
        self.a, self.out, self.f = nn.Linear(6, 8), nn.Linear(8, 3), f
    def forward(self, x): return self.out(self.f.apply(self.a(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(2, 12), nn.LayerNorm(4), nn.Linear(4, 3)
    def forward(self, x):
        q, k, v = self.qkv(x.view(len(x), 3, 2)).chunk(3, -1)
        return self.out(self.norm((q @ k.mT / 2).softmax(-1) @ v).mean(1))


def frozen():
    m = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    m[0].requires_grad_(False)
    return m


models = dict(mlp=lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)), tied=Tied, frozen=frozen, recurrent=Recurrent,
              attention=Attention, groups=lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.SiLU(), nn.Linear(8, 3)))


# what forward mode, double backward or both refuse at first
awkward = dict(transformer=lambda: Steps(nn.TransformerEncoderLayer(8, 2, 16, 0., batch_first=True), 8, nn.Linear(2, 8)),
               lstm=lambda: Steps(nn.LSTM(2, 8, batch_first=True), 8), gru=lambda: Steps(nn.GRU(2, 8, batch_first=True), 8),
               spectral_norm=lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)),
               weight_norm=lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)),
               custom=lambda: Custom(Cube))
models |= awkward


def work(k, shape=(6,), n=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    def batch(n): return torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)
    return [batch(n) for _ in range(k)], batch(25)


def make(name, knots=None, n=16):
    torch.manual_seed(0)
    g = SortedReducer(n, knots).double()
    nn.init.normal_(g.logits)
    return models[name]().double(), g


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("risk", [*risks])
def test_exact_equals_the_unroll_for_every_target(k, risk):
    model, g = make("mlp", knots=5)
    args = model, g, as_risk(risk), ce, *work(k), .2
    (v, d), (v2, d2) = hypergradient(*args), unroll(*args)
    same(v, v2); same(d, d2)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", models)
def test_exact_equals_the_unroll_for_every_architecture(k, name):
    model, g = make(name)
    args = model, g, CVaR(.3), ce, *work(k), .2
    with plain_kernels(): want = unroll(*args)[1]
    same(hypergradient(*args)[1], want)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_fused_kernels_of_single_precision(k, name):
    model, g = [o.float() for o in make(name)]
    batches, val = work(k)
    args = model, g, ExpectedValue(), ce, [(x.float(), y) for x, y in batches], (val[0].float(), val[1]), .2
    with plain_kernels(): want = unroll(*args)[1]
    same(hypergradient(*args)[1], want, 1e-4)


@pytest.mark.parametrize("method", ["exact", "first_order"])
def test_a_function_that_can_be_differentiated_once_is_refused_and_the_way_out_works(method):
    torch.manual_seed(0)
    g = SortedReducer(16).double()
    once, cube = Custom(Once).double(), Custom(Cube).double()
    once.load_state_dict(cube.state_dict())
    args = g, ExpectedValue(), ce, *work(2), .2
    with pytest.raises(NoDerivative, match="use method='finite_difference'"): hypergradient(once, *args, method=method)
    same(hypergradient(once, *args, method="finite_difference")[1], hypergradient(cube, *args)[1], 1e-4)


@pytest.mark.parametrize("net,shape", [(lambda: cnn(1, 3, (4, 8), (1, 2)), (1, 8, 8)), (lambda: resnet18_32(3, 3), (3, 8, 8))], ids=["cnn", "resnet18"])
def test_exact_equals_the_unroll_for_images(net, shape):
    torch.manual_seed(0)
    model, g = net().double(), SortedReducer(6).double()
    args = model, g, ExpectedValue(), ce, *work(2, shape, n=6), .01
    same(hypergradient(*args)[1], unroll(*args)[1])


@pytest.mark.parametrize("name", models)
@pytest.mark.parametrize("method,k,eps", [("first_order", 1, 1e-9), ("finite_difference", 1, 1e-6), ("finite_difference", 3, 1e-4)])
def test_other_methods(name, method, k, eps):
    model, g = make(name)
    args = model, g, ExpectedValue(), ce, *work(k), .2
    if name in awkward: eps *= 10  # normed weights are curved, and spectral norm's own iteration moves with the step
    same(hypergradient(*args, method=method)[1], hypergradient(*args)[1], eps)


def test_first_order_points_the_same_way():
    model, g = make("mlp")
    args = model, g, ExpectedValue(), ce, *work(5), .02
    assert torch.cosine_similarity(hypergradient(*args, method="first_order")[1], hypergradient(*args)[1], dim=0) > .99


def test_rates_by_name_another_batch_size_and_a_meta_loss():
    model, g = make("mlp", n=20)
    lr = {n: .1 + i / 10 for i, (n, _) in enumerate(model.named_parameters())}
    batches, val = work(2)
    args = model, g, ExpectedValue(), ce, [batches[0], (batches[1][0][:7], batches[1][1][:7])], val, lr
    meta = lambda p, y: (p.softmax(1) - F.one_hot(y, 3)).square().sum(1)  # noqa: E731
    same(hypergradient(*args, meta_loss=meta)[1], unroll(*args, meta_loss=meta)[1])


def test_evaluation_mode_and_the_model_stay():
    model, g = make("mlp")
    model.eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    args = model, g, ExpectedValue(), ce, *work(2), .2
    same(hypergradient(*args)[1], unroll(*args)[1])
    assert not model.training and (model[0].weight.grad == 1).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and g.logits.grad is None


def test_dropout_is_the_same_in_a_repeated_pass():
    torch.manual_seed(0)
    model, g = nn.Sequential(nn.Linear(6, 32), nn.Dropout(.5), nn.Tanh(), nn.Linear(32, 3)).double(), SortedReducer(16).double()
    def run(method):
        torch.manual_seed(1)
        return hypergradient(model, g, ExpectedValue(), ce, *work(3), .2, method=method)[1]
    same(run("finite_difference"), run("exact"), 1e-4)


def test_gradient_of_logits_by_differences():
    model, g = make("mlp", knots=4)
    args = model, g, ExpectedValue(), ce, *work(2), .2
    grad, eps = hypergradient(*args)[1], 1e-6
    for i in range(4):
        with torch.no_grad(): g.logits[i] += eps
        up = hypergradient(*args)[0]
        with torch.no_grad(): g.logits[i] -= 2 * eps
        down = hypergradient(*args)[0]
        with torch.no_grad(): g.logits[i] += eps
        assert abs((up - down) / (2 * eps) - grad[i]) < 1e-6


def test_memory_for_activations_does_not_grow_with_k():
    "Tensors saved for backward at the same time: the same for 2 and 8 inner steps"
    def peak(k):
        model, g = make("mlp")
        held = most = 0
        class Handle:
            def __init__(self, t): nonlocal held, most; self.t = t; held += 1; most = max(most, held)
            def __del__(self): nonlocal held; held -= 1
        with torch.autograd.graph.saved_tensors_hooks(Handle, lambda h: h.t):
            hypergradient(model, g, ExpectedValue(), ce, *work(k), .2)
        return most
    assert peak(8) <= peak(2) + 6 * 2  # the reducer's own few, one row of weights a step
