"Inputs on which a hypergradient was once wrong in silence, or refused what autograd can do: each kind against the unroll"
import copy
import random
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import ce, same, unroll
from torch import nn
from torch.utils.checkpoint import checkpoint

from metarisk_nb.hypergrad import NoDerivative, hypergradient
from metarisk_nb.kernels import plain_kernels
from metarisk_nb.reducer import SortedReducer
from metarisk_nb.risk import CVaR, ExpectedValue

KS = pytest.mark.parametrize("k", [1, 3])


def batches(k, shape=(6,), n=8, dtype=torch.float64, seed=0, like=lambda x: x):
    g = torch.Generator().manual_seed(seed)
    def batch(n): return like(torch.randn(n, *shape, generator=g, dtype=dtype)), torch.randint(0, 3, (n,), generator=g)
    return [batch(n) for _ in range(k)], batch(11)


def reducer(n=8):
    torch.manual_seed(0)
    g = SortedReducer(n).double()
    nn.init.normal_(g.logits)
    return g


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}


def agrees(model, k, shape=(6,), eps=1e-6, loss=ce, risk=None, lr=.1, like=lambda x: x, reference=None, **kw):
    "The exact hypergradient is that of the unroll, and the model is as it was, with the same attributes"
    before, attributes = state(model), [copy.copy(m.__dict__) for m in model.modules()]
    args = reducer(), risk or ExpectedValue(), loss, *batches(k, shape, like=like), lr
    value, grad = hypergradient(model, *args, **kw)
    after = state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[o], after[o]) for o in before)
    for m, was in zip(model.modules(), attributes): assert m.__dict__.keys() == was.keys() and all(m.__dict__[o] is was[o] for o in was if o != "training")
    args = reducer(), risk or ExpectedValue(), loss, *batches(k, shape, like=like), lr
    with plain_kernels(): want, want_grad = unroll(reference or model, *args)
    same(value, want, eps)
    same(grad, want_grad, eps)


def right_or_refused(refused, *args, **kw):
    "Right, or refused with the way out"
    if not refused: return agrees(*args, **kw)
    with pytest.raises(NoDerivative, match="use method='finite_difference'"): agrees(*args, **kw)


# --- 1. Memory layout, dtype, subclass

class Body(nn.Module):
    "Convolution, whatever `flat` makes of its output, and a linear layer"
    def __init__(self, flat, conv=None, n=4 * 16):
        super().__init__()
        self.conv, self.flat, self.out = conv or nn.Conv2d(3, 4, 3, padding=1), flat, nn.Linear(n, 3)
    def forward(self, x): return self.out(self.flat(self.conv(x)))


def seen(x): return f"{x.stride()} {x.dtype} {type(x).__name__} {x.is_contiguous()}"


FLATS = dict(view=lambda x: x.view(len(x), -1), as_strided=lambda x: x.as_strided((len(x), 64), (64, 1)), stride=lambda x: x.flatten(1) * x.stride(1),
             set_storage=lambda x: torch.empty(0, dtype=x.dtype).set_(x.untyped_storage(), 0, (len(x), 64)) * 0 + x.flatten(1))


@KS
@pytest.mark.parametrize("flat", FLATS)
def test_what_follows_a_convolution_sees_the_layout_of_training(flat, k): agrees(Body(FLATS[flat]).double(), k, (3, 4, 4))


def test_flatten_of_fastai_after_a_layer_of_fastai():
    from fastai.layers import ConvLayer, Flatten
    for k in 1, 3: agrees(nn.Sequential(ConvLayer(3, 4), Flatten(), nn.Linear(64, 3)).double(), k, (3, 4, 4))


class Image(torch.Tensor): pass


@pytest.mark.parametrize("like", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(2, 3), lambda x: x[:, :, ::2], lambda x: x.as_subclass(Image),
                                  lambda x: x[:1].expand(len(x), -1, -1, -1)], ids=["plain", "channels last", "transposed", "sliced", "subclass", "expanded"])
def test_inputs_arrive_as_they_are(like):
    told = []
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(48, 3)
        def forward(self, x):
            told.append(seen(x))
            return self.out(torch.Tensor.reshape(x.as_subclass(torch.Tensor), (len(x), -1))[:, :24].repeat(1, 2))
    model, (train, val) = Net().double(), batches(2, (3, 4, 4), like=like)
    want = {seen(x) for x, _ in (*train, val)}
    hypergradient(model, reducer(), ExpectedValue(), ce, train, val, .1)
    assert set(told) == want and len(told) > 4


def test_where_another_layout_is_used_the_numbers_are_the_same_and_the_loss_sees_the_usual_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)).double()
    def loss(pred, y):
        assert pred.is_contiguous()
        return ce(pred.view(len(pred), 3, -1).mean(2), y)
    for k in 1, 3: agrees(model, k, (3, 8, 8), loss=loss)


