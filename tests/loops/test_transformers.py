"The `Trainer` that learns weights, with the real transformers: what a plain loop learns, whatever the `Trainer` does around it"
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from digits import BS, N, accuracy, arrays, furthest, net, plain_loop, sets, sgd
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from metarisk_nb.loop import LearnedWeights
from metarisk_nb.validation import ValidationStream

transformers = pytest.importorskip("transformers", reason="pip install 'metarisk_nb[transformers]'")
from hugging import Counting, Dicts, Ignoring, Model, trainer  # noqa: E402
from transformers import Trainer  # noqa: E402


def test_it_learns_what_the_plain_loop_learns(tmp_path):
    t = trainer(tmp_path)
    t.train()
    model, weights = plain_loop(torch.stack(t.order), valid_seed=5, own=True)
    assert weights.harmful > .3 and accuracy(t.model.net) > .85
    torch.testing.assert_close(t.meta_risk.weights, weights.weights, atol=1e-6, rtol=0)
    assert furthest(t.model.net, model) < 1e-6
    assert t.label_report().equals(weights.label_report())
    x, given, clean = arrays()
    assert (given != clean)[t.label_report(200)["index"].tolist()].float().mean() > .9


@pytest.mark.parametrize("model", [Model, Counting])
@pytest.mark.parametrize("parts", [1, 3])
def test_uniform_weights_leave_training_as_it_is_to_the_last_bit(tmp_path, model, parts):
    kwargs = dict(epochs=3, bs=50, gradient_accumulation_steps=parts)
    one, two = trainer(tmp_path, model(), **kwargs), trainer(tmp_path, model(), Trainer, **kwargs)
    for t in (one, two): transformers.set_seed(5), t.train()
    assert one.meta_risk.curriculum.uniform and one.meta_risk.witness.looks == {1: 3, 3: 2}[parts] and furthest(one.model, two.model) == 0
    assert one.state.log_history[-1]["train_loss"] == two.state.log_history[-1]["train_loss"]


class Large(Model):
    "A model that has memory for the gradients of 50 samples"
    def forward(self, pixel_values, labels=None):
        if len(pixel_values) > 50 and torch.is_grad_enabled(): raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().forward(pixel_values, labels)


def test_where_memory_does_not_suffice_it_begins_again_with_smaller_batches(tmp_path):
    t = trainer(tmp_path, Large(), epochs=15, auto_find_batch_size=True, dataloader_drop_last=True, opt=None)
    t.train()
    bs = t._train_batch_size
    assert 25 < bs <= 50 and t.meta_risk.curriculum.reducer.n == bs and t.meta_risk.step == t.state.global_step - 1
    assert t.label_report()["seen"].max() == 15


def groups(order, sizes, divides=True):
    "The loop by hand: each group of parts is one optimizer step, divided by the number of its samples where the model does that"
    (train, valid), model = sets(), net()
    opt = sgd(model)
    stream = ValidationStream(DataLoader(valid, BS), lambda b: ((b[0],), b[1]), seed=5)
    weights, batches = LearnedWeights(model, stream, N, optimizer=opt), iter(order)
    for n in sizes:
        for ids in [next(batches) for _ in range(n)]:
            weights.listen()
            pred, y = model(train.tensors[0][ids]), train.tensors[1][ids]
            parts = n if divides else 1
            weights(pred, y, ids, cross_entropy(pred, y, reduction="sum") / (parts * len(ids)), 1 / parts).backward()
        opt.step()
        opt.zero_grad()
        weights.stepped()
    return model, weights


