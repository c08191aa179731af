"""The command line: ``fanoise fit | validate | test | predict --config recipe.yaml``."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from fanoise_lightning.callbacks import FANoise, ScoreboardWriter, SpectrumMonitor
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
            args=args,
            run=run,
        )

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's description of the encoder replace the config's: not in trust."""
        trusted = self._trusts_remote_code()
        super()._parse_ckpt_path()
        if self._trusts_remote_code() and not trusted:
            path = self.config[self.config.subcommand].ckpt_path
            raise ValueError(
                f"the checkpoint {path} asks to run the Python code that comes with its model. Read it, then "
                "pass `--model.encoder.init_args.trust_remote_code=true`"
            )

    def _trusts_remote_code(self) -> bool:
        subcommand = self.config.get("subcommand")
        key = f"{subcommand}.model.encoder.init_args.trust_remote_code"
        return bool(subcommand and self.config.get(key))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(FANoise, "noise")
        parser.add_lightning_class_args(ScoreboardWriter, "scoreboard")
        parser.add_lightning_class_args(SpectrumMonitor, "spectrum")


def main(args: Sequence[str] | None = None) -> None:
    """The ``fanoise`` command.

    Args:
        args: the command line; by default ``sys.argv[1:]``.
    """
    FANoiseCLI(args=list(args) if args is not None else None)


if __name__ == "__main__":
    main()
