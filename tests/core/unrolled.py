"Does the exact hypergradient of a model equal a full unroll, and does the model stay as it was?"
import copy
import random
import re
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import metarisk_nb.hypergrad
from metarisk_nb.hypergrad import hypergradient
from metarisk_nb.reducer import SortedReducer
from metarisk_nb.risk import CVaR

PACKAGE = Path(metarisk_nb.hypergrad.__file__).parent


def ce(pred, y): return F.cross_entropy(pred, y, reduction="none")


@dataclass
class Case:
    "A model, what it reads and how it is judged"
    name: str
    build: Callable[[], nn.Module]
    batch: Callable  # (n, generator) -> (x, y); floats in double precision, either may be a tuple
    loss: Callable = ce
    library: str = "hand-written"
    twin: Callable = None  # Builds the model whose unroll is right: the same without checkpointing, say; `build` when None
    refused: str = None  # What the error must say; None: the gradient must be right
    train: bool = True
    lr: float = .1
    noise: float = .02  # Added to all parameters, so that none that starts at zero hides a path
    n: int = 6
    n_val: int = 8
    eps: float = 1e-6


@dataclass
class Outcome:
    "One row of the table"
    name: str
    library: str
    parameters: int
    k: int
    error: float = None
    verdict: str = ""
    seconds: float = 0.  # Of one processor
    touched: list = field(default_factory=list)
    message: str = ""
    expected: bool = False  # Equal, or refused with the words that the case names


def streams(): return torch.get_rng_state(), random.getstate(), np.random.get_state()


def rewind(s):
    torch.set_rng_state(s[0])
    random.setstate(s[1])
    np.random.set_state(s[2])


def seed(n):
    torch.manual_seed(n)
    random.seed(n)
    np.random.seed(n)


def tensors(o): return [t for t in (o if isinstance(o, (tuple, list)) else (o,))]


def key(x): return tuple(round(t.detach().double().sum().item(), 6) for t in tensors(x))  # a memory layout may change the last bit


def settled(model):
    "Weights that a hook computes, as values: a module with a graph cannot be copied"
    for m in model.modules():
        for k, v in vars(m).items():
            if isinstance(v, Tensor) and v.grad_fn is not None: m.__dict__[k] = v.detach()
    return model


def draws(model, batch):
    "Does a pass over `batch` move a random stream?"
    was = streams()
    copy.deepcopy(model)(*tensors(copy.deepcopy(batch[0])))
    now = streams()
    rewind(was)
    return any(repr(a) != repr(b) for a, b in zip(was[1:], now[1:])) or not torch.equal(was[0], now[0])


@contextmanager
def noting(model, drawing):
    """The random streams at the start of the first pass over each batch, by the batch's contents: its masks, whoever seeds them.
    A model that draws nothing is left without the hook, which it could notice."""
    seen, hook = {}, None
    if drawing: hook = model.register_forward_pre_hook(lambda m, x: seen.setdefault(key(x), streams()) and None)
    try: yield seen
    finally: hook and hook.remove()


@contextmanager
def plain_kernels():
    "Attention and recurrent layers out of operations that can be differentiated twice"
    off = torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False)
    with Elementary(), sdpa_kernel(SDPBackend.MATH), off[0], off[1]: yield


class Elementary(TorchFunctionMode):
    "Activations whose derivative autograd cannot differentiate, out of those that it can"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.hardsigmoid: return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def unroll(model, reducer, loss, batches, val, lr, risk, seen):
    "Value and gradient, the graph of every inner step kept; each pass has a fresh model, fresh inputs and the draws noted for its batch"
    ps = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    def losses(x, y):
        if key(x) in seen: rewind(seen[key(x)])
        x, y = copy.deepcopy((x, y))
        return loss(functional_call(copy.deepcopy(model), dict(ps), tuple(tensors(x))), *tensors(y)).flatten()
    for b in batches:
        l = losses(*b)
        g = (l.sort(descending=True)[0] * reducer.weights(len(l))).sum()
        ds = torch.autograd.grad(g, [*ps.values()], create_graph=True, allow_unused=True)
        ps = {n: p if d is None else p - lr * d for (n, p), d in zip(ps.items(), ds)}
    value = risk(losses(*val))
    return value.detach(), torch.autograd.grad(value, reducer.logits)[0]


