"""The architectures on which the exact hypergradient is compared with a full unroll: `python tests/core/architectures.py` runs them all

Small configurations with random weights, in double precision, on one thread; nothing is downloaded."""
import argparse
import importlib.metadata
import json
import os
import random
import sys
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import handwritten as hw
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from unrolled import Case, Outcome, ce, compare

from metarisk_nb.files import replacing

# What a batch looks like: (n, generator) -> (x, y)

def labels(n, gen): return torch.randint(0, 3, (n,), generator=gen)
def normal(n, *shape, gen): return torch.randn(n, *shape, generator=gen, dtype=torch.float64)
def ids(n, gen): return torch.randint(1, 20, (n, 6), generator=gen)


def rows(n, gen): return normal(n, 6, gen=gen), labels(n, gen)
def texts(n, gen): return ids(n, gen), labels(n, gen)
def sentences(n, gen): return ids(n, gen), ids(n, gen)
def translations(n, gen): return (ids(n, gen), torch.ones(n, 6, dtype=torch.long), ids(n, gen)), ids(n, gen)
def waves(n, gen): return normal(n, 200, gen=gen), labels(n, gen)
def speech(n, gen): return (normal(n, 8, 32, gen=gen), torch.ones(n, 32, dtype=torch.long), ids(n, gen)), ids(n, gen)
def images(size): return lambda n, gen: (normal(n, 3, size, size, gen=gen), labels(n, gen))
def clips(n, gen): return normal(n, 3, 4, 16, 16, gen=gen), labels(n, gen)
def maps(size, to=None): return lambda n, gen: (normal(n, 3, size, size, gen=gen), torch.randint(0, 3, (n, *[to or size] * 2), generator=gen))
def table(n, gen): return (torch.randint(0, 4, (n, 2), generator=gen), normal(n, 3, gen=gen)), labels(n, gen)
def values(n, gen): return normal(n, 6, gen=gen), normal(n, 6, gen=gen)


# What a loss looks like: (pred, *y) -> one loss per sample (per pixel)

def logits(o, y): return ce(o.logits, y)
def language(o, y): return ce(getattr(o, "logits", o).flatten(0, 1), y.flatten()).view(y.shape).mean(1)
def segments(o, y): return ce(o["out"], y)
def image(o, y): return ce(o.logits, y).mean((1, 2))  # single pixels can have the same loss, and then no order
def first(o, y): return ce(o[0], y)
def with_heads(o, y): return ce(o.logits, y) + .3 * ce(o.aux_logits2, y) + .3 * ce(o.aux_logits1, y)
def answer(o, y): return o
def evidence(o, y): return (o[0] - y).square().sum(1) + o[1]


def focal(pred, y):
    l = ce(pred, y)
    with torch.no_grad(): w = (1 - (-l).exp())**2
    return w * l


def narrow(build, by=8):
    "`build` with the channels of all its layers divided"
    def thin(n): return n // by if n >= by and n > 3 else n
    def width(cls, at):
        init = cls.__init__
        def new(self, *args, **kwargs):
            widths = "in_channels", "out_channels", "num_features", "in_features", "out_features", "groups"
            args = [thin(a) if i < at else a for i, a in enumerate(args)]
            init(self, *args, **{k: thin(v) if k in widths else v for k, v in kwargs.items()})
        return patch.object(cls, "__init__", new)
    def made():
        with ExitStack() as stack:
            for cls, at in (nn.Conv2d, 2), (nn.Conv3d, 2), (nn.BatchNorm2d, 1), (nn.BatchNorm3d, 1), (nn.Linear, 2): stack.enter_context(width(cls, at))
            return build()
    return made


# torchvision

