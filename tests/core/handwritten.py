"Models as people write them: fast weights, penalties, hooks, drawn layers, state of their own, functions of their own"
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


class Call(nn.Module):
    "Parts, and a function that says how they are put together: f(self, *inputs)"
    def __init__(self, f, **parts):
        super().__init__()
        self.f = f
        for n, p in parts.items(): setattr(self, n, p)
    def forward(self, *x): return self.f(self, *x)


def mlp(*mid, width=8): return nn.Sequential(nn.Linear(6, width), *mid, nn.Tanh(), nn.Linear(width, 3))


def net(*mid, width=8, out=nn.AdaptiveAvgPool2d(1)):
    "Images -> 3 numbers"
    second = nn.Conv2d(width, width, 3, 2, 1)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), *mid, nn.Tanh(), second, out, nn.Flatten(), nn.LazyLinear(3))


# Gradients inside the forward pass

class FastWeights(nn.Module):
    "MAML: the layer takes a gradient step on a loss of its own before it answers"
    def __init__(self, layer, head):
        super().__init__()
        self.layer, self.head = layer, head
    def forward(self, x):
        w = dict(self.layer.named_parameters())
        with torch.enable_grad():
            aim = functional_call(self.layer, w, (x,)).square().mean()
            g = torch.autograd.grad(aim, [*w.values()], create_graph=True)
        return self.head(torch.tanh(functional_call(self.layer, {n: p - .3 * d for (n, p), d in zip(w.items(), g)}, (x,))))


class TestTimeTraining(nn.Module):
    "A hidden state that is a matrix, trained by each token"
    def __init__(self, n=4):
        super().__init__()
        self.k, self.v, self.q = (nn.Linear(2, n) for _ in range(3))
        self.w, self.out = nn.Parameter(torch.eye(n)), nn.Linear(n, 3)
    def forward(self, x):
        w = self.w.expand(len(x), -1, -1)
        for o in x.view(len(x), 3, 2).unbind(1):
            with torch.enable_grad():
                w = w if w.requires_grad else w.requires_grad_()
                aim = (torch.einsum("bij,bj->bi", w, self.k(o)) - self.v(o)).square().sum()
                w = w - .1 * torch.autograd.grad(aim, w, create_graph=True)[0]
        return self.out(torch.einsum("bij,bj->bi", w, self.q(o)))


class InputGradient(nn.Module):
    "The size of the gradient for the input joins the answer (WGAN-GP, forces from an energy)"
    def __init__(self, body):
        super().__init__()
        self.body = body
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self.body(x)
            g, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y + g.flatten(1).norm(dim=1, keepdim=True)


# Functions with a backward pass of their own

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3
    @staticmethod
    def backward(ctx, g): return 3 * ctx.saved_tensors[0]**2 * g


class Once(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx, g): return 3 * ctx.saved_tensors[0]**2 * g


class Reverse(torch.autograd.Function):
    "Gradient reversal (DANN)"
    @staticmethod
    def forward(ctx, x): return x.view_as(x)
    @staticmethod
    def backward(ctx, g): return -.5 * g


class Straight(torch.autograd.Function):
    "Rounded forward, straight through backward (quantisation, binary networks)"
    @staticmethod
    def forward(ctx, x): return (4 * x).round() / 4
    @staticmethod
    def backward(ctx, g): return g


class Swish(torch.autograd.Function):
    "Saves an intermediate value: what depends on it is lost to a second derivative"
    @staticmethod
    def forward(ctx, x):
        s = x.sigmoid()
        ctx.save_for_backward(x, s)
        return x * s
    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * (s + x * s * (1 - s))


class Recomputed(torch.autograd.Function):
    "RevNet: only the outputs are kept, the backward pass computes the layer again on detached tensors"
    @staticmethod
    def forward(ctx, x, layer, *params):
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad(): return x + layer(x)
    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad(): y = x + ctx.layer(x)
        gx, *gp = torch.autograd.grad(y, [x, *ctx.layer.parameters()], g)
        return gx, None, *gp


class FixedPoint(torch.autograd.Function):
    "DEQ: the equilibrium's gradient by the implicit function theorem, once"
    @staticmethod
    def forward(ctx, x, w):
        z = torch.zeros_like(x)
        for _ in range(30): z = torch.tanh(z @ w + x)
        ctx.save_for_backward(z, w)
        return z
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        z, w = ctx.saved_tensors
        d, u = 1 - z**2, g
        for _ in range(30): u = g + (u * d) @ w.T
        return u * d, z.T @ (u * d)


