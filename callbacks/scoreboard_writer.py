"""Prints the scoreboard after each evaluation and saves it as JSON."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from fanoise_lightning._log import report
from fanoise_lightning._version import __version__
from fanoise_lightning.callbacks._files import output_folder, refuse_a_used_folder, write_json

if TYPE_CHECKING:
    from fanoise_lightning.evaluation.receipt import Receipt
    from fanoise_lightning.evaluation.scoreboard import Scoreboard
    from fanoise_lightning.evaluation.scores import ReferenceScores


class ScoreboardWriter(Callback):
    """Print the scoreboard after validation and test, and write it as JSON.

    Validation writes ``scores.json`` and test writes ``test_scores.json``, overwriting the previous one::

        {"step": 400, "epoch": 3,
         "run": {"seed": 42, "version": "0.2.0", "data": "9f..."},  # the data: a fingerprint
         "metrics": {"train/loss": 0.7, ...},                # the latest that were logged in training
         "scoreboard": {...},                                # Scoreboard.to_dict: fractions, 0 to 1
         "published": {"backbone": "Qwen2-VL-2B", "VLM2Vec": {"subsets": {...}, "means": {...}}, ...},
         "receipts": {"VLM2Vec, Qwen2-VL-2B": {"subsets": {"CIRR": {"published": 0.468,
                      "difference": 0.011, "inside": true}, ...}, "means": {...}, ...}, ...},
         "history": [{"step": 200, "epoch": 1, "means": {"retrieval": 0.21, "IND": 0.3, ...}}, ...]}

    Paired comparisons of runs need what each query scored, in the order of the subset. That is written to
    ``outcomes.json`` and ``test_outcomes.json``, where 0.5 is a tie of two and null a skipped query::

        {"step": 400, "outcomes": {"CIRR": [1, 0, 0.5, null, ...], ...}}

    The history has every validation of the run, even if it was resumed, the latest last, and further metrics
    of the module as ``"metrics": {"recall_at_10": {"retrieval": 0.4, ...}, ...}``. The sanity check prints
    and writes nothing; ``fast_dev_run`` writes nothing.

    Args:
        path: the folder to write to; ``None`` for the logger's, or the trainer's ``default_root_dir``.
        published: show what VLM2Vec and FANoise reached on MMEB with this backbone beside the scores:
            ``"Phi-3.5-V"``, ``"LLaVA-1.6-LR"``, ``"LLaVA-1.6-HR"``, ``"Qwen2-VL-2B"`` or ``"Qwen2-VL-7B"``.
            In an evaluation on some of the subsets, a mean is shown if the scores of all of them were
            published. Below the scores, a line counts those within sampling error of the published ones, and
            another names the models whose overall mean is; ``"receipts"`` has all comparisons.
        leaderboard: write the file that MMEB's leaderboard takes, whose name is the model's, such as
            ``"My-Model-2B.json"``. What only you know, such as the model's URL, is null in it.

    Raises:
        ValueError: if the backbone is unknown; if ``leaderboard`` is a folder, or a query has several right
            answers for it; if the LightningModule has no attribute ``scoreboard``; if a new fit starts in a
            folder with another run's checkpoints.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ScoreboardWriter()], logger=False)
    """

    def __init__(
        self,
        path: str | Path | None = None,
        published: str | None = None,
        leaderboard: str | Path | None = None,
    ) -> None:
        leaderboard = None if leaderboard is None else Path(leaderboard).expanduser()
        if leaderboard is not None and leaderboard.is_dir():
            raise ValueError(f"`leaderboard={leaderboard}` is a folder: name a file in it, <model>.json")
        self.path, self.leaderboard = path, leaderboard
        self.published = published
        self._references = {} if published is None else _references(published)
        self.history: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "scoreboard"):
            raise ValueError(
                f"ScoreboardWriter reads `scoreboard`, which {type(pl_module).__name__} does not have: use "
                "a ContrastiveModule, or set it to a Scoreboard after validation (None before)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not earlier: only now is it known whether the fit is resumed
        refuse_a_used_folder(trainer, output_folder(trainer, self.path))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board: Any = pl_module.scoreboard
        if trainer.sanity_checking or board is None:
            return
        means = {name: mean.precision for name, mean in board.means.items()}
        self.history.append({**_when(trainer), "means": means, **_history_of_metrics(board)})
        self._show(trainer, pl_module, "validation", "scores.json", history=self.history)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.scoreboard is not None:
            self._show(trainer, pl_module, "test", "test_scores.json")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])

    def _show(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, name: str, **extra: Any
    ) -> None:
        board: Any = pl_module.scoreboard
        folder = output_folder(trainer, self.path)  # on all ranks, since it is broadcast
        if not trainer.is_global_zero:
            return
        # Not print(): the module prints around a live progress bar.
        pl_module.print(_render(board, f"{stage}, step {trainer.global_step}", self._references))
        if board.sides_per_second is not None:
            pl_module.print(f"{board.sides_per_second:,.0f} queries and targets embedded per second")
        receipts = _receipts(board) if self._references else []
        if self.published is not None:
            for line in _lines(receipts, self.published):
                pl_module.print(line)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            run = {"seed": _seed(), "version": __version__, "data": _data_digest(trainer, stage)}
            latest = {"run": run, "metrics": _metrics(trainer)}
            values = {**_when(trainer), **latest, "scoreboard": board.to_dict()}
            if self._references:
                others = {name: board.beside(scores) for name, scores in self._references.items()}
                values["published"] = {"backbone": self.published, **others}
                values["receipts"] = {receipt.model: receipt.to_dict() for receipt in receipts}
            outcomes = {subset.name: subset.outcomes for subset in board.subsets}
            if all(known is not None for known in outcomes.values()):
                lists = {subset: list(map(_plain, known.tolist())) for subset, known in outcomes.items()}
                file = folder / name.replace("scores", "outcomes")
                write_json(file, {"step": trainer.global_step, "outcomes": lists})
            write_json(folder / name, {**values, **extra}, indent=1)
            if self.leaderboard is not None:
                _write_leaderboard(self.leaderboard, board, pl_module)


def _history_of_metrics(board: Scoreboard) -> dict[str, Any]:
    values: dict[str, dict[str, float]] = {}
    for mean, score in board.means.items():
        for metric, found in score.metrics.items():
            values.setdefault(metric, {})[mean] = found.value
    return {"metrics": values} if values else {}


def _plain(outcome: float) -> float | None:
    if math.isnan(outcome):
        return None
    return int(outcome) if outcome in (0, 1) else outcome


def _seed() -> int | None:
    seed = os.environ.get("PL_GLOBAL_SEED")  # where seed_everything leaves it
    return None if seed is None else int(seed)


def _data_digest(trainer: Trainer, stage: str) -> str | None:
    loader: Any = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    return getattr(getattr(loader, "dataset", None), "digest", None)


def _metrics(trainer: Trainer) -> dict[str, float]:
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        name: value
        for name, value in values.items()
        if math.isfinite(value) and not name.startswith(("val/", "test/"))
    }


def _when(trainer: Trainer) -> dict[str, int]:
    return {"step": trainer.global_step, "epoch": trainer.current_epoch}


def _references(backbone: str) -> dict[str, ReferenceScores]:
    from fanoise_lightning.evaluation.mmeb_published import published  # only if asked for

    return published(backbone)


def _receipts(board: Scoreboard) -> list[Receipt]:
    from fanoise_lightning.evaluation.mmeb_published import all_published
    from fanoise_lightning.evaluation.receipt import receipts

    return receipts(board, all_published())


def _lines(receipts: list[Receipt], backbone: str) -> list[str]:
    if not receipts:
        return ["no published scores to compare with: none of these subsets is one of MMEB's"]
    lines = [receipt.line() for receipt in receipts if receipt.model.endswith(f", {backbone}")]
    near = [r.model for r in receipts if "overall" in r.means and r.means["overall"].inside]
    return [*lines, f"overall within sampling error of: {'; '.join(near) or 'none'}"]


def _write_leaderboard(path: Path, board: Scoreboard, module: LightningModule) -> None:
    from fanoise_lightning.evaluation.leaderboard import leaderboard, leaderboard_gaps

    encoder: Any = getattr(module, "encoder", module)
    backbone = getattr(encoder, "model", None)
    size = sum(parameter.numel() for parameter in encoder.parameters()) / 1e9
    known = {
        "model_name": path.stem,
        "model_backbone": Path(backbone).name if isinstance(backbone, str) else None,
        "model_size": round(size, 3),
        "embedding_dimension": getattr(encoder, "embedding_dim", None),
        "max_length_tokens": getattr(encoder, "max_length", None),
    }
    write_json(path, leaderboard(board, **known), indent=4)
    report(f"wrote {path}, for MMEB's leaderboard")
    if gaps := leaderboard_gaps(board):
        rank_zero_warn(f"{path} is not complete for MMEB's leaderboard: {gaps}")


def _render(board: Scoreboard, title: str, references: dict[str, ReferenceScores]) -> str:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # in a log file, rich would needlessly cut the table to 80 columns
        console.width = 200
    with console.capture() as capture:
        console.print(board.table(title, references))
    return capture.get()
