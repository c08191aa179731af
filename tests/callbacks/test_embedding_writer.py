from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fanoise_lightning.callbacks.embedding_writer import EmbeddingWriter


class References(Dataset):
    """The sides of a subset in reverse order; the embedding of side i is (i, i)."""

    def __init__(self, name: str, size: int) -> None:
        self.subset = SimpleNamespace(name=name)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        if position >= self.size:
            raise IndexError
        return self.size - 1 - position


class Predictor(LightningModule):
    """Embeds all sides but those in ``broken``."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.broken = torch.tensor(broken)

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        index = batch[~torch.isin(batch, self.broken)]
        return {"index": index, "embeddings": index[:, None].float().expand(-1, 2)}


def predict(
    root: Path, *datasets: Any, module: Predictor | None = None, writer: Any = None, **s: Any
) -> None:
    s = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, **s}
    writer = writer or EmbeddingWriter(str(root / "out"))
    trainer = Trainer(accelerator="cpu", default_root_dir=root, callbacks=[writer], **s)
    loaders = [DataLoader(dataset, batch_size=3) for dataset in datasets]
    trainer.predict(module or Predictor(), loaders, return_predictions=False)


def test_each_subset_has_a_file_with_rows_in_order(tmp_path: Path) -> None:
    predict(tmp_path, References("CIRR", 7), References("VOC2007", 3))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"CIRR.safetensors", "VOC2007.safetensors"}
    for name, size in (("CIRR", 7), ("VOC2007", 3)):
        written = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert written["index"].tolist() == list(range(size))
        assert written["embeddings"].tolist() == [[i, i] for i in range(size)]


def test_the_home_of_the_user_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    predict(tmp_path, References("CIRR", 7), writer=EmbeddingWriter("~/mine"))
    assert (tmp_path / "mine" / "CIRR.safetensors").is_file()


def test_a_single_loader_is_enough(tmp_path: Path) -> None:
    writer = EmbeddingWriter()
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[writer], logger=False)
    trainer.predict(Predictor(), DataLoader(References("CIRR", 4)))
    assert len(load_file(tmp_path / "CIRR.safetensors")["index"]) == 4


def test_broken_sides_have_no_row(tmp_path: Path) -> None:
    predict(tmp_path, References("CIRR", 5), module=Predictor(broken=(4, 3, 2)))  # the whole first batch
    assert load_file(tmp_path / "out" / "CIRR.safetensors")["index"].tolist() == [0, 1]


def test_a_subset_without_embeddings_has_no_file(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing to write to CIRR.safetensors"):
        predict(tmp_path, References("CIRR", 2), References("VOC2007", 3), module=Predictor(broken=(0, 1)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["VOC2007.safetensors"]


@pytest.mark.parametrize("name", ["../CIRR", "/tmp/CIRR", "a/b", "..\\CIRR", "..", ".", "", "C:CIRR"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        predict(tmp_path, References(name, 2))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_subsets_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['CIRR'\] appear more than once"):
        predict(tmp_path, References("CIRR", 2), References("CIRR", 3))


def test_a_data_set_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the list of predict dataloader 0 does not have"):
        predict(tmp_path, [torch.tensor(0), torch.tensor(1)])


@pytest.mark.slow
def test_each_rank_writes_its_own_rows(tmp_path: Path) -> None:
    predict(tmp_path, References("CIRR", 5), devices=2, strategy="ddp_fork")
    parts = [load_file(tmp_path / "out" / f"CIRR.rank{rank}.safetensors") for rank in range(2)]
    assert sorted(torch.cat([part["index"] for part in parts]).tolist()) == [0, 1, 2, 3, 4]