def torchvision_cases():
    import torchvision.models as tv
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
    from torchvision.models.regnet import BlockParams
    from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50, lraspp_mobilenet_v3_large
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
    from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18
    def small(name, build, batch=images(32), *args, **kwargs): return Case(name, build, batch, *args, library="torchvision", **kwargs)
    def named(f, batch=images(32), *args, by=8, case=(), **kwargs):
        return small(f.__name__, narrow(lambda: f(weights=None, num_classes=3, **kwargs), by), batch, *args, **dict(case))
    def dense(saves): return tv.DenseNet(8, (2, 2, 2), 16, bn_size=2, drop_rate=.1, num_classes=3, memory_efficient=saves)
    def efficient(*blocks): return partial(tv.EfficientNet, blocks, .2, num_classes=3, last_channel=64)
    def regnet(se): return partial(tv.RegNet, BlockParams.from_init_params(4, 8, 8, 2, 4, se_ratio=se), 3, stem_width=8)
    swin = partial(SwinTransformer, [2, 2], 8, [2, 2], [1, 2], [4, 4], num_classes=3)
    twice = dict(refused="hardsigmoid")  # autograd can differentiate it once
    return [
        named(tv.alexnet, images(64), by=16), named(tv.vgg11, by=16), named(tv.vgg11_bn, by=16), named(tv.resnet18),
        named(tv.resnet50, images(48), zero_init_residual=True), named(tv.resnext50_32x4d, images(64), case=dict(lr=.01)),
        named(tv.wide_resnet50_2, images(64), by=16, case=dict(lr=.01)),
        small("densenet", partial(dense, False)), small("densenet, memory_efficient", partial(dense, True), twin=partial(dense, False)),
        named(tv.googlenet, images(64), with_heads, aux_logits=True, init_weights=False),
        named(tv.inception_v3, images(75), by=16, aux_logits=False, init_weights=False), named(tv.squeezenet1_1, images(48)),
        small("mobilenet_v2", partial(tv.mobilenet_v2, num_classes=3, width_mult=.25), images(64), lr=.01),
        small("mobilenet_v3_small", partial(tv.mobilenet_v3_small, num_classes=3, width_mult=.25), images(64), lr=.01, **twice),
        small("efficientnet", efficient(MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(6, 3, 2, 8, 16, 2), MBConvConfig(6, 5, 2, 16, 24, 2))),
        small("efficientnet_v2", efficient(FusedMBConvConfig(1, 3, 1, 8, 8, 2), FusedMBConvConfig(4, 3, 2, 8, 16, 2), MBConvConfig(4, 3, 2, 16, 24, 2))),
        small("regnet_x", regnet(None)), small("regnet_y", regnet(.25)), small("shufflenet_v2", partial(tv.ShuffleNetV2, [2, 2, 2], [8, 16, 24, 32, 32], 3), images(64)),
        small("mnasnet", partial(tv.MNASNet, .25, 3), images(64), lr=.01),
        small("convnext", partial(tv.ConvNeXt, [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)], .2, num_classes=3)),
        small("vit", partial(tv.VisionTransformer, 16, 4, 2, 2, 16, 32, .1, num_classes=3), images(16)),
        small("swin", swin, images(16)), small("swin_v2", partial(swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), images(16)),
        small("maxvit", partial(tv.MaxVit, (32, 32), 8, 2, [8, 16], [1, 1], 8, .1, num_classes=3)),
        named(fcn_resnet50, maps(32), segments, by=16, weights_backbone=None),
        named(deeplabv3_resnet50, maps(64), segments, by=16, weights_backbone=None, case=dict(lr=.01)),
        named(lraspp_mobilenet_v3_large, maps(64), segments, weights_backbone=None, case=dict(lr=.01, **twice)),
        named(r3d_18, clips), named(mc3_18, clips), named(r2plus1d_18, clips)]


# timm

