"""``fanoise embed``: a checkpoint or a recipe, a source, and a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from search.catalogues import ROWS, write_catalogue

from fanoise_lightning import ContrastiveModule
from fanoise_lightning.__main__ import main
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.search.embed_command import _parser
from fanoise_lightning.search.folder import EmbeddingFolder
from fanoise_lightning.search.model import model_of_manifest, model_of_recipe

ON_CPU = ["--num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
COLUMNS = ["--text=text", "--image=image", "--id=id"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue"))


def test_a_checkpoint_embeds_and_the_manifest_leads_back_to_it(
    write_checkpoint: Callable[..., Path], source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, out = write_checkpoint(), tmp_path / "index"
    main(["embed", str(source), f"--out={out}", f"--model={checkpoint}", *COLUMNS, *ON_CPU])
    folder = EmbeddingFolder(out)
    assert len(folder) == ROWS - 1
    assert f"wrote {ROWS - 1} x 24 numbers of float16 to `{out}` (1 shard" in caplog.text
    module = ContrastiveModule.load_from_checkpoint(checkpoint)
    assert folder.fingerprint == fingerprint(module.encoder)
    assert fingerprint(model_of_manifest(folder.manifest).encoder) == folder.fingerprint
    first = torch.cat(list(folder.shards()))[:1].float()
    torch.testing.assert_close(first, module.encode(["thing number 0"]), atol=1e-3, rtol=0)


def test_the_trainers_options_have_their_types() -> None:
    options = (
        _parser()
        .parse_args(["x", "--out=y", "--trainer.devices=2", "--trainer.precision=bf16-mixed", *ON_CPU])
        .trainer
    )
    assert options == {
        "devices": 2,
        "precision": "bf16-mixed",
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }
    assert options["devices"] is not True


def test_a_recipe_embeds_with_its_encoder_before_training(
    tiny_clip: str, source: Path, tmp_path: Path
) -> None:
    encoder = {"class_path": "fanoise_lightning.OpenClipEncoder", "init_args": {"model": tiny_clip}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"encoder": encoder}, "trainer": {"max_steps": 3}}))
    main(["embed", str(source), f"--out={tmp_path / 'index'}", f"--config={recipe}", *COLUMNS, *ON_CPU])
    manifest = EmbeddingFolder(tmp_path / "index").manifest
    assert manifest["model"]["checkpoint"] is None
    assert model_of_manifest(manifest).encoder.model == tiny_clip


def test_parts_without_weights_are_the_same_each_time(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    encoder = {"class_path": "fanoise_lightning.OpenClipEncoder", "init_args": {"model": "emoji-resnet"}}
    recipe.write_text(yaml.safe_dump({"model": {"encoder": encoder}}))
    first, again = (fingerprint(model_of_recipe(recipe).encoder) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the model: a checkpoint with `--model`, or a recipe with `--config`"),
        (["--model=gone.ckpt"], "there is no checkpoint `gone.ckpt`"),
        (["--config=gone.yaml"], "there is no recipe `gone.yaml`"),
        (["--config=odd.yaml"], "`odd.yaml` is no recipe with `model.encoder` in it"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.yaml").write_text("model: 3")
    with pytest.raises(SystemExit) as end:
        main(["embed", str(source), "--out=index", *options])
    assert str(end.value).startswith(f"fanoise: {message}")
    assert not Path("index").exists()


def test_a_manifest_cannot_name_code_that_is_not_allowed(their_code: Path) -> None:
    model = {"description": {"class_path": "their_code.Encoder", "init_args": {}}, "checkpoint": None}
    with pytest.raises(ValueError, match="their_code"):
        model_of_manifest(json.loads(json.dumps({"model": model})))
