"""Noise inside a model whose modules pass dicts, tuples or model outputs around: which tensor gets it."""

from __future__ import annotations

import re
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from noisy_sites import Outputs, fit
from plain_module import PlainModule, Recorder
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from fanoise_lightning.callbacks import FANoise

Named = namedtuple("Named", ["count", "features"])


@dataclass(frozen=True)
class Record:
    features: Tensor
    rows: int = 8


def tokens(x: Tensor) -> Tensor:
    return x.unsqueeze(1).repeat(1, 3, 1)


CONTAINERS = {
    "tensor": (lambda x: x, lambda out: out),
    "tokens": (lambda x: x.view(len(x), 2, 4), lambda out: out),
    "tuple": (lambda x: (torch.arange(3), x), lambda out: out[1]),
    "list": (lambda x: [x, None], lambda out: out[0]),
    "nested": (lambda x: (None, {"inner": [x]}), lambda out: out[1]["inner"][0]),
    "dict": (lambda x: {"mask": torch.ones(2, 2) > 0, "features": x}, lambda out: out["features"]),
    "named tuple": (lambda x: Named(3, x), lambda out: out.features),
    "dataclass": (lambda x: Record(x), lambda out: out.features),
    "model output": (lambda x: BaseModelOutput(last_hidden_state=x), lambda out: out.last_hidden_state),
    "pooled": (
        lambda x: BaseModelOutputWithPooling(last_hidden_state=tokens(x), pooler_output=x),
        lambda out: out.pooler_output,
    ),
    "pooled, as a tuple": (lambda x: (tokens(x), x), lambda out: out[1]),
    "twice": (lambda x: (x, x), lambda out: (out[0] + out[1]) / 2),
    "beside logits": (lambda x: {"logits": x @ x.T, "x": x}, lambda out: out["x"] + 0 * out["logits"]),
}