def fingerprint(model, data):
    "All that a call must leave alone"
    def copies(named): return {n: t.detach().clone() for n, t in named if t is not None}
    mods = dict(model.named_modules())
    return dict(parameters=copies(model.named_parameters()), buffers=copies(model.named_buffers()),
                grad=copies((n, p.grad) for n, p in model.named_parameters()), mode={n: m.training for n, m in mods.items()},
                identity={n: id(p) for n, p in model.named_parameters()},
                attributes={n: {k: id(v) for k, v in vars(m).items() if k != "training"} for n, m in mods.items()},
                hooks={n: {k: [*v] for k, v in vars(m).items() if "_hooks" in k and v} for n, m in mods.items()},
                inputs=dict(enumerate(copies(enumerate(t for b in data for o in b for t in tensors(o))).values())),
                stream=dict(enumerate(map(repr, streams()[1:]))) | dict(torch=streams()[0]))


def same(a, b):
    if a.keys() != b.keys(): return False
    return all(torch.equal(v, b[n]) if isinstance(v, Tensor) else v == b[n] for n, v in a.items())


def changed(a, b): return [k for k in a if not same(a[k], b[k])]


def by_name(e):
    "Is it an error that the package itself raises, on purpose?"
    *_, last = traceback.walk_tb(e.__traceback__)
    return Path(last[0].f_code.co_filename).is_relative_to(PACKAGE)


def prepare(case, build):
    seed(0)
    model = build()
    if not isinstance(model, torch.jit.ScriptModule): model = model.double()
    model.train(case.train)
    with torch.no_grad():
        for p in model.parameters(): p.add_(case.noise * torch.randn_like(p))
    return model


def compare(case, k):
    "Hypergradient and unroll of `case` after k inner steps"
    gen = torch.Generator().manual_seed(1)
    data = [case.batch(case.n, gen) for _ in range(k)] + [case.batch(case.n_val, gen)]
    model = prepare(case, case.build)
    twin = settled(prepare(case, case.twin or case.build))
    if case.twin: twin.load_state_dict(model.state_dict())
    drawing = draws(twin, data[0])
    seed(2)
    reducer, risk = SortedReducer(case.n).double(), CVaR(.3)
    nn.init.normal_(reducer.logits)
    first = next((p for p in model.parameters() if p.requires_grad), None)
    if first is not None: first.grad = torch.ones_like(first)
    out, start = Outcome(case.name, case.library, sum(p.numel() for p in model.parameters()), k), time.process_time()
    was, got = fingerprint(model, data), None
    try:
        with noting(model, drawing) as seen: got = hypergradient(model, reducer, risk, case.loss, data[:-1], data[-1], case.lr)
    except Exception as e:
        out.verdict, out.message = "refused" if by_name(e) else "crash", f"{type(e).__name__}: {e}"
    out.touched = changed(was, fingerprint(model, data))
    if got:
        with plain_kernels(): want = unroll(twin, reducer, case.loss, data[:-1], data[-1], case.lr, risk, seen)
        out.error = max(((a - b).norm() / b.norm()).item() for a, b in zip(got, want))
        out.verdict = "equal" if out.error <= case.eps and 1e-9 < want[1].norm() < 1e9 else "wrong"
    if out.touched: out.verdict = "wrong"
    out.expected = out.verdict == "equal" or out.verdict == "refused" and bool(case.refused and re.search(case.refused, out.message))
    out.seconds = time.process_time() - start
    return out