def timm_cases():
    import timm
    from timm import models as tm
    from timm.models import metaformer as mf
    def named(name, size=32, by=1, lr=.1, refused=None, **kwargs):
        build = partial(timm.create_model, name, num_classes=3, **kwargs)
        return Case(name, narrow(build, by) if by > 1 else build, images(size), library="timm", lr=lr, refused=refused)
    def made(name, cls, size=32, lr=.1, refused=None, **kwargs):
        return Case(name, partial(cls, num_classes=3, **kwargs), images(size), library="timm", lr=lr, refused=refused)
    vit = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    swin = dict(img_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
    mixer = dict(img_size=32, patch_size=8, num_blocks=2, embed_dim=16)
    four = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
    tests = "byobnet convnext convnext2 convnext3 efficientnet efficientnet_evos efficientnet_gn efficientnet_ln mambaout nfnet resnet".split()
    return [
        *[named(f"test_{n}") for n in tests], *[named(f"test_{n}", img_size=32) for n in ("vit", "vit2", "vit4", "vit_relpos")],
        named("test_coatnet", 64, img_size=64), named("nfnet_f0", by=16), named("nf_resnet50", by=8), named("resnetv2_50", 64, by=8, lr=.01),
        made("resnetv2 (group norm, standardised weights)", tm.ResNetV2, layers=(1, 1, 1), channels=(32, 32, 64), stem_chs=32,
             conv_layer=timm.layers.StdConv2d, norm_layer=partial(timm.layers.GroupNormAct, num_groups=8)),
        made("convnextv2", tm.ConvNeXt, use_grn=True, ls_init_value=None, **four),
        made("caformer", tm.MetaFormer, token_mixers=[mf.SepConv] * 2 + [mf.Attention] * 2,
             norm_layers=[mf.LayerNorm2dNoBias] * 2 + [mf.LayerNormNoBias] * 2, **{**four, "dims": (8, 16, 32, 32)}),
        made("poolformer", tm.MetaFormer, token_mixers=mf.Pooling, **four),
        made("mlp-mixer", tm.MlpMixer, **mixer), made("resmlp", tm.MlpMixer, block_layer=tm.mlp_mixer.ResBlock, mlp_ratio=4, **mixer), made("convmixer", tm.ConvMixer, dim=16, depth=2, patch_size=4),
        named("vit_tiny_patch16_224", drop_path_rate=.2, proj_drop_rate=.1, **vit), named("deit_tiny_distilled_patch16_224", **vit),
        named("beit_base_patch16_224", **vit), named("eva02_tiny_patch14_224", **vit), named("cait_xxs24_224", **vit), named("convit_tiny", **vit),
        named("xcit_nano_12_p16_224", img_size=32, embed_dim=16, depth=2, num_heads=2), named("swin_tiny_patch4_window7_224", drop_path_rate=.2, **swin),
        named("swinv2_tiny_window8_256", **swin), named("swinv2_cr_tiny_224", **swin), named("mobilevit_xxs", 64, lr=.01), named("mobilevitv2_050", 64, lr=.01),
        named("levit_128s", 64, img_size=64, embed_dim=(16, 16, 16), num_heads=(1, 1, 1), depth=(1, 1, 1), key_dim=8),
        named("ghostnet_050", 64, lr=.01, refused="hardsigmoid"), named("dla34", by=8),
        made("res2net", tm.ResNet, block=tm.res2net.Bottle2neck, layers=(1, 1, 1, 1), base_width=26, channels=(16, 16, 32, 32), block_args=dict(scale=4)),
        made("tresnet", tm.TResNet, 64, layers=[1, 1, 1, 1], width_factor=.25), named("repvgg_a0", 64, by=8, lr=.01), named("eca_resnet33ts", by=8), named("seresnet50", by=8),
        named("gernet_s", by=8), named("resnest14d", by=8), named("densenet121", by=8), named("legacy_seresnet18", by=8),
        named("inception_next_tiny", depths=(1, 1), dims=(8, 16)), named("davit_tiny", depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 2)),
        named("edgenext_xx_small", 64, dims=(8, 16, 16, 16), depths=(1, 1, 1, 1)), named("fasternet_t0", embed_dim=8, depths=(1, 1, 1, 1)),
        named("efficientvit_m0", 64, img_size=64, embed_dim=(16, 16, 16), num_heads=(2, 2, 2), key_dim=(8, 8, 8), depth=(1, 1, 1)),
        named("fastvit_t8", 64, layers=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16)), named("hgnet_tiny", by=8), named("selecsls42", by=8),
        named("hiera_tiny_224", img_size=32, embed_dim=8, num_heads=1, stages=(1, 1, 1, 1)), named("pit_ti_224", img_size=32, base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(1, 2, 4)),
        named("sequencer2d_s", layers=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), hidden_sizes=(4, 4, 4, 4)), named("starnet_s1", by=4),
        named("swiftformer_xs", 64, layers=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16)), named("visformer_tiny", img_size=32, embed_dim=16, depth=(1, 1, 1)),
        named("tnt_s_patch16_224", img_size=32, embed_dim=16, inner_dim=8, depth=2, num_heads_outer=2, num_heads_inner=2),
        named("ese_vovnet19b_slim", 64, by=8, lr=.01, refused="hardsigmoid"), named("mobilenetv4_conv_small", 64, by=4, lr=.01)]