def applied(f): return Call(lambda m, x: m.b(f.apply(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3))


def reversible(again):
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    def f(m, x):
        h = m.a(x)
        return m.b(Recomputed.apply(h, m.layer, *m.layer.parameters()) if again else h + m.layer(h))
    return Call(f, a=nn.Linear(6, 8), layer=layer, b=nn.Linear(8, 3))


# Recurrent layers and attention

class Steps(nn.Module):
    "A layer of torch's that reads the six numbers as three steps of two"
    def __init__(self, layer, n, width=None):
        super().__init__()
        self.first, self.layer, self.out = nn.Linear(2, width) if width else nn.Identity(), layer, nn.Linear(n, 3)
    def forward(self, x):
        o = self.layer(self.first(x.view(len(x), 3, 2)))
        return self.out((o[0] if isinstance(o, tuple) else o).mean(1))


def packed(m, x):
    lengths = torch.tensor([3, 1, 2, 3, 2, 1, 3, 2])[:len(x)]
    x = nn.utils.rnn.pack_padded_sequence(x.view(len(x), 3, 2), lengths, batch_first=True, enforce_sorted=False)
    return m.out(m.layer(x)[1][-1])


def padded(m, x):
    h = m.first(x.view(len(x), 3, 2))
    return m.out(m.layer(h, src_key_padding_mask=torch.arange(3) >= (torch.arange(len(x)) % 3 + 1)[:, None])[:, 0])


def encoder(**kwargs): return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **kwargs), 2)


class Stateful(nn.Module):
    "A hidden state that goes on from batch to batch"
    def __init__(self):
        super().__init__()
        self.cell, self.out, self.h = nn.GRUCell(6, 8), nn.Linear(8, 3), None
    def forward(self, x):
        h = x.new_zeros(1, 8) if self.h is None else self.h
        h = self.cell(x, h.expand(len(x), -1))
        self.h = h.detach().mean(0, keepdim=True)
        return self.out(h)


# Draws

def dropped(draw):
    "Layers that are left out by a draw from somewhere else than torch"
    def f(m, x):
        h = torch.tanh(m.a(x))
        for layer in m.layers:
            if draw(m) > .5: h = h + torch.tanh(layer(h))
        return m.b(h)
    return Call(f, a=nn.Linear(6, 8), layers=nn.ModuleList(nn.Linear(8, 8) for _ in range(6)), b=nn.Linear(8, 3))


def owned(rng, draw):
    m = dropped(lambda m: draw(m.rng))
    m.rng = rng
    return m


def mixed_up(m, x):
    lam = np.random.beta(.4, .4)
    return m.body(lam * x + (1 - lam) * x[np.random.permutation(len(x))])


# Values that no gradient goes through, and hooks that change one

def normed(how, m, x):
    "A weight divided by its size, which counts as a constant"
    w = m.a.weight
    if how == "no_grad":
        with torch.no_grad(): size = w.norm()
    else: size = dict(detach=w.detach(), data=w.data)[how].norm()
    return m.b(torch.tanh(x @ (w / size).T))


def siamese(m, x):
    "SimSiam: the other view is a target"
    with torch.no_grad(): z = m.body(x.flip(1))
    return m.head(m.body(x)) * z


def hooked(m, x):
    h = m.a(x)
    if h.requires_grad: h.register_hook(lambda g: .3 * g)
    return m.b(torch.tanh(h))


def scaled_by_module_hook():
    m = mlp()
    m[0].register_full_backward_hook(lambda m, gi, go: tuple(None if g is None else .3 * g for g in gi))
    m.insert(0, nn.Linear(6, 6))
    return m


def careful(m, x):
    "A pass that does more where a gradient is wanted"
    h = m.a(x)
    return m.b(torch.tanh(2 * h if torch.is_grad_enabled() else h))


# Values kept by the model

def teacher(m, x):
    "Mean teacher: frozen weights follow the trained ones in every pass"
    with torch.no_grad():
        for p, q in zip(m.student.parameters(), m.teacher.parameters()): q.lerp_(p, .1)
    return m.student(x) + .5 * m.teacher(x)


def clipped(m, x):
    "WGAN: weights are clamped before each pass"
    with torch.no_grad():
        for p in m.body.parameters(): p.clamp_(-.3, .3)
    return m.body(x)


