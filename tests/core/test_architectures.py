"Exact hypergradients against a full unroll, architecture by architecture: equal, or refused by name"
import pytest
import torch
import unrolled
from architectures import SLOW, cases
from unrolled import compare


def title(c): return f"{c.library}: {c.name}"


CASES = [pytest.param(c, id=title(c), marks=[pytest.mark.slow] if title(c) in SLOW else []) for c in cases()]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_equal_or_refused_by_name(case, k):
    o = compare(case, k)
    assert o.expected, o


def test_there_are_enough_and_none_twice():
    names = [o.id for o in CASES]
    assert len({*names}) == len(names) and len(names) - len(SLOW) >= 60 and {*SLOW} <= {*names}


def by_hand(name): return next(o.values[0] for o in CASES if o.values[0].name == name)


# The comparison itself must notice what it is there for

@pytest.mark.parametrize("name", ["GRU", "mixture of experts, best two", "normalising flow"])
def test_a_hessian_left_out_is_noticed(name, monkeypatch):
    exact = unrolled.hypergradient
    monkeypatch.setattr(unrolled, "hypergradient", lambda *args: exact(*args, method="first_order"))
    assert [compare(by_hand(name), k).verdict for k in (1, 3)] == ["equal", "wrong"]


def moved_buffer(model, *_): next(model.buffers()).add_(1)
def moved_weight(model, *_): next(model.parameters()).data.add_(1e-12)
def other_mode(model, *_): model[0].eval()
def lost_grad(model, *_): next(model.parameters()).grad = None
def new_attribute(model, *_): model.cache = 1
def edited_input(model, reducer, risk, loss, batches, *_): batches[0][0].add_(1e-9)
def moved_stream(*_): torch.rand(())


def new_hook(model, *_): model[0].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("harm,what", [
    (moved_buffer, "buffers"), (moved_weight, "parameters"), (other_mode, "mode"), (lost_grad, "grad"), (new_attribute, "attributes"),
    (edited_input, "inputs"), (moved_stream, "stream"), (new_hook, "hooks")])
def test_what_is_left_behind_is_noticed(harm, what, monkeypatch):
    exact = unrolled.hypergradient
    def careless(*args):
        out = exact(*args)
        with torch.no_grad(): harm(*args)
        return out
    monkeypatch.setattr(unrolled, "hypergradient", careless)
    o = compare(by_hand("batch norm, momentum None"), 1)
    assert o.verdict == "wrong" and o.touched == [what] and not o.expected


def test_an_error_of_torch_is_no_refusal(monkeypatch):
    def crash(*args): return torch.zeros(2) @ torch.zeros(3)
    monkeypatch.setattr(unrolled, "hypergradient", crash)
    assert compare(by_hand("GRU"), 1).verdict == "crash"