# --- 3. What runs after the pass has ended

class Block(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.body, self.out, self.how = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()), nn.Linear(6, 3), how
    def forward(self, x): return self.out(x + (checkpoint(self.body, x, **self.how) if self.how else self.body(x)))


class ConvBlock(Block):
    def __init__(self, **how):
        super().__init__(**how)
        self.body, self.out = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Tanh()), nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def twin(cls, **how):
    "The same network without and with checkpoints"
    torch.manual_seed(0)
    plain = cls().double()
    other = cls(**how).double()
    other.load_state_dict(plain.state_dict())
    return plain, other


@KS
@pytest.mark.parametrize("how", [dict(use_reentrant=False), dict(use_reentrant=False, preserve_rng_state=False), dict(use_reentrant=False, determinism_check="none")], ids=str)
@pytest.mark.parametrize("cls,shape", [(Block, (6,)), (ConvBlock, (3, 4, 4))])
def test_gradient_checkpointing(cls, shape, how, k):
    plain, model = twin(cls, **how)
    agrees(model, k, shape, reference=plain)


@KS
def test_memory_efficient_densenet(k):
    from torchvision.models.densenet import DenseNet
    torch.manual_seed(0)
    nets = [DenseNet(4, (2, 2), 8, drop_rate=0, num_classes=3, memory_efficient=o).double() for o in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    agrees(nets[1], k, (3, 32, 32), reference=nets[0], lr=.01)


def test_checkpointing_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, hidden_dropout_prob=0., attention_probs_dropout_prob=0., num_labels=3)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.BertForSequenceClassification(config)
        def forward(self, x): return self.bert(x.abs().long() % 20).logits
    torch.manual_seed(0)
    plain = Net().double().train()
    for reentrant in False, True:
        model = copy.deepcopy(plain)
        model.bert.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
        if reentrant:
            with pytest.raises(RuntimeError, match="use_reentrant=False"): agrees(model, 1)
        else:
            for k in 1, 3: agrees(model, k, like=lambda x: 10 * x, reference=plain)


@pytest.mark.parametrize("method", ["exact", "first_order", "finite_difference"])
def test_reentrant_checkpoints_are_refused_with_the_way_out(method):
    class Net(Block):
        def forward(self, x): return self.out(checkpoint(self.body, x.requires_grad_(), use_reentrant=True))
    with pytest.raises(RuntimeError, match="pass use_reentrant=False to torch.utils.checkpoint"):
        hypergradient(Net().double(), reducer(), ExpectedValue(), ce, *batches(1), .1, method=method)


class Recomputed(torch.autograd.Function):
    "x -> x tanh(w x), recomputed from the layer when its gradient is wanted, as memory-saving layers do"
    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return x * torch.tanh(layer(x))
    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        z = torch.tanh(ctx.layer(x))
        w = ctx.layer.weight
        return g * z + (g * x * (1 - z**2)) @ w, None


def test_a_backward_pass_that_reads_the_layer_again():
    class Net(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.first, self.layer, self.out, self.f = nn.Linear(6, 6), nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3), f
        def forward(self, x): return self.out(self.f(self.first(x), self.layer))
    torch.manual_seed(0)
    plain = Net(lambda x, layer: x * torch.tanh(layer(x))).double()
    model = Net(Recomputed.apply).double()
    model.load_state_dict(plain.state_dict())
    for k in 1, 3: agrees(model, k, reference=plain)


class Detached(torch.autograd.Function):
    "A backward pass that runs the layer again apart from the graph: it has no second derivative"
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight, bias)
        return torch.tanh(F.linear(x, weight, bias))
    @staticmethod
    def backward(ctx, g):
        with torch.enable_grad():
            inputs = [o.detach().requires_grad_() for o in ctx.saved_tensors]
            return torch.autograd.grad(torch.tanh(F.linear(*inputs)), inputs, g.detach())