@pytest.mark.parametrize("model", [Model, Counting, Ignoring])
def test_accumulated_gradients_keep_the_trainers_normaliser_in_a_last_partial_group_too(tmp_path, model):
    "With three parts of 50, the last two of the twenty batches of a pass are a group"
    t = trainer(tmp_path, model(), epochs=20, bs=50, gradient_accumulation_steps=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "LearnedWeights")
        t.train()
    assert t.state.global_step == 20 * 7
    by_hand, weights = groups(torch.stack(t.order), ([3] * 6 + [2]) * 20, divides=model is not Ignoring)
    assert not weights.curriculum.uniform
    torch.testing.assert_close(t.meta_risk.weights, weights.weights, atol=1e-6, rtol=0)
    assert furthest(t.model.net, by_hand) < 1e-5


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path):
    kwargs = dict(epochs=24, save_strategy="steps", save_steps=125, save_total_limit=2)
    one = trainer(tmp_path, **kwargs)
    one.train()
    two = trainer(tmp_path, **kwargs)
    two.train(resume_from_checkpoint=str(tmp_path / "checkpoint-125"))
    assert not one.meta_risk.curriculum.uniform and two.meta_risk.witness.looks == one.meta_risk.witness.looks
    assert torch.equal(one.meta_risk.weights, two.meta_risk.weights) and furthest(one.model, two.model) == 0
    state = torch.load(tmp_path / "checkpoint-125/meta_risk.pt", weights_only=True)
    assert state["step"] == 124 and not list((tmp_path / "checkpoint-125").glob("*.tmp*"))


def test_a_saved_model_needs_no_package(tmp_path):
    t = trainer(tmp_path, epochs=1)
    t.train()
    t.save_model(tmp_path / "saved")
    assert furthest(Model.from_pretrained(tmp_path / "saved"), t.model) == 0
    assert {p.name for p in (tmp_path / "saved").iterdir()} <= {"config.json", "model.safetensors", "training_args.bin"}
    code = f"""
import sys
sys.modules['metarisk_nb'] = None  # nobody can import it
from safetensors.torch import load_file
import torch; torch.load({str(tmp_path / 'saved/training_args.bin')!r}, weights_only=False)
print(len(load_file({str(tmp_path / 'saved/model.safetensors')!r})))
"""
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert r.returncode == 0 and int(r.stdout) == len(t.model.state_dict()), r.stderr[-2000:]


def test_training_again_begins_anew_as_a_search_over_settings_needs_it(tmp_path):
    kwargs = dict(epochs=20, opt=None, learning_rate=.01, optim="adamw_torch", lr_scheduler_type="constant")
    t = trainer(tmp_path, **kwargs)
    t.model_init, t.model = (lambda trial=None: Model()), None
    first, reports = [], []
    for _ in range(2):
        t.train()
        first.append(t.meta_risk)
        reports.append(t.meta_risk.weights)
    assert first[0] is not first[1] and not first[0].curriculum.uniform
    assert first[1].network.model is t.model and first[0].network.model is not t.model
    assert torch.equal(*reports), "the second trial knows nothing of the first"


def test_evaluation_is_the_trainers_own(tmp_path):
    t = trainer(tmp_path, epochs=20)
    t.train()
    before = t.meta_risk.weights
    got = t.evaluate()["eval_loss"]
    x, given, _ = arrays()
    with torch.no_grad(): want = cross_entropy(t.model.eval().net(x[N:1200]), given[N:1200]).item()
    assert abs(got - want) < 1e-5 and torch.equal(t.meta_risk.weights, before)
    assert t.predict(t.eval_dataset).predictions.shape == (200, 10)


def test_mixed_precision(tmp_path):
    t = trainer(tmp_path, bf16=True)
    t.train()
    assert accuracy(t.model.net) > .85 and t.meta_risk.harmful > .3


def test_what_was_learned_is_logged(tmp_path):
    t = trainer(tmp_path, logging_strategy="steps", logging_steps=100)
    t.train()
    rows = [o for o in t.state.log_history if "loss" in o]
    assert len(rows) == 3 and rows[0]["meta_risk/harmful"] <= rows[-1]["meta_risk/harmful"] and rows[-1]["meta_risk/worst_quarter"] < .1
    assert all("meta_risk/looks" in o for o in rows) and "meta_risk/harmful" not in t.state.log_history[-1]
    assert json.dumps(rows)


