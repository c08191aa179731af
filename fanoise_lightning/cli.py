"""The command line of a trainer: ``fanoise fit | validate | test | predict --config recipe.yaml``."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from fanoise_lightning._lightning import CheckpointMerger
from fanoise_lightning.callbacks import FANoise, ScoreboardWriter, SpectrumMonitor
from fanoise_lightning.callbacks._files import output_folder, refuse_a_used_folder
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.training.checkpoints import AtomicCheckpointIO, read_hyperparameters
from fanoise_lightning.training.trust import (
    FACTORIES,
    allowed_paths,
    check_arguments,
    named_classes,
    own_arguments,
)

__all__ = ["FANoiseCLI"]


class FANoiseCLI(CheckpointMerger, LightningCLI):
    """LightningCLI over ContrastiveModule and any data module, with three callbacks always there.

    ``--noise.*`` sets :class:`~fanoise_lightning.callbacks.FANoise` (``--noise.alpha=0`` is the baseline
    without noise), ``--scoreboard.*`` and ``--spectrum.*`` what is written about the run. Everything else is
    Lightning's: ``--trainer.*``, ``--model.*``, ``--data.*``, ``--print_config``.

    Args:
        args: the command line as a list, or a dict; by default ``sys.argv``.
        run: whether to run the subcommand; ``False`` only builds model, data and trainer.
    """

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        super().__init__(
            ContrastiveModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # the module has its own factories, stepped once a step
            seed_everything_default=42,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "description": "Train and evaluate embedding models with FANoise. `fanoise data --root DIR` "
                "downloads MMEB and checks it; see `fanoise data --help`."
            },
            args=args,
            run=run,
        )

    def merge_checkpoint(self) -> None:
        """Let what a checkpoint describes replace the config's, as Lightning does, if it is allowed."""
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if not path or not Path(path).is_file():
            return
        options = self.config[subcommand]
        described = own_arguments(ContrastiveModule, read_hyperparameters(path))
        if subcommand != "fit":  # only the weights are needed
            described = {key: value for key, value in described.items() if key not in FACTORIES}
        own = options.model.as_dict()
        # what the user's config names is allowed too
        allow = (*allowed_paths(options.allow or ()), *named_classes(own))
        check_arguments(ContrastiveModule, described, allow)
        trusted = _models_with_code(own)
        try:
            self.config = self.parser.parse_object({subcommand: {"model": described}}, self.config)
        except SystemExit:
            sys.stderr.write(f"this is how the checkpoint {path} describes its module\n")
            raise
        merged = _models_with_code(self.config[subcommand].model.as_dict())
        if others := (merged | _models_with_code(described)) - trusted:
            raise ValueError(
                f"the checkpoint {path} asks to run the Python code that comes with its model "
                f"{min(others)!r}. Read it, then pass "
                "`--model.encoder.init_args.trust_remote_code=true` and that `model`"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's, with checkpoint files that are whole or not there."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Refuse another run's folder, before the loggers touch it."""
        # a requeued job is resumed unasked; the callback knows later
        if not self.config.fit.get("ckpt_path") and not SLURMEnvironment.detect():
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, ScoreboardWriter):
                    refuse_a_used_folder(self.trainer, output_folder(self.trainer, callback.path))
        self.before_validate()

    def before_validate(self) -> None:
        """Keep the metrics of a run that is continued in its folder."""
        for logger in self.trainer.loggers:
            if isinstance(logger, CSVLogger):
                _set_aside(Path(logger.log_dir) / "metrics.csv")

    before_test = before_predict = before_validate

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--allow",
            type=list[str] | str | None,
            default=None,
            help="Packages, modules or classes (dotted paths) that a checkpoint may name, besides this "
            "package's and torch's modules, optimisers and schedules, and the classes that the config names.",
        )
        parser.add_lightning_class_args(FANoise, "noise")
        parser.add_lightning_class_args(ScoreboardWriter, "scoreboard")
        parser.add_lightning_class_args(SpectrumMonitor, "spectrum")


def _models_with_code(config: Any) -> set[str]:
    """The models with Python code that a config allows to run."""
    if isinstance(config, dict):
        own = {str(config.get("model"))} if config.get("trust_remote_code") else set()
        return own.union(*map(_models_with_code, config.values()))
    return set().union(*map(_models_with_code, config)) if isinstance(config, (list, tuple)) else set()


@rank_zero_only
def _set_aside(path: Path) -> None:
    """Rename ``metrics.csv`` to ``metrics.1.csv``, or the next number: a CSVLogger deletes what it finds."""
    if path.is_file():
        names = (path.with_suffix(f".{number}.csv") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