@KS
def test_a_backward_pass_apart_from_the_graph_is_refused_and_the_way_out_is_right(k):
    class Net(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.layer, self.out, self.f = nn.Linear(6, 6), nn.Linear(6, 3), f
        def forward(self, x): return self.out(self.f(x, self.layer.weight, self.layer.bias))
    torch.manual_seed(0)
    plain = Net(lambda x, w, b: torch.tanh(F.linear(x, w, b))).double()
    model = Net(Detached.apply).double()
    model.load_state_dict(plain.state_dict())
    with pytest.raises(NoDerivative, match="use method='finite_difference'"): agrees(model, k)
    agrees(model, k, eps=1e-4, reference=plain, method="finite_difference")


class Stops(nn.Module):
    "A part of the network counts as a constant in the backward pass, though not in forward mode"
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(6, 6), nn.Linear(6, 3), how
    def forward(self, x):
        z = torch.tanh(self.a(x))
        if self.how == "no_grad":
            with torch.no_grad(): scale = z.norm(dim=1, keepdim=True)
            z = z / scale
        if self.how == "hook" and z.requires_grad: z.register_hook(lambda g: -g)
        if self.how == "momentum":
            with torch.no_grad(): z = z + torch.tanh(self.a(x.flip(0)))
        if self.how == "set_grad":
            torch.set_grad_enabled(False)
            shift = self.b.weight.mean()
            torch.set_grad_enabled(True)
            z = z * shift
        return self.b(z)


@KS
@pytest.mark.parametrize("how", ["no_grad", "hook", "momentum", "set_grad"])
def test_what_only_the_backward_pass_knows(how, k):
    torch.manual_seed(0)
    agrees(Stops(how).double(), k)


@KS
@pytest.mark.parametrize("inner", [torch.bfloat16, torch.float16])
def test_a_model_that_computes_in_half_precision_is_not_mistaken_for_one(inner, k):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        def forward(self, x): return self.b(torch.tanh(F.linear(x.to(inner), self.a.weight.to(inner)).double()))
    torch.manual_seed(0)
    agrees(Net().double(), k, eps=.02)


def test_a_pass_that_cannot_be_repeated_is_refused():
    "Randomness that nobody can seed"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.draw = nn.Linear(6, 3), iter([.1, .9, .4, .7, .3] * 99).__next__
        def forward(self, x): return self.out(x * self.draw())
    with pytest.raises(ValueError, match="a repeated pass gives other losses"): hypergradient(Net().double(), reducer(), ExpectedValue(), ce, *batches(1), .1)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        s = x.sigmoid()
        ctx.save_for_backward(x, s)
        return x * s
    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * (s + x * s * (1 - s))


class Normalised(torch.autograd.Function):
    "x / |x|, with the norm kept"
    @staticmethod
    def forward(ctx, x):
        n = x.norm(dim=1, keepdim=True)
        ctx.save_for_backward(x, n)
        return x / n
    @staticmethod
    def backward(ctx, g):
        x, n = ctx.saved_tensors
        return g / n - x * (g * x).sum(1, keepdim=True) / n**3


class Masked(torch.autograd.Function):
    "Keeps a mask, a constant indeed"
    @staticmethod
    def forward(ctx, x):
        mask = (x.detach() > -.2).to(x)
        ctx.save_for_backward(x, mask)
        return mask * x**3
    @staticmethod
    def backward(ctx, g):
        x, mask = ctx.saved_tensors
        return 3 * g * mask * x**2


@KS
@pytest.mark.parametrize("f,pure,right", [(Swish, lambda x: x * x.sigmoid(), False), (Normalised, lambda x: x / x.norm(dim=1, keepdim=True), False), (Masked, lambda x: (x.detach() > -.2) * x**3, True)])
def test_a_function_that_keeps_an_intermediate_result_is_right_or_refused(f, pure, right, k):
    "Autograd's own second derivative is wrong then, and so is an unroll of the same network: the reference is the network without the function"
    class Net(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.a, self.b, self.f = nn.Linear(6, 6), nn.Linear(6, 3), f
        def forward(self, x): return self.b(self.f(self.a(x)))
    torch.manual_seed(0)
    plain, model = Net(pure).double(), Net(f.apply).double()
    model.load_state_dict(plain.state_dict())
    right_or_refused(k > 1 and not right, model, k, reference=plain)


# --- 4. Inputs that are edited in place

class Edits(nn.Module):
    def __init__(self, edit):
        super().__init__()
        self.edit, self.out = edit, nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    def forward(self, x): return self.out(self.edit(x))


EDITS = dict(standardise=lambda x: x.sub_(.5).div_(.25), relu=lambda x: F.relu(x, inplace=True), mask=lambda x: x.masked_fill_(x > 1, 0.), item=lambda x: x.__setitem__((slice(None), 0), 0.) or x)


@KS
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize("edit", EDITS)
def test_a_model_that_edits_its_input(edit, method, k):
    torch.manual_seed(0)
    model, pure = Edits(EDITS[edit]).double(), Edits(lambda x: EDITS[edit](x.clone())).double()
    pure.load_state_dict(model.state_dict())
    train, val = batches(k)
    before = copy.deepcopy((train, val))
    grads = [hypergradient(model, reducer(), ExpectedValue(), ce, train, val, .1, method=method)[1] for _ in range(2)]
    assert all(torch.equal(a, b) for x, y in zip((*train, val), (*before[0], before[1])) for a, b in zip(x, y))
    same(grads[0], grads[1], 1e-12)
    same(grads[0], unroll(pure, reducer(), ExpectedValue(), ce, train, val, .1)[1], 1e-6 if method == "exact" else 1e-3)


def bce(pred, y): return F.binary_cross_entropy(pred, F.one_hot(y, 3).to(pred), reduction="none").mean(1)
def pops(pred, y): return ce(pred, y.pop("label"))


LOSSES = dict(prediction=(lambda p, y: bce(p.sigmoid_(), y), lambda p, y: bce(p.sigmoid(), y)), target=(lambda p, y: ce(p, y.sub_(1).abs_()), lambda p, y: ce(p, (y - 1).abs())),
              clamp=(lambda p, y: ce(p.clamp_(-.5, .5), y), lambda p, y: ce(p.clamp(-.5, .5), y)))


@KS
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_edits_what_it_gets(loss, k):
    torch.manual_seed(0)
    model, (train, val), (edits, pure) = nn.Linear(6, 3).double(), batches(k), LOSSES[loss]
    before = [y.clone() for _, y in (*train, val)]
    grad = hypergradient(model, reducer(), ExpectedValue(), edits, train, val, .1)[1]
    same(grad, unroll(model, reducer(), ExpectedValue(), pure, train, val, .1)[1])
    assert all(torch.equal(a, y) for a, (_, y) in zip(before, (*train, val)))


def test_a_dictionary_that_is_emptied():
    torch.manual_seed(0)
    model, (train, val) = nn.Linear(6, 3).double(), batches(2)
    dicts = [(x, dict(label=y)) for x, y in (*train, val)]
    grad = hypergradient(model, reducer(), ExpectedValue(), pops, dicts[:2], dicts[2], .1)[1]
    same(grad, unroll(model, reducer(), ExpectedValue(), ce, train, val, .1)[1])
    assert all("label" in y for _, y in dicts)


# --- 5. Fused kernels

class Standardised(nn.Conv2d):
    "A convolution whose weight is standardised by F.batch_norm with a weight and no bias, as in networks without normalisation"
    def forward(self, x):
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, weight=self.gain, training=True).reshape_as(self.weight)
        return F.conv2d(x, w, None, self.stride, self.padding)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels,), .5))