def test_label_smoothing_is_the_trainers(tmp_path):
    "Its own loss is smoothed, and so are the losses per sample"
    t = trainer(tmp_path, epochs=20, label_smoothing_factor=.2)
    t.train()
    pred, y = torch.randn(8, 10), torch.randint(10, (8,))
    want = t.label_smoother(dict(logits=pred), y)
    torch.testing.assert_close(t.meta_risk.loss_func(pred, y).mean(), want)
    assert not t.meta_risk.curriculum.uniform


def test_texts_of_several_lengths_and_a_tiny_bert(tmp_path):
    "A collator that pads, columns that the model does not know, and steps in which no sample number is lost"
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3)
    g = torch.Generator().manual_seed(0)
    rows = [dict(input_ids=torch.randint(2, 50, (int(torch.randint(3, 9, (), generator=g)),), generator=g).tolist(), label=i % 3, note="x") for i in range(120)]
    def pad(items):
        n = max(len(o["input_ids"]) for o in items)
        batch = {k: torch.tensor([o[k] for o in items]) for k in items[0] if k != "input_ids"}
        batch["labels"] = batch.pop("label")
        return batch | dict(input_ids=torch.tensor([o["input_ids"] + [0] * (n - len(o["input_ids"])) for o in items]))
    args = transformers.TrainingArguments(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=16, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
    from metarisk_nb.transformers import MetaRiskTrainer
    t = MetaRiskTrainer(transformers.BertForSequenceClassification(config), args, train_dataset=rows[:100], eval_dataset=rows[100:], data_collator=pad)
    t.train()
    report = t.label_report()
    assert len(report) == 100 and report["seen"].eq(2).all() and sorted(report["index"]) == [*range(100)]
    batch = pad([{k: v for k, v in o.items() if k != "note"} for o in rows[:4]])
    one, other = (t.model.eval()(**batch, **o).loss for o in ({}, dict(num_items_in_batch=400)))
    assert t.model_accepts_loss_kwargs and one == other, "the reason why the factor of a loss is found out"


class Penalised(Model):
    "Its loss has another term, and so a parameter that only this term trains"
    def __init__(self, config=None):
        super().__init__(config)
        self.extra = torch.nn.Parameter(torch.ones(5))
    def forward(self, pixel_values, labels=None):
        out = super().forward(pixel_values, labels)
        if labels is not None: out.loss = out.loss + self.extra.pow(2).sum()
        return out


def test_another_term_of_the_loss_keeps_its_gradient(tmp_path):
    t = trainer(tmp_path, Penalised(), epochs=12)
    with pytest.warns(UserWarning, match="not the mean of loss_func"): t.train()
    assert not t.meta_risk.curriculum.uniform and t.model.extra.abs().max() < 1e-3, "after 120 steps it has shrunk to nothing"


def test_small_parts_are_heard_together(tmp_path):
    "A model with batch norm needs two samples at least"
    t = trainer(tmp_path, epochs=12, bs=4, gradient_accumulation_steps=25)
    t.train()
    assert len(t.meta_risk.weights) == 16 and t.meta_risk.harmful > .2


class Tuples(Dicts):
    def __getitem__(self, i): return self.dataset[i]


def test_samples_that_are_no_dicts_and_a_stream(tmp_path):
    def collate(items): return dict(zip(("pixel_values", "labels"), torch.utils.data.default_collate(items)))
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(Dicts(sets()[0])[i] for i in range(N))
    t = trainer(tmp_path, epochs=1, more=dict(data_collator=collate))
    t.train_dataset, t.eval_dataset = Tuples(sets()[0]), Tuples(sets()[1])
    t.order = None
    type(t).compute_loss(t, t.model.eval(), dict(pixel_values=torch.randn(2, 64), labels=torch.tensor([0, 1])))
    from metarisk_nb.transformers import MetaRiskTrainer
    t.__class__ = MetaRiskTrainer
    t.train()
    assert t.meta_risk.step == 9
    with pytest.raises(ValueError, match="ids"): t.label_report()
    s = trainer(tmp_path, kind=MetaRiskTrainer, max_steps=12)
    s.train_dataset = Stream()
    s.train()
    assert s.meta_risk.step == 11 and s.meta_risk.n_items == 12 * BS


@pytest.mark.parametrize("evaluated", ["before", "after"])
def test_kept_workers_read_the_data_set_that_they_are_meant_for(tmp_path, evaluated):
    "The `Trainer` keeps the loader for evaluation together with its workers"
    t = trainer(tmp_path, epochs=1, dataloader_num_workers=1, dataloader_persistent_workers=True)
    t.valid_dataset, t.eval_dataset = t.eval_dataset, Dicts(torch.utils.data.Subset(sets()[1], range(40)))
    scored = [t.evaluate()] if evaluated == "before" else []
    t.train()
    assert len(t.meta_risk.witness.valid.dl.dataset) == 200 and len(t.get_eval_dataloader().dataset) == 40
    assert len(scored) == (evaluated == "before")


def test_a_model_whose_labels_have_another_name(tmp_path):
    class Named(Model):
        def forward(self, pixel_values, target=None): return super().forward(pixel_values, target)
    class Targets(Dicts):
        def __getitem__(self, i): return {k.replace("labels", "target"): v for k, v in super().__getitem__(i).items()}
    def named(**kwargs):
        t = trainer(tmp_path, Named(), epochs=2, **kwargs)
        t.train_dataset, t.eval_dataset = map(Targets, sets())
        return t
    with pytest.raises(ValueError, match="label_names="): named().train()
    with pytest.raises(ValueError, match="no labels, only pixel_values"): named(label_names=["labels"]).train()
    (t := named(label_names=["target"])).train()
    assert t.label_report()["seen"].eq(2).all()


def test_a_model_that_gives_tuples(tmp_path):
    class Bare(Model):
        def forward(self, pixel_values, labels=None): return super().forward(pixel_values, labels).to_tuple()
    t = trainer(tmp_path, Bare(), epochs=3)
    t.train()
    assert t.meta_risk.witness.looks == 2


def test_an_overridden_loss_is_noticed(tmp_path):
    from metarisk_nb.transformers import MetaRiskTrainer
    class Own(MetaRiskTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            inputs = {k: v for k, v in inputs.items() if k != "sample_number"}
            out = model(**inputs)
            return (out.loss, out) if return_outputs else out.loss
    with pytest.warns(UserWarning, match="nothing was learned"): trainer(tmp_path, kind=Own, epochs=1).train()


@pytest.mark.parametrize("valid", [False, dict(a=1)])
def test_without_one_validation_data_set_nothing_begins(tmp_path, valid):
    t = trainer(tmp_path, epochs=1, valid=False)
    if valid: t.eval_dataset = dict(a=Dicts(sets()[1]))
    with pytest.raises(ValueError, match="valid_dataset"): t.train()


def test_a_loss_of_ones_own_needs_one_loss_per_sample(tmp_path):
    def own(outputs, labels, num_items_in_batch=None): return cross_entropy(outputs["logits"], labels)
    with pytest.raises(ValueError, match="loss_func="): trainer(tmp_path, more=dict(compute_loss_func=own))
    t = trainer(tmp_path, epochs=1, more=dict(compute_loss_func=own, loss_func=lambda z, y: cross_entropy(z, y, reduction="none")))
    t.train()
    assert t.meta_risk.step == 9


def test_two_processes_learn_the_same_weights(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = dict(os.environ, OMP_NUM_THREADS="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    worker = Path(__file__).with_name("two_transformers.py")
    procs = [subprocess.Popen([sys.executable, worker, tmp_path], env=dict(env, RANK=str(i), LOCAL_RANK=str(i)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for i in range(2)]
    said = [p.communicate(timeout=300)[0] for p in procs]
    assert not any(p.returncode for p in procs), said[0][-2000:] + said[1][-2000:]
    a, b = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    assert torch.equal(a["weights"], b["weights"]) and len(a["weights"]) == 100 and a["weights"][:20].sum() < .1 and a["accuracy"] > .85
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"] if "running" not in k and "num_batches" not in k)