@pytest.mark.parametrize("where", ["output", "input"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_the_features_get_noise_of_the_asked_amount_in_any_container(name, where):
    wrap, unwrap = CONTAINERS[name]

    class Takes(Outputs):
        def embed(self, x):
            features = self.net(x)
            given = self.part(wrap(features))
            self.before.append(features.detach())
            self.after.append(unwrap(given).detach())
            return F.normalize(unwrap(given).reshape(len(x), -1), dim=1)

    module = Takes(lambda container: container, unwrap)
    fit(module, FANoise(0.5, "uniform", "part", where, energy="constant", seed=0), steps=8)
    noise = torch.cat([a.reshape(b.shape) - b for a, b in zip(module.after, module.before)])
    per_row = 0.5 * (2**0.5 if name == "tokens" else 1)  # two tokens a row
    assert noise.square().sum(1).mean().sqrt() == pytest.approx(per_row, rel=0.1)


AMBIGUOUS = {
    "two towers": lambda x: {"text_embeds": x, "image_embeds": 2 * x},
    "two layers of tokens": lambda x: (tokens(x), 2 * tokens(x)),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_features_that_are_not_clear_are_an_error_with_the_fix(name):
    module = Outputs(AMBIGUOUS[name], lambda out: out)
    one, other = ("[text_embeds]", "[image_embeds]") if name == "two towers" else ("[0]", "[1]")
    shape = (8, 8) if name == "two towers" else (8, 3, 8)
    message = (
        f"which are the features in the output of 'part': `{one}` {shape}, `{other}` {shape}. "
        f'Name them, such as FANoise(target="part{one}", where="output")'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(module, FANoise(0.5, target="part", where="output"))


def test_a_part_of_an_output_can_be_named_and_the_line_tells_what_stays_clean(caplog):
    both = AMBIGUOUS["two towers"]
    module = Outputs(both, lambda out: torch.cat([out["text_embeds"], out["image_embeds"]], 1))
    with caplog.at_level("INFO"):
        fit(module, FANoise(0.5, target="part[image_embeds]", where="output", relative=True))
    text, image = module.after[0].chunk(2, dim=1)
    assert torch.equal(text, module.before[0])
    assert not torch.equal(image, 2 * module.before[0])
    (line,) = [record.getMessage() for record in caplog.records if "FANoise" in record.getMessage()]
    assert line.endswith("on the output of 'part[image_embeds]'; `[text_embeds]` stays clean")


def test_a_part_that_does_not_exist_is_an_error_that_lists_them():
    module = Outputs(AMBIGUOUS["two towers"], lambda out: out)
    with pytest.raises(
        ValueError, match=r"no features `\[pooled\]` in the output of 'part': `\[text_embeds\]`"
    ):
        fit(module, FANoise(0.5, target="part[pooled]", where="output"))


class Recurrent(PlainModule):
    def __init__(self) -> None:
        super().__init__(Recorder())
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.clean: list[Tensor] = []

    def embed(self, x):
        hidden = self.lstm(tokens(x))[1][0][-1]
        self.clean.append(self.lstm.forward(tokens(x))[1][0][-1].detach())
        return hidden


def test_noise_on_an_output_that_nothing_reads_is_warned_of():
    """An LSTM's states are read, its outputs are not."""
    module = Recurrent()
    with pytest.warns(UserWarning, match=r"no gradient came back to the noisy features of 'lstm'"):
        fit(module, FANoise(0.5, target="lstm", where="output"))
    assert torch.equal(module.criterion.calls[0][0], module.clean[0])
    named = Recurrent()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "FANoise: no gradient")
        fit(named, FANoise(0.5, target="lstm[1][0]", where="output"))
    assert not torch.equal(named.criterion.calls[0][0], named.clean[0])


@pytest.mark.parametrize("read", ["pooler_output", "last_hidden_state"])
def test_a_real_encoder_of_which_the_other_output_is_read(read):
    class Bert(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
            self.bert = BertModel(BertConfig(vocab_size=20, num_attention_heads=2, **sizes))

        def embed(self, x):
            out = self.bert(input_ids=(x * 5).long().abs() % 20)
            return F.normalize(out.pooler_output if read == "pooler_output" else out[0].mean(1), dim=1)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit(Bert(), FANoise(0.5, target="bert", where="output"))
    said = any("no gradient came back" in str(w.message) for w in warned)
    assert said == (read == "last_hidden_state")


def test_attention_of_a_tensor_to_itself_has_one_input():
    class Attends(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.seen: list[tuple[Tensor, ...]] = []
            self.attention.register_forward_pre_hook(lambda _, args: self.seen.append(args))

        def embed(self, x):
            x = self.x = tokens(x)
            return F.normalize(self.net(self.attention(x, x, x, need_weights=False)[0].mean(1)), dim=1)

        def on_train_start(self):  # after the noise
            self.attention.register_forward_pre_hook(lambda _, args: self.seen.append(args))

    module = Attends()
    fit(module, FANoise(0.5, target="attention", where="input"), steps=1)
    query, key, value = module.seen[-1]
    assert query is key is value
    assert not torch.equal(query, module.x)


def test_two_inputs_are_an_error_and_can_be_named():
    class Fuses(nn.Module):
        def forward(self, text, image):
            self.seen = text.detach(), image.detach()
            return text + image

    class Fused(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.fuse = Fuses()

        def embed(self, x):
            self.features = self.net(x)
            return F.normalize(self.fuse(self.features, image=2 * self.features), dim=1)

    with pytest.raises(ValueError, match=r"the input of 'fuse': `\[text\]` \(8, 8\), `\[image\]` \(8, 8\)"):
        fit(Fused(), FANoise(0.5, target="fuse", where="input"))
    module = fit(Fused(), FANoise(0.5, target="fuse[image]", where="input"))
    text, image = module.fuse.seen
    assert torch.equal(text, module.features)
    assert not torch.equal(image, 2 * module.features)


# A loss that runs the encoder itself


class Embeds(nn.Module):
    """The first module of a SentenceTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)

    def forward(self, features):
        return {**features, "token_embeddings": self.embedding(features["input_ids"])}


class FromIds(PlainModule):
    def compute_loss(self, batch):
        ids = [(x * 10).long().abs() % 50 for x in batch]
        return self.criterion([{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids], None)


@pytest.mark.parametrize("last", ["criterion.model", "criterion.model.2"])
def test_a_loss_that_runs_a_sentence_transformer(last):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    encoder = nn.Sequential(Embeds(), modules.Pooling(8), modules.Normalize())
    loss = losses.MultipleNegativesRankingLoss(encoder)
    with pytest.raises(ValueError, match=r'FANoise\(target="criterion.model", where="output"\)'):
        fit(FromIds(loss), FANoise(0.3))
    read: list[Tensor] = []
    compute = loss.compute_loss_from_embeddings
    loss.compute_loss_from_embeddings = lambda x, labels: read.extend(x) or compute(x, labels)
    clean: list[Tensor] = []
    encoder[0].register_forward_hook(lambda m, args, out: clean.append(out["token_embeddings"].mean(1)))
    noise = FANoise(0.3, "uniform", last, "output", energy="constant", relative=True)
    fit(FromIds(loss), noise, steps=8)
    assert len(read) == len(clean) == noise._source.draws == 16  # once per feature
    added = torch.cat([x - F.normalize(y, dim=1) for x, y in zip(read, clean)]).detach()
    assert added.square().sum(1).mean().sqrt() == pytest.approx(0.3, rel=0.1)
