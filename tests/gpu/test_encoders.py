"""Encoders on the device: every family, flash attention, 4-bit weights, and the sizes of the real ones."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import tiny_models
import torch
from tiny_models import make_image
from torch import Tensor

from benchmarks.real_sizes import REAL_SIZES, RealSize, step_memory
from fanoise_lightning import Sample, VisionLanguageEncoder

SAMPLES = [
    Sample("a red apple"),
    Sample(image=make_image(60, 40, 1)),
    Sample("what is it", make_image(40, 60, 2)),
    Sample("both", (make_image(50, 50, 3), make_image(60, 60, 4))),
]


@torch.no_grad()
def embed(encoder: VisionLanguageEncoder, device: torch.device | str) -> Tensor:
    batch = {name: value.to(device) for name, value in encoder.collate(SAMPLES).items()}
    return encoder.eval().to(device)(**batch).double().cpu()


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=1)


@pytest.fixture(scope="module", params=tiny_models.BUILDERS)
def folder(request, tmp_path_factory) -> str:
    return tiny_models.save_tiny(tmp_path_factory.mktemp(request.param), request.param)


def test_a_batch_on_the_device_has_the_embeddings_of_single_samples_on_the_cpu(folder, device):
    encoder = VisionLanguageEncoder(folder)
    together = embed(encoder, device)
    encoder.to("cpu")
    with torch.no_grad():
        alone = torch.cat([encoder(**encoder.collate([sample])) for sample in SAMPLES]).double()
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_bfloat16_turns_embeddings_by_little(folder, device):
    exact = embed(VisionLanguageEncoder(folder), "cpu")
    rounded = embed(VisionLanguageEncoder(folder, dtype="bfloat16"), device)
    assert cosines(exact, rounded).min() > 0.99


def test_flash_attention_gives_the_embeddings_of_sdpa(cuda, tmp_path):
    if find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    for family in tiny_models.BUILDERS:
        folder = tiny_models.save_tiny(tmp_path / family, family)
        sdpa, flash = (
            embed(VisionLanguageEncoder(folder, dtype="bfloat16", attn_implementation=name), cuda)
            for name in ("sdpa", "flash_attention_2")
        )
        assert cosines(sdpa, flash).min() > 0.99, family


def test_an_adapter_trains_on_4_bit_weights(cuda, tmp_path):
    if find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    folder = tiny_models.save_tiny(tmp_path, "qwen2_vl")
    encoder = VisionLanguageEncoder(folder, dtype="bfloat16", lora={}, load_in_4bit=True).train()
    batch = {name: value.to(cuda) for name, value in encoder.collate(SAMPLES).items()}
    encoder(**batch).square().sum().backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.any() for p in trained)
    assert all(p.dtype == torch.float32 for p in trained)


def language_model(text: dict) -> int:
    """Embeddings and layers of a Qwen2, Mistral or Phi-3, with the final norm."""
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    keys = text["num_key_value_heads"] * (hidden // heads)
    attention = 2 * hidden * hidden + 2 * hidden * keys
    layer = attention + 3 * hidden * text["intermediate_size"] + 2 * hidden
    return text["vocab_size"] * hidden + text["num_hidden_layers"] * layer + hidden


def tower(width: int, layers: int, mlp: int) -> int:
    """The blocks of a vision transformer with biases."""
    return layers * (4 * width * width + 4 * width + 2 * width * mlp + mlp + width + 4 * width)


def qwen2_vl(size: RealSize) -> int:
    hidden, width = size.text["hidden_size"], 1280
    keys = size.text["num_key_value_heads"] * (hidden // size.text["num_attention_heads"])
    biases = size.text["num_hidden_layers"] * (hidden + 2 * keys)
    patches = 3 * 2 * 14 * 14 * width
    merger = 2 * width + (4 * width) ** 2 + 4 * width + 4 * width * hidden + hidden
    return language_model(size.text) + biases + patches + tower(width, 32, 5120) + merger


def clip_large() -> int:
    return 1024 + 577 * 1024 + 3 * 14 * 14 * 1024 + tower(1024, 24, 4096) + 4 * 1024


def llava_next(size: RealSize) -> int:
    hidden = size.text["hidden_size"]
    projector = 1024 * hidden + hidden + hidden * hidden + hidden
    return language_model(size.text) + clip_large() + projector + hidden  # the last is the newline of images


def phi3_v(size: RealSize) -> int:
    hidden = size.text["hidden_size"]
    projection = 4096 * hidden + hidden + hidden * hidden + hidden
    return language_model(size.text) + clip_large() + projection + 2 * 4096


def adapter(size: RealSize) -> int:
    """LoRA of rank 8 on all linear layers of the language model; Phi-3's are fused."""
    text, rank = size.text, 8
    hidden, mlp = text["hidden_size"], text["intermediate_size"]
    keys = text["num_key_value_heads"] * (hidden // text["num_attention_heads"])
    layers = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden)]
    layers += [(hidden, mlp), (hidden, mlp), (mlp, hidden)]
    if size.family == "phi3_v":
        layers = [(hidden, hidden + 2 * keys), (hidden, hidden), (hidden, 2 * mlp), (mlp, hidden)]
    return text["num_hidden_layers"] * rank * sum(one + other for one, other in layers)


@pytest.mark.parametrize("size", REAL_SIZES.values(), ids=REAL_SIZES)
def test_the_real_sizes_have_the_parameters_of_the_published_checkpoints(size):
    expected = {"qwen2_vl": qwen2_vl, "llava_next": llava_next, "phi3_v": phi3_v}[size.family](size)
    head = 0 if size.tied else size.text["vocab_size"] * size.text["hidden_size"]
    assert expected + head == size.published
    with torch.device("meta"):
        network = size.network()
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert (trained, frozen) == (adapter(size), expected)
    assert sum(p.nbytes for p in network.parameters()) == 4 * trained + 2 * frozen


@pytest.mark.parametrize("recipe", ["qwen2_vl_2b", "llava16_lr", "phi35_vision"])
def test_the_predicted_memory_is_that_of_a_step_with_values(recipe):
    small = REAL_SIZES[recipe].tiny()
    predicted, real = (step_memory(small, rows=2, tokens=300, fake=fake) for fake in (True, False))
    assert predicted.weights == real.weights
    assert predicted.state == pytest.approx(real.state, rel=0.01)
    assert predicted.peak == pytest.approx(real.peak, rel=0.02)
    activations = predicted.peak - predicted.weights - predicted.state
    inputs_of_layers = 2 * 300 * 32 * 2 * small.text["num_hidden_layers"]
    assert activations > inputs_of_layers


def test_the_memory_of_a_step_grows_with_its_rows_and_not_faster():
    one, two = (step_memory(REAL_SIZES["qwen2_vl_2b"].tiny(), rows, tokens=500) for rows in (1, 2))
    assert one.weights == two.weights
    below = one.weights + one.state
    assert 1.6 < (two.peak - below) / (one.peak - below) < 2.05