def shrunk(m, x):
    "Weights are scaled before each pass: a second pass would scale them again"
    with torch.no_grad():
        for p in m.body.parameters(): p.mul_(.9)
    return m.body(x)


class Centred(nn.Module):
    "DINO's centre as a plain tensor that is moved in place"
    def __init__(self):
        super().__init__()
        self.body, self.centre = mlp(), torch.zeros(3, dtype=torch.float64)
    def forward(self, x):
        y = self.body(x)
        self.centre.mul_(.9).add_(.1 * y.detach().mean(0))
        return y - self.centre


class Codebook(nn.Module):
    "VQ-VAE: codes are buffers that follow the data, the gradient goes straight through"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("codes", torch.randn(5, 4))
    def forward(self, x):
        h = self.a(x)
        i = torch.cdist(h.detach(), self.codes).argmin(1)
        with torch.no_grad(): self.codes[i] = self.codes[i].lerp(h, .1)
        return self.b(h + (self.codes[i] - h).detach())


class Hidden(nn.Module):
    "Parameters that no module knows of"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.w = [torch.eye(8, dtype=torch.float64).requires_grad_()]
    def forward(self, x): return self.b(torch.tanh(self.a(x) @ self.w[0]))


class Tied(nn.Module):
    "A language model whose output matrix is its input matrix"
    def __init__(self, **kwargs):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(20, 8, **kwargs), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 20)
        self.out.weight = self.emb.weight
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


# Shapes and calls of layers

def unbatched(m, x): return m.out(torch.stack([torch.tanh(m.conv(o)).mean((1, 2)) for o in x]))


def plain_ints(m, x):
    h = F.conv2d(x, m.conv.weight, None, 1, 0, 1, 1)
    return m.out(torch.tanh(F.conv2d(h, m.second.weight)).mean((2, 3)))


def no_bias(m, x):
    h = m.conv(x)
    return m.out(torch.tanh(F.batch_norm(h, None, None, m.w, training=True)).mean((2, 3)))


class ScaledStdConv(nn.Conv2d):
    "timm's: the weight is standardised by a batch norm with a weight and without a bias"
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(1, self.out_channels, 1))
    def forward(self, x):
        w = F.batch_norm(self.weight.view(1, self.out_channels, -1), None, None, self.gain.flatten(), training=True, momentum=0.)
        return F.conv2d(x, w.view_as(self.weight), self.bias, self.stride, self.padding)


def viewed(m, x): return m.out(m.body(x).view(len(x), -1))


def strided(m, x):
    "Reads the memory of its input as three planes in a row"
    n = x.shape[-1]
    return m.body(x + x.as_strided(x.shape, (3 * n * n, n * n, n, 1)).flip(1))


def edits(m, x): return m.body(x.sub_(.5).div_(.25))


def editing_loss(pred, y): return -y.sub_(1).neg_() + F.softplus(pred.sub_(pred.max(1, keepdim=True)[0].detach())).sum(1)


class Experts(nn.Module):
    "Mixture of experts, the best two answer"
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(mlp() for _ in range(4))
    def forward(self, x):
        w, i = self.gate(x).topk(2)
        y = torch.stack([e(x) for e in self.experts], 1)
        return (w.softmax(1)[..., None] * y.gather(1, i[..., None].expand(-1, -1, 3))).sum(1)


class Dispatched(Experts):
    "The same, each expert reads its own samples only"
    def forward(self, x):
        w, i = self.gate(x).topk(2)
        y = x.new_zeros(len(x), 3)
        for n, e in enumerate(self.experts):
            at, j = (i == n).nonzero(as_tuple=True)
            y = y.index_add(0, at, w.softmax(1)[at, j, None] * e(x[at]))
        return y


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.mid = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.up, self.out = nn.ConvTranspose2d(6, 6, 2, 2), nn.Conv2d(9, 3, 1)
    def forward(self, x):
        h = torch.tanh(self.down(x))
        return self.out(torch.cat([x, self.up(h + torch.tanh(self.mid(h)))], 1))


class Fourier(nn.Module):
    "A neural operator with complex weights"
    def __init__(self):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(1, 4), nn.Parameter(torch.randn(4, 4, 4, dtype=torch.cdouble)), nn.Linear(4, 3)
    def forward(self, x):
        h = self.a(x[..., None])
        h = h + torch.fft.irfft(torch.einsum("bfi,fio->bfo", torch.fft.rfft(h, dim=1), self.w), n=6, dim=1)
        return self.b(torch.tanh(h)).mean(1)


