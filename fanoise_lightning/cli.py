"""The command line: ``fanoise fit | validate | test | predict --config recipe.yaml | data --root folder``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from fanoise_lightning.callbacks import FANoise, ScoreboardWriter, SpectrumMonitor
from fanoise_lightning.checkpoints import AtomicCheckpointIO, naming_the_file
from fanoise_lightning.data import download
from fanoise_lightning.module import ContrastiveModule

__all__ = ["FANoiseCLI", "main"]


class FANoiseCLI(LightningCLI):
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
                "downloads MMEB and checks it; `fanoise data --help` tells more."
            },
            args=args,
            run=run,
        )

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's description of the encoder replace the config's: not in trust."""
        trusted = self._trusts_remote_code()
        with naming_the_file(self.config.get(f"{self.config.get('subcommand')}.ckpt_path")):
            super()._parse_ckpt_path()
        if self._trusts_remote_code() and not trusted:
            path = self.config[self.config.subcommand].ckpt_path
            raise ValueError(
                f"the checkpoint {path} asks to run the Python code that comes with its model. Read it, then "
                "pass `--model.encoder.init_args.trust_remote_code=true`"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's, with checkpoint files that are whole or not there."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Keep the metrics of a run that goes on in its folder."""
        for logger in self.trainer.loggers:
            if isinstance(logger, CSVLogger):
                _set_aside(Path(logger.log_dir) / "metrics.csv")

    before_validate = before_test = before_predict = before_fit

    def _trusts_remote_code(self) -> bool:
        subcommand = self.config.get("subcommand")
        key = f"{subcommand}.model.encoder.init_args.trust_remote_code"
        return bool(subcommand and self.config.get(key))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(FANoise, "noise")
        parser.add_lightning_class_args(ScoreboardWriter, "scoreboard")
        parser.add_lightning_class_args(SpectrumMonitor, "spectrum")


@rank_zero_only
def _set_aside(path: Path) -> None:
    """Rename ``metrics.csv`` to ``metrics.1.csv``, or the next number: a CSVLogger deletes what it finds."""
    if path.is_file():
        names = (path.with_suffix(f".{number}.csv") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def main(args: Sequence[str] | None = None) -> None:
    """The ``fanoise`` command.

    Args:
        args: the command line; by default ``sys.argv[1:]``.
    """
    given = sys.argv[1:] if args is None else list(args)
    if given[:1] == ["data"]:  # LightningCLI's subcommands are methods of the trainer
        download.main(given[1:])
    else:
        FANoiseCLI(args=None if args is None else given)


if __name__ == "__main__":
    main()
