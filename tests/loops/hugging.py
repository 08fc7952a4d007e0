"Digits as Hugging Face has them: samples are dicts, and the model gives a loss and logits"
import warnings

import torch
import transformers
from digits import BS, net, sets, sgd
from torch import nn
from torch.utils.data import Dataset
from transformers.modeling_outputs import SequenceClassifierOutput

from metarisk_nb.transformers import MetaRiskTrainer

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Config(transformers.PretrainedConfig):
    model_type = "digits"


class Model(transformers.PreTrainedModel):
    config_class = Config
    def __init__(self, config=None):
        super().__init__(config or Config())
        self.net = net()
        self.post_init()
    def _init_weights(self, module): "Keep torch's"
    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return SequenceClassifierOutput(loss=None if labels is None else nn.functional.cross_entropy(logits, labels), logits=logits)


class Counting(Model):
    "A model that divides by the number of samples that it is told, as newer ones do"
    def forward(self, pixel_values, labels=None, num_items_in_batch=None, **kwargs):
        logits = self.net(pixel_values)
        l = nn.functional.cross_entropy(logits, labels, reduction="sum") if labels is not None else None
        loss = None if l is None else l / (len(logits) if num_items_in_batch is None else num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Ignoring(Model):
    "A model that takes the number and ignores it, as BERT for sequences does"
    def forward(self, pixel_values, labels=None, **kwargs): return super().forward(pixel_values, labels)


class Dicts(Dataset):
    "Samples as dicts"
    def __init__(self, dataset): self.dataset = dataset
    def __len__(self): return len(self.dataset)
    def __getitem__(self, i):
        x, y = self.dataset[i]
        return dict(pixel_values=x, labels=y)


class Noting(MetaRiskTrainer):
    "It notes the samples of each training batch"
    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training: self.order = [*getattr(self, "order", []), inputs["sample_number"]]
        return super().compute_loss(model, inputs, *args, **kwargs)


def trainer(out, model=None, kind=Noting, epochs=30, bs=BS, valid=True, opt=sgd, more=(), **kwargs):
    "A trainer for digits whose rate is constant; `more` are its further arguments"
    train, val = map(Dicts, sets())
    model = model or Model()
    args = transformers.TrainingArguments(str(out), num_train_epochs=epochs, per_device_train_batch_size=bs, per_device_eval_batch_size=BS, report_to=[], seed=5,
                                          **dict(save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no", max_grad_norm=0) | kwargs)
    opts = dict(optimizers=(o := opt(model), torch.optim.lr_scheduler.ConstantLR(o, 1.))) if opt else {}
    return kind(model, args, train_dataset=train, eval_dataset=val if valid else None, **opts, **dict(more))
