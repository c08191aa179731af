"""Which module is the loss, and which of its arguments are features."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from plain_module import PlainModule, Recorder, fit
from torch import nn
from torch.nn import functional as F

from fanoise_lightning import FeatureTap, InfoNCE, SigmoidLoss
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._features import FeatureFinder
from fanoise_lightning.callbacks._loss_search import find_loss, words
from fanoise_lightning.noise import noise_shape
from fanoise_lightning.seeds import derive_seed

# The module


def module_of(**children: nn.Module) -> PlainModule:
    module = PlainModule()
    del module.criterion
    for name, child in children.items():
        setattr(module, name, child)
    return module


class CLIPLoss(nn.Module):
    def forward(self, image_features, text_features):
        return (image_features * text_features).sum()


class OtherLoss(nn.Module):
    def forward(self, x, y):
        return (x - y).square().sum()


class ReconLoss(nn.Module):
    def forward(self, pictures, reconstructed):
        return (pictures - reconstructed).square().mean()


class SoftTargetCrossEntropy(nn.Module):
    def forward(self, x, y):
        return (x * y).sum()


class OwnInfoNCE(nn.CrossEntropyLoss):
    """A contrastive loss that computes with the class it inherits from."""

    def forward(self, query, target):
        return super().forward(query @ target.T, torch.arange(len(query)))


@pytest.mark.parametrize(
    ("path", "children"),
    [
        ("criterion", {"criterion": CLIPLoss()}),
        ("clip", {"clip": CLIPLoss()}),
        ("nce", {"nce": CLIPLoss()}),
        ("head", {"head": InfoNCE()}),
        ("loss_fn", {"loss_fn": SigmoidLoss()}),
        ("criterion", {"criterion": nn.TripletMarginLoss()}),
        ("criterion", {"criterion": nn.CosineEmbeddingLoss()}),
        ("criterion", {"criterion": OwnInfoNCE()}),
        ("loss", {"loss": CLIPLoss(), "gloss_encoder": nn.Linear(2, 2), "lossless_codec": nn.Linear(2, 2)}),
        ("loss", {"loss": CLIPLoss(), "loss_projection": nn.Linear(2, 2)}),
        ("loss", {"loss": CLIPLoss(), "recon_loss": nn.MSELoss(), "class_loss": nn.CrossEntropyLoss()}),
        ("loss", {"loss": CLIPLoss(), "recon": ReconLoss(), "soft_loss": SoftTargetCrossEntropy()}),
        ("loss", {"loss": CLIPLoss(), "aux_loss": nn.KLDivLoss(), "smooth_loss": nn.SmoothL1Loss()}),
        ("losses.0", {"losses": nn.ModuleList([CLIPLoss(), nn.MSELoss()])}),
        ("losses.main", {"losses": nn.ModuleDict({"main": CLIPLoss(), "recon": ReconLoss()})}),
        ("heads.a.criterion", {"heads": nn.ModuleDict({"a": nn.ModuleDict({"criterion": CLIPLoss()})})}),
        ("tap", {"tap": FeatureTap(), "recon_loss": ReconLoss(), "loss": CLIPLoss()}),
    ],
)
def test_the_contrastive_loss_is_found(path, children):
    assert find_loss(module_of(**children))[0] == path


@pytest.mark.parametrize(
    "children",
    [
        {"gloss_encoder": nn.Linear(2, 2)},
        {"lossless_codec": nn.Linear(2, 2)},
        {"losses": nn.ModuleList([nn.Linear(2, 2)])},
        {"recon_loss": nn.MSELoss()},
        {"recon_loss": torch.compile(nn.MSELoss(), backend="eager")},
        {"criterion": torch.compile(nn.CrossEntropyLoss(), backend="eager")},
        {"recon_loss": ReconLoss()},
        {"criterion": nn.BCEWithLogitsLoss()},
        {"criterion": SoftTargetCrossEntropy()},
        *({f"{name}_loss": OtherLoss()} for name in ("distillation", "kd", "perceptual", "rmse")),
        *({f"{name}_loss": OtherLoss()} for name in ("consistency", "charbonnier", "l2", "smooth_l1")),
    ],
)
def test_what_is_no_contrastive_loss_is_not_taken_for_one(children):
    with pytest.raises(ValueError, match="no child that looks like a contrastive loss"):
        find_loss(module_of(**children))


def test_every_stock_loss_of_torch_is_one_of_labels_or_is_known_to_be_of_features():
    of_features = {"TripletMarginLoss", "TripletMarginWithDistanceLoss", "CosineEmbeddingLoss"}
    for name in torch.nn.modules.loss.__all__:
        kind = getattr(torch.nn.modules.loss, name)
        loss = kind.__new__(kind)
        nn.Module.__init__(loss)  # some want arguments
        found = module_of(loss=loss)
        if name in of_features:
            assert find_loss(found)[0] == "loss"
        else:
            with pytest.raises(ValueError, match="no child"):
                find_loss(found)


def test_words_of_identifiers():
    assert words("NTXentLoss") == ["nt", "xent", "loss"]
    assert words("InfoNCE") == ["info", "nce"]
    assert words("CLIPLoss") == ["clip", "loss"]
    assert words("heads.closs_2loss") == ["heads", "closs", "2", "loss"]
    assert words("SmoothL1Loss") == ["smooth", "l1", "loss"]
    assert words("l2_loss.pool2") == ["l2", "loss", "pool", "2"]


# The arguments


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


Q, T, N, M = (unit(rows, 6, seed) for seed, rows in enumerate((8, 8, 5, 4)))
ONE_HOT = torch.eye(6)[torch.arange(8) % 6]


def loss_of(forward) -> nn.Module:
    loss = nn.Module()
    loss.forward = forward
    return loss


CALLS = {
    "by position": (lambda q, t: 0, (Q, T), {}, "q t"),
    "by name": (lambda q, t: 0, (), {"t": T, "q": Q}, "q t"),
    "a square mask before the features": (lambda m, q, t: 0, (torch.ones(8, 8).tril(), Q, T), {}, "q t"),
    "a mask by its name": (lambda mask, q, t: 0, (torch.rand(8, 8), Q, T), {}, "q t"),
    "an additive mask": (lambda m, q, t: 0, (torch.zeros(8, 8).fill_diagonal_(-torch.inf), Q, T), {}, "q t"),
    "weights of the features' shape": (lambda q, t, sample_weights: 0, (Q, T, torch.rand(8, 6)), {}, "q t"),
    "one-hot labels of the features' width": (lambda q, y, t: 0, (Q, ONE_HOT, T), {}, "q t"),
    "soft labels of the features' width": (lambda q, y, t: 0, (Q, torch.rand(8, 6).softmax(1), T), {}, "q t"),
    "a matrix of another width": (lambda x, q, t: 0, (torch.rand(8, 9), Q, T), {}, "q t"),
    "integers and scalars": (lambda q, t, ids, scale: 0, (Q, T, torch.arange(8), torch.ones(())), {}, "q t"),
    "hard negatives": (lambda q, t, negatives=None: 0, (Q, T, N), {}, "q t negatives"),
    "no hard negatives": (lambda q, t, negatives=None: 0, (Q, T, None), {}, "q t"),
    "a triplet": (lambda anchor, positive, negative: 0, (Q, T, M), {}, "anchor positive negative"),
    "a negative in between": (lambda a, negative, p: 0, (Q, M, T), {}, "a p negative"),
    "two of them": (lambda q, t, hard_neg, soft_neg: 0, (Q, T, N, M), {}, "q t hard_neg soft_neg"),
    "a teacher's pair": (lambda q, t, teacher_q, teacher_t: 0, (Q, T, Q, T), {}, "q t"),
    "two of them, numbered": (lambda q, t, hard1, hard2: 0, (Q, T, N, M), {}, "q t hard1 hard2"),
    "negatives of each query": (
        lambda q, t, negatives: 0,
        (Q, T, torch.stack([Q, T], 1)),
        {},
        "q t negatives",
    ),
    "a list of negatives": (lambda q, t, neg: 0, (Q, T, [N, M]), {}, "q t neg[0] neg[1]"),
    "a tuple of both sides": (lambda pair: 0, ((Q, T),), {}, "pair[0] pair[1]"),
    "an unknown third": (lambda q, t, x: 0, (Q, T, N), {}, "q t x"),
    "a teacher": (lambda q, t, teacher: 0, (Q, T, Q + 1), {}, "q t"),
    "prototypes": (lambda anchors, targets, prototypes: 0, (Q, T, N), {}, "anchors targets"),
    "embeddings of labels": (lambda image, label_embeddings: 0, (Q, T), {}, "image label_embeddings"),
    "a queue": (lambda q, k, queue: 0, (Q, T, N), {}, "q k queue"),
    "starred": (lambda *features: 0, (Q, T, N, M), {}, "features[0] features[1] features[2] features[3]"),
    "starred negatives": (lambda q, t, *negatives: 0, (Q, T, N, M), {}, "q t negatives[0] negatives[1]"),
    "keywords of any name": (lambda **kw: 0, (), {"image": Q, "text": T, "logits": M}, "image text"),
    "the batch as wide as the features": (lambda z1, z2: 0, (unit(6, 6, 4), unit(6, 6, 5)), {}, "z1 z2"),
    "half precision": (lambda q, t: 0, (Q.half(), T.bfloat16()), {}, "q t"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_features_of_a_call(name):
    forward, args, kwargs, expected = CALLS[name]
    finder = FeatureFinder(loss_of(forward))
    for _ in range(2):  # what was judged once stays so
        call = finder.find(args, kwargs)
        names = call.names()
        assert [*names["query"], *names["target"]] == expected.split()
    noisy = {side: [x + 1 for x in values] for side, values in call.features().items()}
    new_args, new_kwargs = call.replaced(noisy)
    replaced = inspect_arguments(forward, new_args, new_kwargs)
    before = inspect_arguments(forward, args, kwargs)
    assert list(replaced) == list(before)
    for place, value in before.items():
        if place in expected.split():
            assert torch.equal(replaced[place], value + 1)
        else:
            assert replaced[place] is value


def inspect_arguments(forward, args, kwargs) -> dict:
    flat = {}
    for name, value in inspect.signature(forward).bind(*args, **kwargs).arguments.items():
        if isinstance(value, (list, tuple)):
            flat |= {f"{name}[{i}]": item for i, item in enumerate(value)}
        elif isinstance(value, dict):
            flat |= value
        else:
            flat[name] = value
    return flat


def test_a_compiled_loss_has_the_arguments_of_the_plain_one():
    class Weighted(nn.Module):
        def forward(self, query, target, weights): ...

    args = (Q, T, torch.rand(8, 6))
    compiled = FeatureFinder(torch.compile(Weighted(), backend="eager")).find(args, {})
    assert compiled.names() == FeatureFinder(Weighted()).find(args, {}).names()


LOGITS = Q @ T.T
REFUSED = {
    "logits by name": (
        lambda logits_per_image, logits_per_text: 0,
        (LOGITS, LOGITS.T),
        "`logits_per_image` (8, 8)",
    ),
    "logits by value": (
        lambda a, b: 0,
        (10 * LOGITS, 10 * LOGITS.T),
        "`a` (8, 8) is the transpose of another",
    ),
    "similarities": (lambda sim_q, sim_t: 0, (Q, T), "`sim_q` (8, 6) is named like"),
    "features and one-hot labels": (lambda x, y: 0, (Q, ONE_HOT), "`y` (8, 6) holds zeros and ones"),
    "features and labels": (lambda x, y: 0, (Q, torch.arange(8)), "found `x` alone"),
    "widths that differ": (lambda x, y: 0, (Q, unit(8, 5, 3)), "`y` (8, 5) has no partner of its width"),
    "views": (lambda x: 0, (torch.rand(8, 2, 6),), "found none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_without_features_of_both_sides_is_refused_by_name(name):
    forward, args, message = REFUSED[name]
    finder = FeatureFinder(loss_of(forward))
    call = finder.find(args, {})
    assert len(call.features()) < 2
    text = str(finder.error(call, ("query", "target")))
    assert message in text
    assert "FANoise(sides=['query'])" in text
    assert "FeatureTap" in text


def test_a_broken_first_batch_is_judged_when_a_whole_one_comes():
    finder = FeatureFinder(loss_of(lambda m, q, t: 0))
    mask = torch.ones(8, 8).tril()
    for broken in (torch.zeros(8, 6), torch.full((8, 6), torch.nan), torch.empty(0, 6)):
        assert finder.find((mask, broken, T), {}).names() == {"query": ["q"], "target": ["t"]}
    assert finder.find((mask, Q, T), {}).names() == {"query": ["q"], "target": ["t"]}


def test_a_tap_is_not_judged():
    call = FeatureFinder(FeatureTap()).find((ONE_HOT, torch.eye(8), N), {})
    assert [len(x) for x in call.features().values()] == [1, 2]


# In a fit


def test_embeddings_and_labels_are_served_by_one_side():
    class Labelled(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(self.embed(batch[0]), torch.arange(len(batch[0])) % 2)

    class SupConLoss(nn.Module):
        def forward(self, embeddings, labels):
            self.seen = embeddings.detach()
            return (embeddings * (labels[:, None] - 0.5)).sum().square()

    with pytest.raises(
        ValueError, match=r"found `embeddings` alone in a call of SupConLoss(?s:.*)sides=\['query'\]"
    ):
        fit(Labelled(SupConLoss()), [FANoise()], max_steps=1)
    module = Labelled(SupConLoss())
    fit(module, [FANoise(alpha=1.0, sides=["query"])], max_steps=1)
    assert (module.criterion.seen.norm(dim=1) - 1).abs().max() > 0.01


def test_one_line_says_what_gets_noise(caplog):
    with caplog.at_level(logging.INFO):
        fit(PlainModule(), [FANoise(alpha=0.25)], max_steps=3)
    lines = [r.getMessage() for r in caplog.records if "FANoise" in r.getMessage()]
    assert lines == [
        "FANoise: sublinear noise, alpha=0.25, on `query` (query) and `target` (target) of 'criterion'"
    ]


def test_the_line_names_what_stays_clean(caplog):
    class Distilled(PlainModule):
        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            return self.criterion(query, target, query.detach())

    class DistilledLoss(nn.Module):
        def forward(self, query, target, teacher):
            return (query * target).sum() + (query - teacher).square().sum()

    with caplog.at_level(logging.INFO):
        fit(Distilled(DistilledLoss()), [FANoise(target="criterion")], max_steps=1)
    (line,) = [r.getMessage() for r in caplog.records if "FANoise" in r.getMessage()]
    assert line.endswith("of 'criterion'; `teacher` stay clean")


class Odd(PlainModule):
    """Calls its loss without features once, after two whole batches."""

    def __init__(self) -> None:
        super().__init__(Recorder())

    def compute_loss(self, batch):
        query, target = self.embed(batch[0]), self.embed(batch[1])
        if len(self.losses) == 2:
            return self.criterion(query[0], target[0])
        return self.criterion(query, target)


def test_a_call_without_features_later_on_passes_and_is_counted():
    callback = FANoise()
    with pytest.warns(UserWarning, match="left 1 training batches without noise"):
        fit(Odd(), [callback])
    assert callback._source.skipped == 1


def test_a_call_without_features_is_an_error_where_other_ranks_would_wait():
    with pytest.raises(ValueError, match="found none in a call of Recorder"):
        fit(Odd(), [FANoise(scope="global")])


def test_a_wrong_call_has_the_error_of_the_loss():
    class Wrong(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(self.embed(batch[0]))

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'target'"):
        fit(Wrong(), [FANoise()], max_steps=1)


# Hard negatives


class WithNegatives(PlainModule):
    """The target side's embeddings are its rows; the negatives are other rows of the same text."""

    def __init__(self) -> None:
        class Keep(nn.Module):
            def forward(self, query, target, negatives):
                self.seen = [x.detach() for x in (query, target, negatives)]
                return (query * target).sum() + negatives.sum()

        super().__init__(Keep())

    def compute_loss(self, batch):
        self.clean = [self.embed(x) for x in (batch[0], batch[1], batch[1][:3] + 1)]
        return self.criterion(*self.clean)

    def noise(self) -> list[torch.Tensor]:
        return [noisy - clean.detach() for noisy, clean in zip(self.criterion.seen, self.clean)]