def conv(call):
    "A convolution that is called as `call` says"
    class Conv(nn.Conv2d):
        def forward(self, x): return call(self, x)
    return Conv(3, 4, 3, padding=1, bias=False)


CALLS = dict(ints=lambda m, x: F.conv2d(x, m.weight, None, 1, 1, 1, 1), keywords=lambda m, x: F.conv2d(x, m.weight, padding=1), all_keywords=lambda m, x: F.conv2d(input=x, weight=m.weight, padding=(1, 1)),
             by_name=lambda m, x: F.conv2d(x, m.weight, padding="same"), unbatched=lambda m, x: torch.stack([F.conv2d(o, m.weight, None, 1, 1) for o in x]),
             lists=lambda m, x: F.conv2d(x, m.weight, None, [1, 1], [1, 1]), torch=lambda m, x: torch.conv2d(x, m.weight, None, 1, 1), one=lambda m, x: F.conv2d(x, m.weight, None, (1,), (1,)),
             functional_norm=lambda m, x: F.batch_norm(F.conv2d(x, m.weight, padding=1), None, None, training=True),
             norm_without_bias=lambda m, x: F.batch_norm(F.conv2d(x, m.weight, padding=1), None, None, x.new_ones(4), None, True),
             norm_by_position=lambda m, x: F.batch_norm(F.conv2d(x, m.weight, padding=1), x.new_zeros(4), x.new_ones(4), x.new_ones(4), x.new_zeros(4), True, .1, 1e-3),
             norm_of_torch=lambda m, x: torch.batch_norm(F.conv2d(x, m.weight, padding=1), x.new_ones(4), x.new_zeros(4), None, None, True, .1, 1e-5, False))


@KS
@pytest.mark.parametrize("call", CALLS)
def test_kernels_however_they_are_called(call, k): agrees(Body(nn.Flatten(), conv(CALLS[call])).double(), k, (3, 4, 4))


@KS
@pytest.mark.parametrize("layer", [lambda: Standardised(3, 4, 3, padding=1), lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3),
                                   lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)), lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None)),
                                   lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, track_running_stats=False)),
                                   lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, bias=False, dilation=1, padding=1), nn.Upsample(scale_factor=2), nn.InstanceNorm2d(4, affine=True))])
