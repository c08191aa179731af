from __future__ import annotations

import pickle

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fanoise_lightning import OpenClipEncoder, Sample


@pytest.fixture(scope="module")
def encoder(tiny_clip) -> OpenClipEncoder:
    torch.manual_seed(0)
    return OpenClipEncoder(tiny_clip).eval()


def picture(seed: int = 0, size: tuple[int, int] = (40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SAMPLES = [
    Sample(text="a red apple"),
    Sample(image=picture(0)),
    Sample(text="the same with dark skin", image=picture(1)),
    Sample(text="a red apple", image=picture(2)),
    Sample(text="a dog"),
]


def test_towers_are_those_of_open_clip(encoder):
    model, transform, tokenizer = encoder.clip, encoder.collate.transform, encoder.collate.tokenizer
    with torch.no_grad():
        out = encoder(**encoder.collate(SAMPLES))
        for row, sample in zip(out, SAMPLES):
            parts = []
            if sample.text:
                parts.append(model.encode_text(tokenizer([sample.text]), normalize=True))
            if sample.image is not None:
                parts.append(model.encode_image(transform(sample.image)[None], normalize=True))
            assert torch.allclose(row, sum(parts)[0], atol=1e-5)


def test_each_row_of_a_mixed_batch_equals_the_row_alone(encoder):
    with torch.no_grad():
        together = encoder(**encoder.collate(SAMPLES))
        alone = torch.cat([encoder(**encoder.collate([sample])) for sample in SAMPLES])
    assert together.shape == (5, encoder.embedding_dim)
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("only", [[0, 4], [1]])
def test_batches_of_one_modality_run(encoder, only):
    batch = encoder.collate([SAMPLES[i] for i in only])
    assert encoder(**batch).shape == (len(only), 24)


def test_equal_texts_are_tokenised_once(encoder):
    assert encoder.collate([Sample(text="a cat")] * 5 + [Sample(text="a dog")])["input_ids"].shape == (2, 16)


def test_the_collator_travels_to_workers_without_weights(encoder):
    data = pickle.dumps(encoder.collate)
    assert len(data) < 10_000_000  # the tokenizer's vocabulary; the weights stay behind
    batch, again = encoder.collate(SAMPLES), pickle.loads(data)(SAMPLES)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not any(isinstance(v, torch.nn.Module) for v in vars(encoder.collate).values())


def test_a_fit_lowers_the_loss_through_both_towers(tiny_clip):
    torch.manual_seed(0)
    encoder = OpenClipEncoder(tiny_clip)
    query = encoder.collate([Sample(image=picture(i)) for i in range(6)])
    target = encoder.collate([Sample(text=f"number {i}") for i in range(6)])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        logits = 10 * F.normalize(encoder(**query), dim=1) @ F.normalize(encoder(**target), dim=1).T
        loss = F.cross_entropy(logits, torch.arange(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_clip):
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        encoder = OpenClipEncoder(tiny_clip, gradient_checkpointing=flag)
        encoder(**encoder.collate(SAMPLES)).sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_pretrained_weights_are_read_from_a_file(tiny_clip, encoder, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(encoder.clip.state_dict(), path)
    again = OpenClipEncoder(tiny_clip, pretrained=str(path)).eval()
    batch = encoder.collate(SAMPLES)
    assert torch.equal(encoder(**batch), again(**batch))


def test_the_encoder_of_the_embedded_benchmark_comes_with_the_package():
    encoder = OpenClipEncoder("emoji-resnet")
    assert encoder(**encoder.collate(SAMPLES)).shape == (5, encoder.embedding_dim)


def test_an_unknown_model_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"no model 'ViT-B-33'; the nearest: .*ViT-B-32"):
        OpenClipEncoder("ViT-B-33")


def test_a_missing_or_wrong_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        OpenClipEncoder(str(tmp_path / "nothing.json"))
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"embed_dim": 8}')
    with pytest.raises(ValueError, match=r"wrong\.json.*vision_cfg"):
        OpenClipEncoder(str(wrong))


def test_an_unknown_pretrained_tag_is_refused(tiny_clip):
    with pytest.raises(RuntimeError, match="laion7b"):
        OpenClipEncoder(tiny_clip, pretrained="laion7b")


def test_nothing_to_collate_is_an_error(encoder):
    with pytest.raises(ValueError, match="no samples"):
        encoder.collate([])


def test_a_sample_without_text_and_picture_is_an_error():
    with pytest.raises(ValueError, match="text, a picture or both"):
        Sample()


def test_stock_models_stay_listed():
    assert {"ViT-B-32", "emoji-resnet"} <= set(open_clip.list_models())