def test_hard_negatives_get_the_noise_of_the_targets_decomposed_together():
    module = WithNegatives()
    fit(module, [FANoise(alpha=1.0, seed=2)], max_steps=1)
    _, target, negatives = (x.detach() for x in module.clean)
    keys = torch.cat([target, negatives])
    generator = torch.Generator().manual_seed(derive_seed(2, 0, 0, 0, 0, 1))
    expected = noise_shape(keys).sample(keys, 1.0, generator)
    torch.testing.assert_close(torch.cat(module.noise()[1:]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["of each query", "a list"])
def test_hard_negatives_of_other_forms_keep_their_form(form):
    class Loss(nn.Module):
        def forward(self, query, target, negatives):
            self.seen = negatives
            return (query * target).sum() + sum(x.sum() for x in negatives)

    class Many(PlainModule):
        def compute_loss(self, batch):
            clean = [self.embed(batch[1][:4] + i) for i in range(2)]
            self.clean = torch.stack(clean, dim=1) if form == "of each query" else clean
            return self.criterion(self.embed(batch[0]), self.embed(batch[1]), self.clean)

    module = Many(Loss())
    fit(module, [FANoise(alpha=1.0)], max_steps=1)
    assert type(module.criterion.seen) is type(module.clean)
    for noisy, clean in zip(module.criterion.seen, module.clean):
        assert noisy.shape == clean.shape
        assert (noisy - clean).norm(dim=-1).min() > 0.1


def test_hard_negatives_stay_clean_on_demand():
    module = WithNegatives()
    fit(module, [FANoise(alpha=1.0, negatives=False)], max_steps=1)
    query, target, negatives = module.noise()
    assert query.abs().max() > 0.01
    assert target.abs().max() > 0.01
    assert not negatives.any()


def test_a_query_cannot_tell_its_target_from_a_hard_negative_by_the_noise():
    """With equal clean keys, target and negative must be noised alike: here by their mean energy."""
    energies = []

    class Keeping(WithNegatives):
        def training_step(self, batch, batch_idx):
            loss = self.compute_loss(batch)
            energies.append(self.noise())
            return loss

    fit(Keeping(), [FANoise(alpha=1.0, energy="constant", seed=0)], max_steps=60, max_epochs=-1)
    target, negative = (torch.cat([e[i] for e in energies]).square().sum(1) for i in (1, 2))
    error = (target.var() / len(target) + negative.var() / len(negative)).sqrt()
    assert (target.mean() - negative.mean()).abs() < 4 * error
    assert target.mean() == pytest.approx(1.0, rel=0.2)  # alpha^2


# Foreign losses, in the manner of their libraries


def test_signatures_of_other_libraries():
    class NTXentLoss(nn.Module):  # lightly
        def forward(self, out0, out1): ...

    class SelfSupervisedLoss(nn.Module):  # pytorch-metric-learning
        def forward(self, embeddings, ref_emb): ...

    class TripletLoss(nn.Module):  # pytorch-metric-learning
        def forward(self, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None): ...

    for loss in (NTXentLoss(), SelfSupervisedLoss()):
        assert set(FeatureFinder(loss).find((Q, T), {}).features()) == {"query", "target"}
    found = FeatureFinder(TripletLoss()).find((Q, torch.arange(8)), {"ref_emb": T})
    assert found.names() == {"query": ["embeddings"], "target": ["ref_emb"]}