def test_layers_of_images(layer, k): agrees(Body(nn.Flatten(), layer(), n=96 if "groups=3" in str(layer()) else 64).double(), k, (3, 4, 4))


def test_running_statistics_are_there_for_a_model_that_reads_them():
    class Net(Body):
        def forward(self, x):
            z = self.norm(self.conv(x))
            return self.out(self.flat(z)) * (1 + self.norm.running_var.mean())
    model = Net(nn.Flatten())
    model.norm = nn.BatchNorm2d(4)
    for k in 1, 3: agrees(model.double(), k, (3, 4, 4))


def nodes(fn):
    seen, todo = set(), [fn]
    while todo:
        if (o := todo.pop()) is None or o in seen: continue
        seen.add(o)
        todo += [p for p, _ in o.next_functions]
    return [o.name() for o in seen]


@pytest.mark.parametrize("net,convs,norms", [(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), 1, 1),
                                             (lambda: __import__("metarisk_nb.data").data.cnn(3, 3, (4, 8), (1, 2)), 2, 2), (lambda: __import__("metarisk_nb.data").data.resnet18_32(3, 3), 20, 20),
                                             (lambda: Body(nn.Flatten(), conv(CALLS["ints"]), n=256), 1, 0)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_kernels_are_used_where_they_should_be(net, convs, norms, k, monkeypatch):
    "One forward-mode pass, and a graph to be differentiated twice for each step before: a new torch must not switch them off unseen"
    graphs, jvps = [], []
    def loss(pred, y):
        if pred.grad_fn is not None: graphs.append(tuple(sum(o == f"{n}Backward" for o in nodes(pred.grad_fn)) for n in ("Conv", "Norm")))
        return ce(pred, y)
    from metarisk_nb import kernels
    for o in (kernels.Conv, kernels.Norm): monkeypatch.setattr(o, "jvp", staticmethod(lambda *args, was=o.jvp, n=o.__name__: jvps.append(n) or was(*args)))
    hypergradient(net().double(), reducer(), ExpectedValue(), loss, *batches(k, (3, 8, 8)), .01)
    assert (jvps.count("Conv"), jvps.count("Norm")) == (convs, norms)
    assert graphs == [(0, 0)] * (k + 1) + [(convs, norms)] * (k - 1)  # the first passes are differentiated once: torch's own are faster


# --- 6. A gradient within the forward pass (torch has no third derivative of batch norm, which several inner steps ask for)

class Adapts(nn.Module):
    "One gradient step on a loss of its own before the prediction, as test-time training and MAML do it"
    def __init__(self, norm=False, check=False):
        super().__init__()
        self.conv, self.norm, self.out, self.check = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3) if norm else nn.Identity(), nn.Linear(48, 3), check
    def adapted(self, x):
        w = self.conv.weight
        own = (self.norm(F.conv2d(x, w, None, 1, 1)) - x).square().mean()
        w = w - .5 * torch.autograd.grad(own, w, create_graph=True)[0]
        return self.norm(F.conv2d(x, w, None, 1, 1)).tanh().flatten(1)
    def forward(self, x):
        if self.check: return self.out(checkpoint(self.adapted, x, use_reentrant=False))
        return self.out(self.adapted(x))


@KS
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_a_layer_that_adapts_its_weight(norm, k, check):
    torch.manual_seed(0)
    model, plain = [Adapts(norm, o).double() for o in (check, False)]
    plain.load_state_dict(model.state_dict())
    right_or_refused(norm and k > 1, model, k, (3, 4, 4), reference=plain)


@KS
@pytest.mark.parametrize("norm", [False, True])
def test_a_penalty_on_the_gradient_of_the_input(norm, k):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
        def forward(self, x):
            x = x.detach().requires_grad_()
            z = self.body(x)
            return torch.cat([z, torch.autograd.grad(z.square().sum(), x, create_graph=True)[0].square().flatten(1).sum(1, keepdim=True)], 1)
    def loss(pred, y): return ce(pred[:, :3], y) + .1 * pred[:, 3]
    right_or_refused(norm and k > 1, Net().double(), k, (3, 4, 4), loss=loss)


def test_a_loss_that_weighs_tasks_by_their_gradient():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Linear(64, 3)
        def forward(self, x):
            z = self.out(self.conv(x).tanh().flatten(1))
            size = torch.autograd.grad(z.square().mean(), self.conv.weight, create_graph=True)[0].norm()
            return z * (1 + size)
    for k in 1, 3: agrees(Net().double(), k, (3, 4, 4))


# --- 7. Parameters that the model does not know

