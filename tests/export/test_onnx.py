"""The ONNX files of an exported folder give the encoder's vectors, to onnxruntime and `OnnxTowers`."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_two_towers
import torch
import transformers
from export.tiny_encoders import build, build_open_clip, trained
from packaging.version import Version
from tiny_models import make_image
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning import ContrastiveModule, OnnxTowers, Sample, TwoTowerEncoder, export_encoder
from fanoise_lightning.__main__ import main
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers
from fanoise_lightning.export import export_command
from fanoise_lightning.export import onnx as writer
from fanoise_lightning.export.usage import usage
from fanoise_lightning.export.verify import BAR, Check, verify
from fanoise_lightning.export.write import write

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

TEXT, IMAGE = "onnx/text_model.onnx", "onnx/vision_model.onnx"
SAMPLES = [
    Sample("two dogs"),
    Sample("what is it?", make_image(40, 60, 1)),
    Sample(image=make_image(60, 40, 2)),
    Sample("a much longer text than the first one, so that it is cut " * 3),
]


def tower(folder: Path, family: str, **options: Any) -> Any:
    return trained(TwoTowerEncoder(tiny_two_towers.save_tiny(folder, family), **options))


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "clip": lambda folder: tower(folder, "clip", lora={"r": 2}, gradient_checkpointing=True),
    "siglip2": lambda folder: tower(folder, "siglip2", lora={"r": 2}, dtype="bfloat16"),
    "blip": lambda folder: tower(folder, "blip", split_special_tokens=False),  # which no other library reads
    "open_clip": lambda folder: build_open_clip(folder, lora={"r": 2}, gradient_checkpointing=True),
}
if Version(transformers.__version__) < Version("5.24"):  # torch cannot export its image tower
    del BUILDERS["siglip2"]
IN_ONE_FILE = "blip"  # all others are written as if they were larger than 2 GB


@pytest.fixture(scope="module")
def checks(once: Callable[..., Any]) -> dict[str, Check]:
    return once("onnx", write_all)


def write_all(root: Path) -> dict[str, Check]:
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, builder in BUILDERS.items():
            patch.setattr(writer, "_MOST_BYTES", 2**31 - 1 if name == IN_ONE_FILE else 1000)
            (out := root / name).mkdir()
            found[name], facts = write(builder(root / f"{name}-base"), out, merge=True, onnx=True)
            assert facts["onnx_opset"] == 18
    return found


@pytest.fixture(scope="module")
def receipts(checks: dict[str, Check], once: Callable[..., Any]) -> dict[str, Any]:
    """What onnxruntime reads in each folder, and in one that is damaged: all in one process."""
    return once("onnx_read", lambda _: read_all(checks))


def read_all(checks: dict[str, Check]) -> dict[str, Any]:
    clip = checks["clip"]
    damaged = Path(shutil.copytree(clip.folder, clip.folder.with_name("damaged")))
    weights = damaged / f"{IMAGE}_data"
    numbers = np.fromfile(weights, np.float32)
    numbers[: len(numbers) // 2] *= 1.01
    numbers.tofile(weights)
    every = {**checks, "damaged": Check(damaged, clip.written, clip.rows, clip.vectors)}
    for check in every.values():
        check.written.readers = ("onnxruntime",)
    return dict(zip(every, verify(list(every.values())), strict=True))


@pytest.mark.parametrize("name", BUILDERS)
def test_onnxruntime_reads_the_same_vectors(receipts: dict[str, Any], name: str) -> None:
    receipt = receipts[name]["onnxruntime"]
    assert receipt["status"] == "verified", receipt
    assert receipt["version"] == onnxruntime.__version__
    assert receipt["cannot"] == {}  # what other libraries read differently included
    assert receipt["rows"].keys() >= {"text", "long text", "turned picture", "text and picture"}
    assert any(kind.startswith("batch of") for kind in receipt["rows"])
    assert receipt["largest_difference"] <= BAR


def test_other_weights_are_seen(receipts: dict[str, Any]) -> None:
    receipt = receipts["damaged"]["onnxruntime"]
    assert receipt["status"] == "failed"
    assert receipt["why"].startswith("picture: differs by")


@pytest.mark.parametrize("name", BUILDERS)
def test_files_have_the_names_that_transformers_js_looks_for(checks: dict[str, Check], name: str) -> None:
    folder = checks[name].folder
    text, image = onnx.load(folder / TEXT), onnx.load(folder / IMAGE)
    output = {"siglip2": ("pooler_output",) * 2}
    expected = output.get(name, ("text_embeds", "image_embeds"))
    assert ([one.name for one in text.graph.output], [one.name for one in image.graph.output]) == (
        [expected[0]],
        [expected[1]],
    )
    assert [(one.domain, one.version) for one in text.opset_import] == [("", 18)]
    for value in (*text.graph.input, *image.graph.input, *text.graph.output, *image.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param, f"{value.name} has a fixed batch"
    assert (folder / "preprocessor_config.json").is_file() == (name != "open_clip")
    beside = {f"{file}_data" for file in (TEXT, IMAGE)}
    assert all((folder / file).is_file() for file in beside) == (name != IN_ONE_FILE)


def test_a_text_may_have_any_length(checks: dict[str, Check]) -> None:
    inputs = onnx.load(checks["clip"].folder / TEXT).graph.input
    assert [one.name for one in inputs] == ["input_ids", "attention_mask"]
    assert all(one.type.tensor_type.shape.dim[1].dim_param for one in inputs)


@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_towers_embed_as_the_encoder_did(checks: dict[str, Check], name: str) -> None:
    """Against torch, in batches of other sizes than the ones that were exported."""
    folder = checks[name].folder
    module = ContrastiveModule(pickle.loads(pickle.dumps(OnnxTowers(str(folder)))))
    if name == "clip":
        expected = ContrastiveModule(TwoTowerEncoder(str(folder))).encode(SAMPLES)
    else:
        import open_clip

        clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        expected = torch.zeros(len(SAMPLES), 24)
        with torch.inference_mode():
            for row, sample in zip(expected, SAMPLES, strict=True):
                if sample.text:
                    row += clip.eval().encode_text(tokenizer([sample.text]), normalize=True)[0]
                if sample.images:
                    row += clip.encode_image(transform(sample.images[0])[None], normalize=True)[0]
        F.normalize(expected, dim=1, out=expected)
    for batch_size in (1, 3, 4):
        torch.testing.assert_close(module.encode(SAMPLES, batch_size), expected, atol=BAR, rtol=0)
    assert module.encoder.embedding_dim == 24


def test_names_of_special_tokens_are_read_as_they_were(checks: dict[str, Check], tmp_path: Path) -> None:
    text = "a [SEP] b"
    acting = OnnxTowers(str(checks["blip"].folder)).collate([Sample(text)])["input_ids"]
    tokenizer = tiny_two_towers.bert_tokenizer()
    assert acting.tolist() == tokenizer([text])["input_ids"]
    spelt = OnnxTowers(str(checks["clip"].folder)).collate([Sample("a <|endoftext|>")])["input_ids"]
    end = tiny_two_towers.clip_tokenizer(most_merges=200).eos_token_id
    assert spelt.tolist()[0].count(end) == 1


def test_fingerprints_are_those_of_the_files(checks: dict[str, Check], tmp_path: Path) -> None:
    folder = checks["clip"].folder
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    own = fingerprint(OnnxTowers(str(folder)))
    assert fingerprint(OnnxTowers(str(moved))) == own
    state = OnnxTowers(str(folder)).state_dict()
    OnnxTowers(str(moved)).load_state_dict(state)
    with (moved / f"{IMAGE}_data").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(OnnxTowers(str(moved))) != own
    with pytest.raises(ValueError, match="moved` are not those that the checkpoint was saved with"):
        OnnxTowers(str(moved)).load_state_dict(state)


def test_a_folder_without_onnx_files_is_refused(checks: dict[str, Check], tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no `.*none/onnx/text_model.onnx`: write it with `fanoise export"
    ):
        OnnxTowers(str(tmp_path / "none"))
    moved = Path(shutil.copytree(checks["blip"].folder, tmp_path / "moved"))
    (moved / TEXT).write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"onnxruntime cannot open `.*text_model.onnx`, export it again"):
        OnnxTowers(str(moved))


def test_weights_outside_of_the_folder_are_not_read(checks: dict[str, Check], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(checks["clip"].folder, tmp_path / "moved"))
    shutil.move(moved / f"{TEXT}_data", tmp_path / "text_model.onnx_data")
    model = onnx.load(moved / TEXT, load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = "../../text_model.onnx_data"
    (moved / TEXT).write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="onnxruntime cannot open"):
        OnnxTowers(str(moved))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_cannot_be_exported_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"a VisionLanguageEncoder cannot be exported to ONNX: .* is fixed"):
        export_encoder(build(tmp_path / "qwen", "qwen2_vl"), tmp_path / "out", onnx=True)
    encoder = build_open_clip(tmp_path / "base", lora={"r": 2})
    with pytest.raises(ValueError, match="an ONNX file holds the merged weights: leave out `merge=False`"):
        export_encoder(encoder, tmp_path / "out", merge=False, onnx=True)
    monkeypatch.setattr(writer, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript: `pip install 'fanoise-lightning\[onnx\]'`"):
        export_encoder(encoder, tmp_path / "out", onnx=True)
    assert left(tmp_path) == ["base", "qwen"]


class _Collate(TowerCollate):
    def __init__(self) -> None:
        super().__init__(center_crop=False)

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return {"input_ids": torch.arange(2 * len(texts)).reshape(-1, 2)}


class _Branching(TwoTowers):
    """Its text tower does one thing or another, depending on the text."""

    def __init__(self) -> None:
        super().__init__()
        self.collate, self.embedding_dim, self.text = _Collate(), 4, nn.Embedding(10, 4)

    def encode_text(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        found = self.text(input_ids).mean(1)
        return found if found.sum() > 0 else -found


def test_a_tower_that_torch_cannot_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot export the text tower to ONNX.*: .*data-dep"):
        writer.write_onnx(_Branching(), tmp_path)


def test_the_command_has_an_option(
    write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(export_command, "export_encoder", lambda *_, onnx, **__: given.append(onnx))
    checkpoint = str(write_checkpoint())
    main(["export", checkpoint, "out", "--onnx"])
    main(["export", checkpoint, "out"])
    assert given == [True, False]


def test_the_code_of_the_card_gives_the_vectors_of_the_encoder(
    checks: dict[str, Check], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = checks["clip"]
    make_image(40, 60, 1).save(tmp_path / "photo.png")
    receipt = {"reading": {}, "readers": {"onnxruntime": {"rows": {"text and picture": 0.0}}}}
    code = usage("onnxruntime", receipt, check.folder.name).replace("photo.jpg", "photo.png")
    (tmp_path / check.folder.name).symlink_to(check.folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    module = ContrastiveModule(OnnxTowers(str(check.folder)))
    expected = module.encode([Sample("Two dogs"), Sample(image=make_image(40, 60, 1))])
    torch.testing.assert_close(torch.cat([names["texts"], names["pictures"]]), expected, atol=1e-6, rtol=0)
    assert names["both"].shape == (1, 24)
