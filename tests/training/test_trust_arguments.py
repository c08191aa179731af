"""The check of arguments, against what jsonargparse would import, and of what comes with a model."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from foreign_code import nothing_happened
from jsonargparse import ArgumentParser
from torch import nn

from fanoise_lightning import OpenClipEncoder, PairDataModule, VisionLanguageEncoder
from fanoise_lightning.training.trust import check_arguments


def test_strings_of_plain_arguments_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_text("class_path: os.system")
    check_arguments(OpenClipEncoder, {"model": "model.json", "pretrained": "weights.pt", "lora": None})
    lora = {"targets": ["layers.attn", "q_proj"], "r": 4}
    check_arguments(VisionLanguageEncoder, {"model": "Qwen/Qwen2-VL-2B", "adapter": "a.b", "lora": lora})


def test_the_check_refuses_whatever_jsonargparse_would_import(their_code, tmp_path):
    """Every argument of these, with every form in which a class could be named."""
    (tmp_path / "config").write_text("class_path: their_code.Runner")
    spec = {"class_path": "their_code.Runner"}
    forms = [
        "their_code.run",
        spec,
        str(spec),
        [spec],
        {"a": spec},
        ["their_code.run"],
        str(tmp_path / "config"),
    ]
    classes = [nn.TransformerEncoderLayer, nn.Transformer, nn.TripletMarginWithDistanceLoss, nn.LSTM]
    classes += [torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR, VisionLanguageEncoder, PairDataModule]
    reached = 0
    for cls in classes:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, "module", fail_untyped=False, sub_configs=True)
        for name in vars(parser.get_defaults().module):
            for form in forms:
                with contextlib.suppress(Exception):
                    parser.parse_object({"module": {name: copy.deepcopy(form)}})
                if sys.modules.pop("their_code", None):
                    reached += 1
                    with pytest.raises(ValueError, match="is refused"):
                        check_arguments(cls, {name: form})
    assert reached > 20


@pytest.mark.parametrize("form", ["a file", "a folder"])
def test_an_open_clip_config_cannot_ask_for_code(tiny_clip, their_code, tmp_path, form):
    config = json.loads(Path(tiny_clip).read_text())
    config["text_cfg"] |= {
        "hf_tokenizer_name": str(tmp_path),
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (tmp_path / "evil.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    code = {"auto_map": {"AutoTokenizer": ["their_tokenizer.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", **code}))
    (tmp_path / "their_tokenizer.py").write_text("import their_code")
    with pytest.raises(ValueError, match="asks to run the Python code that comes with its tokenizer"):
        OpenClipEncoder(str(tmp_path / "evil.json") if form == "a file" else f"local-dir:{tmp_path}")
    assert nothing_happened(their_code)


def test_a_checkpoint_may_name_the_file_of_its_pairs_but_no_code() -> None:
    files = {"source": "captions.csv", "val": "held_out.jsonl", "image_root": "."}
    check_arguments(PairDataModule, files, ())
    check_arguments(PairDataModule, {"source": [{"caption": "a mug", "image": "mug.png"}]}, ())
    with pytest.raises(ValueError, match="source"):
        check_arguments(PairDataModule, {"source": {"class_path": "os.system", "init_args": {}}}, ())