class Hidden(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.known = nn.Linear(6, 3)
        w = (torch.randn(3, 6, dtype=torch.float64) / 3).requires_grad_()
        self.get = dict(list=lambda: self.ws[0], closure=lambda: w, derived=lambda: w2, param=lambda: self.p[0])[where]
        self.ws, self.p, w2 = [w], [nn.Parameter(w.detach().clone())], 2 * w
    def forward(self, x): return self.known(x).tanh() + F.linear(x, self.get())


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize("where", ["list", "closure", "derived", "param"])
def test_a_tensor_that_the_model_does_not_know_is_refused_with_its_shape(where, method):
    with pytest.raises(ValueError, match=r"not among model.parameters\(\), of shapes \[\(3, 6\)\].*nn.ParameterList"):
        hypergradient(Hidden(where).double(), reducer(), ExpectedValue(), ce, *batches(1), .1, method=method)


@pytest.mark.parametrize("loss", ["train", "val"])
def test_weights_of_a_loss_are_refused_where_the_model_does_not_hold_them(loss):
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    def weighted(pred, y): return ce(pred * weight, y)
    kw = dict(loss_func=weighted) if loss == "train" else dict(loss_func=ce, meta_loss=weighted)
    train, val = batches(1)
    with pytest.raises(ValueError, match=r"of shapes \[\(3,\)\]"): hypergradient(nn.Linear(6, 3).double(), reducer(), ExpectedValue(), train_batches=train, val_batch=val, lr=.1, **kw)


def test_leaves_of_a_pass_alone_and_lists_of_known_parameters_are_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])
            self.ws = [o.weight for o in self.layers]
        def forward(self, x):
            noise = torch.zeros_like(x).requires_grad_()
            return F.linear(F.linear(x + noise, self.ws[0]).tanh(), self.ws[1])
    class Twin(Net):
        def forward(self, x): return F.linear(F.linear(x, self.layers[0].weight).tanh(), self.layers[1].weight)
    model = Net().double()
    model.ws = [o.weight for o in model.layers]
    twin = Twin().double()
    twin.load_state_dict(model.state_dict())
    for k in 1, 3: agrees(model, k, reference=twin)


# --- 8. Randomness outside torch

def drop(draw):
    "A network with layers that `draw` drops"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.out = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(8)]), nn.Linear(6, 3)
            self.own, self.np, self.torch = random.Random(3), np.random.default_rng(3), torch.Generator().manual_seed(3)
        def forward(self, x):
            for o in self.layers:
                if draw(self) < .5: x = x + o(x)
            return self.out(x)
    torch.manual_seed(0)
    return Net().double()


STREAMS = dict(random=lambda m: random.random(), numpy=lambda m: np.random.rand(), own=lambda m: m.own.random(), own_numpy=lambda m: m.np.random(), own_torch=lambda m: torch.rand((), generator=m.torch).item())


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("stream", STREAMS)
def test_repeated_passes_draw_the_same_layers(stream, k):
    "Finite differences repeat each pass at another point: they agree with exact if, and only if, both saw the same layers"
    grads = [hypergradient(drop(STREAMS[stream]), reducer(), ExpectedValue(), ce, *batches(k), .1, method=m)[1] for m in ("exact", "finite_difference")]
    same(grads[1], grads[0], 1e-3)


@pytest.mark.parametrize("stream", [*STREAMS, "dropout"])
def test_the_callers_streams_stay_where_they_are(stream):
    model = drop(STREAMS[stream]) if stream != "dropout" else nn.Sequential(nn.Linear(6, 8), nn.Dropout(.5), nn.Linear(8, 3)).double()
    def streams(): return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], *[str(getattr(model, o, "")) for o in ("own",)]
    def own(): return [o() for o in ((model.own.random, model.np.random, lambda: torch.rand((), generator=model.torch).item()) if stream != "dropout" else ())]
    before, twin = streams(), copy.deepcopy(model)
    hypergradient(model, reducer_kept(), ExpectedValue(), ce, *batches(2), .1)
    assert streams() == before
    if stream != "dropout": assert own() == [twin.own.random(), twin.np.random(), torch.rand((), generator=twin.torch).item()]


def reducer_kept():
    with torch.random.fork_rng(): return reducer()


def test_a_generator_draws_the_seeds_and_moves():
    model, g = nn.Sequential(nn.Linear(6, 32), nn.Dropout(.5), nn.Linear(32, 3)).double(), torch.Generator().manual_seed(5)
    args = model, reducer(), ExpectedValue(), ce, *batches(2), .1
    torch.manual_seed(5)
    a, same_stream, b, c = [hypergradient(*args)[1], hypergradient(*args)[1], hypergradient(*args, generator=g)[1], hypergradient(*args, generator=g)[1]]
    assert torch.equal(a, same_stream) and torch.equal(a, b) and not torch.equal(b, c)


