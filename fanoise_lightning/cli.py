"""The command line of a trainer: ``fanoise fit | validate | test | predict --config recipe.yaml``."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from fanoise_lightning._lightning import CLASS_PATH, CheckpointMerger, is_local
from fanoise_lightning._log import report
from fanoise_lightning.callbacks import FANoise, ScoreboardWriter, SpectrumMonitor
from fanoise_lightning.callbacks._files import output_folder, refuse_a_used_folder
from fanoise_lightning.callbacks._written import report_written
from fanoise_lightning.command_parser import CommandParser, with_recipe
from fanoise_lightning.data import MMEBDataModule, PairDataModule
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.training.checkpoints import AtomicCheckpointIO, read_hyperparameters
from fanoise_lightning.training.describe import differences, public_path
from fanoise_lightning.training.devices import check_devices
from fanoise_lightning.training.trust import (
    FACTORIES,
    allowed_paths,
    check_arguments,
    import_class,
    is_under,
    named_classes,
    own_arguments,
)

__all__ = ["FANoiseCLI", "main"]

_DESCRIPTIONS = {
    "fit": "Train an encoder, with FANoise.",
    "validate": "Score an encoder on the validation data.",
    "test": "Score an encoder on the test data.",
    "predict": "Embed the evaluation data; a callback such as EmbeddingWriter keeps the embeddings.",
}
_NO_FILE = re.compile(r"(best|last|hpc)$|registry")  # what Lightning takes in place of a path


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
                "prog": "fanoise",
                "description": "Train and evaluate embedding models with FANoise.",
                **{command: {"description": text} for command, text in _DESCRIPTIONS.items()},
            },
            parser_class=CommandParser,
            args=args,
            run=run,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Lightning's, with a recipe to print where ``--print_config`` comes without a config."""
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list) and (full := with_recipe(given, self.subcommands())) != given:
            self.config = parser.parse_args(full)
        else:
            super().parse_arguments(parser, args)

    def merge_checkpoint(self) -> None:
        """Let what a checkpoint describes replace the config's, as Lightning does, if it is allowed.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if neither the config nor the checkpoint names an encoder and data, or if the
                checkpoint names what is not allowed.
        """
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path and is_local(path) and not _NO_FILE.match(path) and not Path(path).exists():
            raise FileNotFoundError(f"there is no checkpoint `{path}`")
        resumed = path if path and Path(path).is_file() else None
        if not resumed or subcommand == "fit":  # a fit needs its noise and trainer, too
            is_folder = path is not None and Path(path).is_dir()
            why = f", and {path} is a folder, which does not describe it" if is_folder else ""
            self._check_that_parts_are_named(subcommand, why)
        if resumed:
            self._merge(subcommand, resumed)
            self._check_that_parts_are_named(subcommand, f", and {path} does not describe it")

    def _check_that_parts_are_named(self, subcommand: str | None, why: str = "") -> None:
        config = self.config[subcommand] if subcommand else self.config
        missing = [f"`{name}`" for name in ("model.encoder", "data") if config.get(name) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} missing{why}: pass `--config` with a recipe "
                "(`fanoise fit --print_config` prints one), or these options"
            )

    def _merge(self, subcommand: str, path: str) -> None:
        options = self.config[subcommand]
        described = own_arguments(ContrastiveModule, read_hyperparameters(path))
        if subcommand != "fit":  # only the weights are needed
            described = {key: value for key, value in described.items() if key not in FACTORIES}
        own = options.model.as_dict()
        # what the user's config names is allowed too
        allow = (*allowed_paths(options.allow or ()), *named_classes(own))
        check_arguments(ContrastiveModule, described, allow)
        trusted = _models_with_code(own)
        from_file = {"model": described}
        if options.get("data") is None and (data := described_data(path, allow)):
            from_file["data"] = data
        if changes := differences(own.get("encoder"), described.get("encoder")):
            report(f"the encoder is that of the checkpoint {path}, not the config's: {changes}")
        try:
            self.config = self.parser.parse_object({subcommand: from_file}, self.config)
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

    def before_instantiate_classes(self) -> None:
        """Refuse a GPU that is not there before anything is downloaded."""
        check_devices(self._option("accelerator"), self._option("devices"))

    def _option(self, name: str) -> Any:
        config = self.config[self.subcommand] if self.subcommand else self.config
        return config.get(f"trainer.{name}")

    def after_instantiate_classes(self) -> None:
        """Let checkpoints describe the data too."""
        data = self.datamodule
        if data is not None and not data.hparams:
            config = self.config_dump.get("data") or {}
            known = {**config.get("init_args", {}), **config.get("dict_kwargs", {})}
            data.save_hyperparameters({CLASS_PATH: config["class_path"], **known})

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

        self._started = time.time()

    before_test = before_validate

    def before_predict(self) -> None:
        """Say before hours of work that nothing will keep them."""
        if not any(isinstance(c, BasePredictionWriter) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            report(
                "this run keeps no embeddings: add `--trainer.callbacks+=fanoise_lightning.callbacks."
                "EmbeddingWriter`, or embed your own rows with `fanoise embed`"
            )
        self.before_validate()

    def after_fit(self) -> None:
        """Say what the run wrote, and where."""
        report_written(self.trainer, self._started)

    after_validate = after_test = after_predict = after_fit

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


def described_data(path: str, allow: Iterable[str]) -> dict[str, Any] | None:
    """How a checkpoint describes its data module, checked; ``None`` if it does not.

    Raises:
        ValueError: if it names a class that is not allowed.
    """
    found = read_hyperparameters(path, key=LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    name = public_path(str(found.get(CLASS_PATH, "")))
    own = {f"fanoise_lightning.{cls.__name__}": cls for cls in (MMEBDataModule, PairDataModule)}
    if not name:
        return None
    if name not in own and not is_under(name, allow):
        raise ValueError(
            f"the checkpoint {path} describes data of the class {name!r}; if you trust it, pass "
            f"`--allow={name.partition('.')[0]}`, or else your own `--data`"
        )
    cls: Any = own.get(name) or import_class(name)
    arguments = own_arguments(cls, found)
    check_arguments(cls, arguments, allow)
    return {"class_path": name, "init_args": arguments}


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


def main(args: Sequence[str]) -> None:
    """``fanoise fit``, ``validate``, ``test`` and ``predict``; `args` start with one of these."""
    FANoiseCLI(args=None if list(args) == sys.argv[1:] else list(args))