# transformers, from configurations

def transformers_cases():
    small = dict(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=16, pad_token_id=0)
    def made(name, config, head, batch=texts, loss=logits, checkpoint=None, refused=None, **kwargs):
        def build(checkpoint=None):
            import transformers as tr
            tr.logging.set_verbosity_error()
            m = getattr(tr, head)(getattr(tr, config)(**kwargs))
            if checkpoint is not None: m.gradient_checkpointing_enable(dict(use_reentrant=checkpoint))
            return m
        twin = dict(twin=build) if checkpoint is not None else {}
        name, refused = name + ("" if checkpoint is None else f", checkpoints, use_reentrant={checkpoint}"), "use_reentrant=False" if checkpoint else refused
        return Case(name, partial(build, checkpoint), batch, loss, library="transformers", refused=refused, **twin)
    def like(name, prefix, kind="ForSequenceClassification", *args, **kwargs):
        return made(name, prefix + "Config", prefix + kind, *args, **{**small, "num_labels": 3, **kwargs})
    def causal(name, prefix, kind="ForCausalLM", **kwargs): return like(name, prefix, kind, sentences, language, **kwargs)
    def vision(name, prefix, **kwargs): return like(name, prefix, "ForImageClassification", images(16), image_size=16, patch_size=4, **kwargs)
    def sound(name, prefix):
        return like(name, prefix, "ForSequenceClassification", waves, conv_dim=[8, 8], conv_stride=[5, 2], conv_kernel=[10, 3], num_feat_extract_layers=2,
                    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8, mask_time_length=2, mask_time_prob=.3, layerdrop=.3)
    few, grouped = dict(num_key_value_heads=1), dict(num_key_value_heads=1, head_dim=8)
    gpt2, t5 = dict(n_embd=16, n_layer=2, n_head=2, n_positions=16), dict(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    towers = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in dict(layers=2, attention_heads=2, ffn_dim=16, layerdrop=.3).items()}
    t5_model = "T5Config", "T5ForConditionalGeneration", translations, language
    return [
        like("bert, sdpa", "Bert", attn_implementation="sdpa"), like("bert, eager", "Bert", attn_implementation="eager"),
        like("bert, no dropout", "Bert", hidden_dropout_prob=0., attention_probs_dropout_prob=0.), like("bert", "Bert", checkpoint=True), like("bert", "Bert", checkpoint=False),
        causal("bert, masked language, tied", "Bert", "ForMaskedLM"), like("roberta", "Roberta"), like("albert", "Albert", embedding_size=8),
        like("electra", "Electra", embedding_size=8), like("mpnet", "MPNet"), like("deberta", "Deberta"),
        like("deberta-v2", "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"]), like("longformer", "Longformer", attention_window=4),
        made("distilbert", "DistilBertConfig", "DistilBertForSequenceClassification", vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3),
        like("modernbert", "ModernBert"), like("modernbert", "ModernBert", checkpoint=False), like("big bird", "BigBird", attention_type="original_full"),
        like("fnet", "FNet"), like("nystromformer", "Nystromformer", num_landmarks=2, segment_means_seq_len=6),
        causal("gpt2", "GPT2", "LMHeadModel", **gpt2), causal("gpt2", "GPT2", "LMHeadModel", checkpoint=True, **gpt2), causal("gpt2", "GPT2", "LMHeadModel", checkpoint=False, **gpt2),
        causal("llama, sdpa", "Llama", attn_implementation="sdpa"), causal("llama, eager", "Llama", attn_implementation="eager"),
        causal("llama", "Llama", checkpoint=True), causal("llama", "Llama", checkpoint=False), causal("mistral", "Mistral", **grouped), causal("qwen2", "Qwen2", **few),
        causal("qwen3", "Qwen3", **grouped), causal("gemma", "Gemma", **grouped), causal("gemma2", "Gemma2", **grouped), causal("phi", "Phi"), causal("olmo", "Olmo"),
        causal("mixtral", "Mixtral", num_local_experts=3, experts_implementation="eager", **grouped), causal("gpt_neox", "GPTNeoX"), causal("granite", "Granite"),
        causal("qwen2_moe", "Qwen2Moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8, experts_implementation="eager", **few),
        causal("bloom", "Bloom", n_layer=2, n_head=2), causal("falcon", "Falcon"), causal("opt, layerdrop", "OPT", ffn_dim=24, word_embed_proj_dim=16, layerdrop=.3),
        causal("mamba", "Mamba", state_size=4), causal("mamba2", "Mamba2", state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=4), causal("rwkv", "Rwkv"),
        causal("recurrent_gemma", "RecurrentGemma", lru_width=16, attention_window_size=4, block_types=["recurrent", "attention"], **few),
        made("t5", *t5_model, **t5), made("t5, gated", *t5_model, checkpoint=False, feed_forward_proj="gated-gelu", **t5),
        made("bart, layerdrop", "BartConfig", "BartForConditionalGeneration", translations, language, vocab_size=20, d_model=16, max_position_embeddings=16, pad_token_id=0, **towers),
        made("whisper", "WhisperConfig", "WhisperForConditionalGeneration", speech, language, vocab_size=20, num_mel_bins=8, d_model=16, max_source_positions=16,
             max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **towers),
        vision("vit", "ViT"), vision("vit", "ViT", checkpoint=False), vision("deit", "DeiT"), vision("dinov2", "Dinov2"), vision("beit", "Beit"),
        made("swin", "SwinConfig", "SwinForImageClassification", images(16), image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, num_labels=3),
        made("convnext", "ConvNextConfig", "ConvNextForImageClassification", images(32), depths=[1, 1], hidden_sizes=[8, 16], num_stages=2, num_labels=3),
        made("segformer", "SegformerConfig", "SegformerForSemanticSegmentation", maps(32, 8), image, hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4,
             decoder_hidden_size=8, num_labels=3), sound("wav2vec2", "Wav2Vec2"), sound("hubert", "Hubert")]


