"""Two-tower encoders from the ONNX files of an exported folder."""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fanoise_lightning._log import report
from fanoise_lightning.encoders import open_clip_encoder, two_tower
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers

__all__ = ["IMAGE_FILE", "SPLITS_SPECIAL_TOKENS", "TEXT_FILE", "OnnxTowers"]

TEXT_FILE, IMAGE_FILE = "onnx/text_model.onnx", "onnx/vision_model.onnx"  # as transformers.js names them
SPLITS_SPECIAL_TOKENS = "split_special_tokens"  # a property of the text tower's file


class OnnxTowers(TwoTowers):
    """The towers that ``fanoise export --onnx`` wrote, run by onnxruntime on the CPU.

    The vectors are those of the encoder that was exported, to 1e-5; texts and images are prepared as it
    prepared them. Nothing is trained, and no code of the folder is run. A tower is opened when it is first
    needed, in each process its own, with as many threads as torch has.

    Args:
        folder: an exported folder, with ``onnx/text_model.onnx`` and ``onnx/vision_model.onnx``.

    Raises:
        ImportError: if onnxruntime is not installed: ``pip install 'fanoise-lightning[onnx]'``.
        FileNotFoundError: if the folder lacks one of the files.
        ValueError: if onnxruntime cannot open one of them, or the model's type is not known.

    Example:
        >>> module = ContrastiveModule(OnnxTowers("my-model"))                          # doctest: +SKIP
        >>> module.encode(["a red mug"]).shape                                          # doctest: +SKIP
        torch.Size([1, 512])
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        path = Path(folder).expanduser()
        for name in (TEXT_FILE, IMAGE_FILE):
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"there is no `{path / name}`: write it with `fanoise export CHECKPOINT OUT --onnx`"
                )
        self._text, self._image = _Session(path / TEXT_FILE), _Session(path / IMAGE_FILE)
        opened = self._text.opened
        self.embedding_dim = opened.get_outputs()[0].shape[1]
        plain = opened.get_modelmeta().custom_metadata_map.get(SPLITS_SPECIAL_TOKENS) != "false"
        of_open_clip = (path / "open_clip_config.json").is_file()
        self.collate: TowerCollate = (open_clip_encoder if of_open_clip else two_tower).read_collate(
            str(path), plain
        )
        report(f"{folder}: texts are cut after {self.collate.context_length} tokens")

    def encode_text(self, **inputs: Tensor) -> Tensor:
        return self._text(**inputs)

    def encode_image(self, **inputs: Tensor) -> Tensor:
        return self._image(**inputs)

    def get_extra_state(self) -> Tensor:
        """The digest of the files, which stand for weights in fingerprints and checkpoints."""
        digest = blake2b(digest_size=16)
        for file in sorted(self._text.file.parent.iterdir()):
            with file.open("rb") as opened:
                digest.update(file.name.encode() + file_digest(opened, blake2b).digest())
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the digest of other files."""
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise ValueError(f"the files in `{self.folder}` are not those that the checkpoint was saved with")


class _Session:
    """An ONNX file, which each process opens by itself when it first runs it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def opened(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "OnnxTowers needs onnxruntime: `pip install 'fanoise-lightning[onnx]'`"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            return onnxruntime.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no other class in common
            raise ValueError(f"onnxruntime cannot open `{self.file}`, export it again: {error}") from error

    def __call__(self, **inputs: Tensor) -> Tensor:
        home = next(iter(inputs.values())).device
        (found,) = self.opened.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
        return torch.from_numpy(found).to(home)

    def __reduce__(self) -> Any:
        return _Session, (self.file,)