def test_state_in_containers_is_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.log, self.recent, self.cache, self.ema, self.n = nn.Linear(6, 3), [], deque([0], maxlen=2), dict(mean=torch.zeros(6).double()), torch.zeros(6).double(), 0
        def forward(self, x):
            self.n += 1
            self.log.append(self.n)
            self.recent.append(self.n)
            self.cache["mean"].add_(x.mean(0).detach())
            self.ema.mul_(.9).add_(x.mean(0).detach())
            return self.out(x - self.cache["mean"] - self.ema)
    model = Net().double()
    model(batches(1)[1][0])
    was = copy.deepcopy((model.log, [*model.recent], model.cache["mean"], model.ema, model.n))
    a, b = [hypergradient(model, reducer(), ExpectedValue(), ce, *batches(2), .1, method=m)[1] for m in ("exact", "finite_difference")]
    same(b, a, 1e-4)
    now = model.log, [*model.recent], model.cache["mean"], model.ema, model.n
    assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(was, now)) and model.recent.maxlen == 2


# --- 2. Memory of a loss, where it is called on its own

class Memory(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.seen, self.t = how, 0, torch.zeros(3, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
    def forward(self, pred, y):
        p = pred.detach().mean(0)
        self.seen += 1
        if self.how == "in place": self.t.mul_(.5).add_(p)
        elif self.how == "rebinding": self.t = .5 * self.t + p
        else: self.mean += p
        return ce(pred - self.t - self.mean, y)


class Plain:
    "The same without torch's Module"
    def __init__(self): self.inner, self.t = Memory("in place"), torch.zeros(3, dtype=torch.float64)
    def __call__(self, pred, y):
        self.t += 1
        return self.inner(pred, y) * self.t.mean()


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: partial(f), lambda f: lambda pred, y: f(pred, y), lambda f: f.forward])
@pytest.mark.parametrize("how", ["in place", "rebinding", "buffer"])
def test_what_a_loss_remembers_is_left_alone(how, wrap):
    loss = Memory(how)
    before = copy.deepcopy(loss.__dict__)
    a, b = [hypergradient(nn.Linear(6, 3).double().requires_grad_(), reducer(), CVaR(.5), wrap(loss), *batches(2), 0.)[0] for _ in range(2)]
    assert loss.seen == before["seen"] == 0 and not loss.t.any() and not loss.mean.any()


def test_what_an_object_remembers_is_left_alone():
    loss = Plain()
    hypergradient(nn.Linear(6, 3).double(), reducer(), CVaR(.5), loss, *batches(2), .1)
    assert not loss.t.any() and not loss.inner.t.any() and not loss.inner.seen


# --- 9. Numbers

class Mixed(nn.Module):
    "Two precisions in one model"
    def __init__(self, first, second):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.first, self.second = nn.Linear(6, 16).to(first), nn.Linear(16, 3).to(second), first, second
    def forward(self, x): return self.b(torch.tanh(self.a(x.to(self.first))).to(self.second))


@KS
@pytest.mark.parametrize("first,second", [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.float64)])
@pytest.mark.parametrize("loss", [torch.float32, torch.float64])
def test_finite_differences_of_mixed_precision(first, second, loss, k):
    model = Mixed(first, second)
    args = reducer(), ExpectedValue(), lambda pred, y: ce(pred, y).to(loss), *batches(k), .1
    same(hypergradient(model, *args, method="finite_difference")[1], hypergradient(model, *args)[1], 1e-2)


@pytest.mark.parametrize("dead", ["gate", "relu", "residual"])
def test_where_a_parameter_starts_at_zero_it_is_zero_on_the_way_back(dead):
    "A residual branch that starts at zero sits on the kink of its activation: theta_0 must come back as it was, not as 1e-20"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gate, self.out = nn.Linear(6, 6), nn.Parameter(torch.zeros(6)), nn.Linear(6, 3)
        def forward(self, x):
            z = self.body(x)
            if dead == "gate": return self.out(x + F.relu(self.gate * z))
            if dead == "relu": return self.out(x) + F.relu(self.gate).sum() * z[:, :3]
            return self.out(x + torch.where(self.gate == 0, self.gate * z, 100 * self.gate * z))
    torch.manual_seed(0)
    model = Net()
    train, val = batches(3, dtype=torch.float32)
    args = SortedReducer(8), ExpectedValue(), ce, train, val, .1
    same(hypergradient(model, *args)[1], unroll(model, *args)[1], 1e-4)


# --- 12. Parameters that are edited in the forward pass; TorchScript

class Clamped(nn.Module):
    def __init__(self, frozen=False):
        super().__init__()
        self.w, self.out = nn.Parameter(2 * torch.randn(6, dtype=torch.float64), requires_grad=not frozen), nn.Linear(6, 3)
    def forward(self, x):
        with torch.no_grad(): self.w.clamp_(-1, 1)
        return self.out(torch.tanh(x * self.w))