# fastai

def fastai_cases():
    from fastai.layers import ConvLayer, Flatten, MergeLayer, PixelShuffle_ICNR, SelfAttention, SequentialEx
    from fastai.tabular.model import TabularModel
    from fastai.text.models.awdlstm import AWD_LSTM
    from fastai.text.models.core import get_text_classifier
    from fastai.vision.models.xresnet import ResBlock, XResNet
    def small(name, build, batch, *args, **kwargs): return Case(name, build, batch, *args, library="fastai", **kwargs)
    lstm = dict(emb_sz=8, n_hid=8, n_layers=2, pad_token=1, bidir=False, output_p=.4, hidden_p=.3, input_p=.4, embed_p=.05, weight_p=.5)
    return [
        small("xresnet", narrow(partial(XResNet, ResBlock, 1, [1, 1, 1, 1], n_out=3)), images(32)),
        small("ConvLayer, Flatten", lambda: nn.Sequential(ConvLayer(3, 8, stride=2), Flatten(), nn.Linear(128, 3)), images(8)),
        small("SequentialEx, MergeLayer, SelfAttention", lambda: nn.Sequential(SequentialEx(ConvLayer(3, 8), ConvLayer(8, 3), MergeLayer()),
              ConvLayer(3, 8), SelfAttention(8), PixelShuffle_ICNR(8, 2), Flatten(), nn.Linear(512, 3)), images(8)),
        small("DynamicUnet", dynamic_unet, maps(32)),
        small("TabularModel", partial(TabularModel, [(4, 3), (4, 2)], 3, 3, [8, 8], ps=[.1, .1], embed_p=.1), table),
        small("AWD_LSTM classifier", partial(get_text_classifier, AWD_LSTM, 20, 3, seq_len=6, config=lstm, drop_mult=.5, max_len=12), texts, first)]


def dynamic_unet():
    "fastai's U-Net, whose blocks read what hooks have stored"
    from fastai.vision.models.unet import DynamicUnet
    body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()))
    return DynamicUnet(body, 3, (32, 32))


# By hand