class Flow(nn.Module):
    "Coupling layers: the loss is a negative log likelihood"
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(3))
    def forward(self, x):
        a, b, det = *x.chunk(2, 1), 0.
        for net in self.nets:
            s, t = net(a).chunk(2, 1)
            a, b, det = b * s.tanh().exp() + t, a, det + s.tanh().sum(1)
        return a.square().sum(1) + b.square().sum(1) - det


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(6, 8), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
    def forward(self, x):
        mu, s = self.enc(x).chunk(2, 1)
        q = torch.distributions.Normal(mu, s.exp())
        return self.dec(q.rsample()), torch.distributions.kl_divergence(q, torch.distributions.Normal(0., 1.)).sum(1)


class Graph(nn.Module):
    "Attention over the edges of a graph: the rows of the batch are its nodes, each sees the next two"
    def __init__(self):
        super().__init__()
        self.a, self.e, self.b = nn.Linear(6, 8), nn.Linear(16, 1), nn.Linear(8, 3)
    def forward(self, x):
        n, h = len(x), self.a(x)
        src, dst = torch.cat([(torch.arange(n) + i) % n for i in (0, 1, 2)]), torch.arange(n).repeat(3)
        s = F.leaky_relu(self.e(torch.cat([h[src], h[dst]], 1)), .2).exp()
        size = torch.zeros(n, 1, dtype=x.dtype).index_add(0, dst, s)
        return self.b(torch.tanh(torch.zeros_like(h).index_add(0, dst, s / size[dst] * h[src])))


class Ode(nn.Module):
    "Four steps of Runge and Kutta"
    def __init__(self):
        super().__init__()
        self.f, self.out = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), nn.Linear(6, 3)
    def forward(self, x, h=.25):
        for _ in range(4):
            a = self.f(x)
            b = self.f(x + h / 2 * a)
            c = self.f(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + self.f(x + h * c))
        return self.out(x)


class Ensemble(nn.Module):
    "Members side by side by vmap"
    def __init__(self, n=3):
        super().__init__()
        params, _ = stack_module_state([mlp() for _ in range(n)])
        self.members = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(v.detach()) for k, v in params.items()})
        self.base = [mlp().to("meta")]
    def forward(self, x):
        ps = {k.replace("_", "."): v for k, v in self.members.items()}
        return vmap(lambda p: functional_call(self.base[0], p, (x,)))(ps).mean(0)


class Hyper(nn.Module):
    "A network that makes the weights of another one"
    def __init__(self):
        super().__init__()
        self.make, self.body = nn.Linear(6, 8 * 6), nn.Linear(8, 3)
    def forward(self, x): return self.body(torch.tanh(torch.einsum("boi,bi->bo", self.make(x).view(-1, 8, 6), x)))


class Transformed(nn.Module):
    "Spatial transformer"
    def __init__(self):
        super().__init__()
        self.where, self.body = nn.Linear(192, 6), net()
    def forward(self, x):
        grid = F.affine_grid(self.where(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return self.body(F.grid_sample(x, grid, align_corners=False))


def checkpointed(reentrant, mid=()):
    "`reentrant` None: as it is, without checkpoints"
    parts = nn.Sequential(nn.Linear(6, 8), *mid, nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    def f(m, x):
        if reentrant is None: return m.out(m.b(m.a(x)))
        if reentrant: x = x + 0 * m.out.bias.sum()  # one input must need a gradient
        return m.out(checkpoint(m.b, checkpoint(m.a, x, use_reentrant=reentrant), use_reentrant=reentrant))
    return Call(f, a=parts[0], b=parts[1], out=nn.Linear(8, 3))


def in_segments(segments):
    "Images in segments, norms inside"
    def part(n, *args, **kwargs): return nn.Conv2d(n, 6, 3, *args, **kwargs), nn.BatchNorm2d(6), nn.Tanh()
    body = nn.Sequential(*part(3, 1, 1), *part(6, 2, 1, bias=False))
    def f(m, x): return m.out((checkpoint_sequential(m.body, segments, x, use_reentrant=False) if segments else m.body(x)).mean((2, 3)))
    return Call(f, body=body, out=nn.Linear(6, 3))


def drawn(m, x):
    "Python's stream and numpy's in one pass"
    return m.body(x * (1 + random.random()) + np.random.rand())