class Words(nn.Module):
    def __init__(self, frozen=False):
        super().__init__()
        self.emb, self.out = nn.Embedding(20, 6, max_norm=1.), nn.Linear(6, 3)
        self.emb.weight.requires_grad_(not frozen)
    def forward(self, x): return self.out(torch.tanh(self.emb((10 * x).abs().long() % 20).mean(1)))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 3)
    def forward(self, x):
        with torch.no_grad(): self.out.weight.div_(self.out.weight.norm())
        return self.out(x)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("net", [Clamped, Words, Normed, partial(Words, frozen=True)], ids=["clamp", "max_norm", "normed", "frozen max_norm"])
def test_a_model_that_edits_its_parameters_keeps_them(net, k):
    torch.manual_seed(0)
    model = net().double()
    before = state(model)
    for method in "exact", "finite_difference": hypergradient(model, reducer_kept(), ExpectedValue(), ce, *batches(k), .1, method=method)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@KS
@pytest.mark.parametrize("net", [Clamped, Words])
def test_edits_that_change_nothing_more_are_differentiated_as_autograd_does(net, k):
    torch.manual_seed(0)
    model = net().double()
    model(batches(1)[1][0])
    with torch.no_grad():
        for p in model.parameters(): p.mul_(.01)  # far from every edit
    agrees(model, k)


class Decays(nn.Module):
    "Every pass makes the weights smaller: a repeated pass has to begin where the first one did"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
    def forward(self, x):
        with torch.no_grad():
            for p in self.parameters(): p.mul_(.9)
        return self.b(torch.tanh(self.a(x)))


class Teacher(nn.Module):
    "Frozen weights that follow the trained ones in every pass"
    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
    def forward(self, x):
        with torch.no_grad():
            for p, q in zip(self.student.parameters(), self.teacher.parameters()): q.lerp_(p, .3)
        return self.student(x) * torch.tanh(self.teacher(x))


@KS
@pytest.mark.parametrize("net", [Decays, Teacher, Clamped, Normed])
def test_edits_in_a_pass_are_those_of_an_unroll_on_copies(net, k):
    "The unroll with a copy of the frozen parameters for each pass; an edit under no_grad is no part of the graph"
    torch.manual_seed(0)
    model = net().double()
    (train, val), rate, g = batches(k), .1, reducer()
    before = state(model)
    got = hypergradient(model, g, ExpectedValue(), ce, train, val, rate)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    ps = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    def losses(x, y): return ce(torch.func.functional_call(copy.deepcopy(model), dict(ps), (x,)), y)
    for x, y in train:
        grads = torch.autograd.grad(g(losses(x, y)), [*ps.values()], create_graph=True)
        ps = {n: p - rate * d for (n, p), d in zip(ps.items(), grads)}
    want = losses(*val).mean()
    same(got[0], want)
    same(got[1], torch.autograd.grad(want, g.logits)[0])


def test_large_frozen_parameters_that_are_edited_are_refused_by_name(monkeypatch):
    monkeypatch.setattr("metarisk_nb.hypergrad.most_copied", 0)
    with pytest.raises(RuntimeError, match=r"frozen parameters \['w'\].*make them buffers"): hypergradient(Clamped(frozen=True).double(), reducer(), ExpectedValue(), ce, *batches(1), .1)
    hypergradient(nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)).double(), reducer(), ExpectedValue(), ce, *batches(1), .1)


class Careful(nn.Module):
    "A pass that does more where a gradient is wanted"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
    def forward(self, x): return self.b(torch.tanh((2 if torch.is_grad_enabled() else 1) * self.a(x)))


class Spectral(nn.Module):
    "Complex weights"
    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(4, dtype=torch.cdouble)), nn.Linear(6, 3)
    def forward(self, x): return self.out(torch.tanh(torch.fft.irfft(torch.fft.rfft(x) * self.w, n=6)))


@KS
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize("net", [Careful, Spectral])
def test_models_that_look_at_the_mode_or_have_complex_weights(net, method, k):
    torch.manual_seed(0)
    agrees(net().double(), k, eps=1e-6 if method == "exact" else 1e-3, method=method)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(2, 6).double()), lambda m: nn.Sequential(torch.jit.script(m), nn.Tanh())])
def test_torchscript_is_refused_and_untouched(script):
    model = script(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double())
    before = state(model)
    with pytest.raises(TypeError, match="TorchScript.*before torch.jit.script or trace"): hypergradient(model, reducer(), ExpectedValue(), ce, *batches(1), .1)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