def handwritten_cases():
    call, rnn = hw.Call, dict(batch_first=True)
    def on(f, **parts): return lambda: call(f, **{k: p() for k, p in parts.items()})
    def small(name, build, batch=rows, *args, **kwargs): return Case(name, build, batch, *args, **kwargs)
    def picture(name, build, *args, **kwargs): return Case(name, build, images(8), *args, **kwargs)
    conv, lin = partial(nn.Conv2d, 3, 8, 3, bias=False), partial(nn.Linear, 8, 3)
    def net(*mid, **kwargs):
        def build():
            m = hw.net(*[o() for o in mid], **kwargs)
            m(torch.zeros(2, 3, 8, 8))
            return m
        return build
    def mlp(*mid): return lambda: hw.mlp(*[o() for o in mid])
    def old_weight_norm():
        m = mlp()()
        nn.utils.weight_norm(m[0])
        m[0].weight = m[0].weight.detach()
        return m
    def wrapped(f): return lambda: nn.Sequential(f(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))
    once = "method='finite_difference'"
    return [
        small("MAML layer", lambda: hw.FastWeights(nn.Linear(6, 8), nn.Linear(8, 3))),
        picture("MAML layer, convolutions", lambda: hw.FastWeights(nn.Conv2d(3, 8, 3, bias=False), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)))),
        small("test-time training layer", hw.TestTimeTraining), small("gradient penalty", lambda: hw.InputGradient(hw.mlp())),
        picture("gradient penalty, convolutions and group norm", lambda: hw.InputGradient(net(partial(nn.GroupNorm, 2, 8))())),
        picture("gradient penalty, convolutions and batch norm", lambda: hw.InputGradient(net(partial(nn.BatchNorm2d, 8))()), refused=once),  # torch has two derivatives
        small("tied embeddings", hw.Tied, sentences, language), small("Embedding(max_norm)", partial(hw.Tied, max_norm=.5), sentences, language),
        small("weight_norm", wrapped(parametrizations.weight_norm)), small("weight_norm, by a hook", old_weight_norm),
        small("spectral_norm", wrapped(parametrizations.spectral_norm)), small("spectral_norm, by a hook", wrapped(nn.utils.spectral_norm)),
        small("orthogonal", wrapped(partial(parametrizations.orthogonal, orthogonal_map="cayley"))), small("pruned", wrapped(partial(prune.random_unstructured, name="weight", amount=.5))),
        small("LSTM", lambda: hw.Steps(nn.LSTM(2, 8, 2, dropout=.2, **rnn), 8)), small("LSTM, both ways, projected", lambda: hw.Steps(nn.LSTM(2, 8, bidirectional=True, proj_size=4, **rnn), 8)),
        small("GRU", lambda: hw.Steps(nn.GRU(2, 8, **rnn), 8)), small("RNN", lambda: hw.Steps(nn.RNN(2, 8, nonlinearity="relu", **rnn), 8)),
        small("GRU, packed", on(hw.packed, layer=lambda: nn.GRU(2, 8, **rnn), out=lin)), small("a hidden state that goes on", hw.Stateful),
        small("TransformerEncoder", lambda: hw.Steps(hw.encoder(), 8, 8)), small("TransformerEncoder, norm first", lambda: hw.Steps(hw.encoder(norm_first=True, activation="gelu"), 8, 8)),
        small("TransformerEncoder, evaluation mode", lambda: hw.Steps(hw.encoder(), 8, 8), train=False),
        small("TransformerEncoder, padded", on(hw.padded, first=lambda: nn.Linear(2, 8), layer=hw.encoder, out=lin)),
        small("TransformerEncoder, padded, evaluation mode", on(hw.padded, first=lambda: nn.Linear(2, 8), layer=hw.encoder, out=lin), train=False),
        small("layer drop by random", lambda: hw.dropped(lambda m: random.random())), small("layer drop by numpy", lambda: hw.dropped(lambda m: np.random.rand())),
        small("layer drop by torch", lambda: hw.dropped(lambda m: torch.rand(()))), small("mixup in the model, by numpy", on(hw.mixed_up, body=hw.mlp)),
        small("two streams", on(hw.drawn, body=hw.mlp)), small("its own torch.Generator", lambda: hw.owned(torch.Generator(), lambda g: torch.rand((), generator=g))),
        small("its own numpy Generator", lambda: hw.owned(np.random.default_rng(0), lambda g: g.random())), small("its own random.Random", lambda: hw.owned(random.Random(0), lambda g: g.random())),
        small("Dropout, AlphaDropout", mlp(nn.Dropout, partial(nn.AlphaDropout, .2))), picture("Dropout2d", net(partial(nn.Dropout2d, .3))), small("RReLU", mlp(nn.RReLU)),
        picture("Dropout after a convolution", net(nn.Dropout)), small("running statistics, momentum None", mlp(partial(nn.BatchNorm1d, 8, momentum=None))),
        picture("batch norm, momentum None", net(partial(nn.BatchNorm2d, 8, momentum=None))), picture("batch norm, evaluation mode", net(partial(nn.BatchNorm2d, 8)), train=False),
        picture("batch norm without weights", net(partial(nn.BatchNorm2d, 8, affine=False))), picture("GroupNorm", net(partial(nn.GroupNorm, 2, 8))),
        picture("InstanceNorm", net(partial(nn.InstanceNorm2d, 8, affine=True, track_running_stats=True))), picture("LocalResponseNorm", net(partial(nn.LocalResponseNorm, 3))),
        picture("convolutions: grouped, dilated, reflected, transposed", net(partial(nn.Conv2d, 8, 8, 3, padding="same", groups=4, bias=False), partial(nn.Conv2d, 8, 8, 3, 1, 2, 2),
                partial(nn.Conv2d, 8, 8, 3, 1, 1, padding_mode="reflect"), partial(nn.ConvTranspose2d, 8, 8, 3, 1, 1, groups=2))),
        picture("pooling", net(partial(nn.MaxPool2d, 2, 1), partial(nn.AvgPool2d, 2, 1), partial(nn.LPPool2d, 2, 2, 1), out=nn.AdaptiveMaxPool2d(1))),
        picture("an unbatched call", on(hw.unbatched, conv=conv, out=lin)), picture("conv2d with plain ints", on(hw.plain_ints, conv=conv, second=lambda: nn.Conv2d(8, 8, 3), out=lin)),
        picture("batch_norm with a weight and no bias", lambda: call(hw.no_bias, conv=conv(), w=nn.Parameter(torch.ones(8)), out=lin())),
        picture("ScaledStdConv", lambda: nn.Sequential(hw.ScaledStdConv(3, 8, 3), nn.SiLU(), hw.ScaledStdConv(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))),
        picture("x.view(len(x), -1)", on(hw.viewed, body=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), out=lambda: nn.Linear(36, 3))),
        picture("x.as_strided(...)", on(hw.strided, body=net(nn.ReLU))), picture("input edited in place", on(hw.edits, body=net(nn.ReLU))),
        small("prediction and target edited by the loss", hw.mlp, rows, hw.editing_loss), small("loss with a factor under no_grad", hw.mlp, rows, focal),
        small("mixture of experts, best two", hw.Experts), small("mixture of experts, dispatched", hw.Dispatched),
        *[small(f"a constant by {how}", on(partial(hw.normed, how), a=lambda: nn.Linear(6, 8), b=lin)) for how in ("no_grad", "detach", "data")],
        small("SimSiam, target under no_grad", on(hw.siamese, body=hw.mlp, head=lambda: nn.Linear(3, 3))),
        small("gradient scaled by a tensor's hook", on(hw.hooked, a=lambda: nn.Linear(6, 8), b=lin)), small("gradient scaled by a module's hook", hw.scaled_by_module_hook),
        small("a branch on is_grad_enabled", on(hw.careful, a=lambda: nn.Linear(6, 8), b=lin)),
        small("mean teacher, moved by the pass", on(hw.teacher, student=hw.mlp, teacher=lambda: hw.mlp().requires_grad_(False)), refused="make them buffers"),
        small("weights clamped by the pass", on(hw.clipped, body=hw.mlp)), small("weights scaled by the pass", on(hw.shrunk, body=hw.mlp)), small("a plain tensor moved by the pass", hw.Centred), small("codebook", hw.Codebook),
        small("parameters in a plain list", hw.Hidden, refused="[Rr]egister"), small("torch.jit.script", lambda: torch.jit.script(hw.mlp().double()), refused="torch.jit"),
        small("torch.jit.trace within a module", lambda: nn.Sequential(nn.Linear(6, 6), torch.jit.trace(hw.mlp().double(), torch.zeros(2, 6).double())), refused="torch.jit"),
        small("Function: cube", lambda: hw.applied(hw.Cube)), small("Function: gradient reversal", lambda: hw.applied(hw.Reverse)), small("Function: straight through", lambda: hw.applied(hw.Straight)),
        small("Function, once_differentiable", lambda: hw.applied(hw.Once), refused=once),
        small("Function: fixed point (DEQ)", lambda: call(lambda m, x: m.b(hw.FixedPoint.apply(m.a(x), m.w)), a=nn.Linear(6, 4), w=nn.Parameter(.1 * torch.eye(4)), b=nn.Linear(4, 3)), refused=once),
        small("Function: recomputed (RevNet)", partial(hw.reversible, True), twin=partial(hw.reversible, False), refused=once),
        small("Function: saves an intermediate", lambda: hw.applied(hw.Swish), twin=lambda: call(lambda m, x: m.b(F.silu(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3)), refused=once),
        small("checkpoint, use_reentrant=False", partial(hw.checkpointed, False), twin=partial(hw.checkpointed, None)),
        small("checkpoint, use_reentrant=True", partial(hw.checkpointed, True), refused="use_reentrant=False"),
        small("checkpoint, dropout and batch norm inside", lambda: hw.checkpointed(False, (nn.BatchNorm1d(8), nn.Dropout(.3))), twin=lambda: hw.checkpointed(None, (nn.BatchNorm1d(8), nn.Dropout(.3)))),
        picture("checkpoint_sequential, convolutions and batch norm", partial(hw.in_segments, 2), twin=partial(hw.in_segments, 0)),
        small("zero at the start", lambda: call(lambda m, x: m.b(F.relu(m.a(x))), a=zero(nn.Linear(6, 8)), b=nn.Linear(8, 3)), noise=0.),
        small("unused, frozen and shared parameters", shared), small("U-Net", hw.Unet, maps(8)), small("Fourier neural operator", hw.Fourier), small("normalising flow", hw.Flow, rows, answer),
        small("variational autoencoder", hw.Vae, values, evidence), small("graph attention", hw.Graph), small("neural ODE", hw.Ode), small("ensemble by vmap", hw.Ensemble),
        small("hyper-network", hw.Hyper), picture("spatial transformer", spatial, refused=once), small("compiled", lambda: torch.compile(hw.mlp(), backend="eager"))]


SLOW = frozenset()


def zero(layer):
    for p in layer.parameters(): nn.init.zeros_(p)
    return layer


def shared():
    m = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3))
    m[2].weight = m[0].weight
    m.idle = nn.Parameter(torch.zeros(2))
    return m


def spatial():
    m = hw.Transformed()
    m(torch.zeros(2, 3, 8, 8))
    return m


def cases(): return [*torchvision_cases(), *timm_cases(), *transformers_cases(), *fastai_cases(), *handwritten_cases()]


def row(o):
    error = "" if o.error is None else f"{o.error:.0e}"
    return f"{o.name[:50]:50} {o.library:13} {o.parameters:9,} {o.k} {error:>6} {o.verdict:8} {o.seconds:6.1f} {'' if o.expected else 'NOT EXPECTED ' + ', '.join(o.touched) + ' ' + o.message[:120]}".rstrip()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", default="", help="part of the name, or a library")
    p.add_argument("--out", type=Path, help="JSON file for the table")
    args, rows = p.parse_args(), []
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'':50} {'library':13} {'params':>9} K {'error':>6} {'verdict':8} {'s':>6}")
    for case in [c for c in cases() if args.only in c.name or args.only == c.library]:
        for k in 1, 3:
            try: rows.append(compare(case, k))
            except Exception as e: rows.append(Outcome(case.name, case.library, 0, k, verdict="broken", message=f"{type(e).__name__}: {e}"))
            print(row(rows[-1]), flush=True)
    versions = {n: importlib.metadata.version(n) for n in ("torch", "torchvision", "timm", "transformers", "fastai")}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as tmp: tmp.write_text(json.dumps(dict(versions=versions, rows=[asdict(o) for o in rows]), indent=0))
    print(Counter(o.verdict for o in rows), f"{len({(o.library, o.name) for o in rows})} architectures, {sum(o.seconds for o in rows):.0f} s")
    return any(not o.expected for o in rows)


if __name__ == "__main__": sys.exit(main())
