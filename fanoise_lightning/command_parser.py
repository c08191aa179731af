"""The parser of the trainer's commands: short help, one-line errors, and a recipe to start from."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from fanoise_lightning._names import HOME
from fanoise_lightning._user_errors import OneLineErrors
from fanoise_lightning.losses.in_batch_loss import InBatchLoss

__all__ = ["OWN_DATA", "RECIPE", "CommandParser", "with_recipe"]

RECIPE = Path(__file__).with_name("recipe.yaml")
"""What ``--print_config`` prints without a config: the main job, which runs without a download."""

OWN_DATA = Path(__file__).with_name("recipe_own_data.yaml")
"""What it prints with the data that ``--data`` names: a pretrained encoder, fine-tuned."""

COMMON = [
    "accelerator",
    "devices",
    "strategy",
    "precision",
    "max_epochs",
    "max_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "limit_val_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "logger",
    "callbacks",
    "default_root_dir",
    "fast_dev_run",
]
"""The trainer's options that the help explains; it lists the others."""

_TRAINER = "trainer."
_OF_METHODS = ("ckpt_path", "weights_only", "verbose", "return_predictions")
_PACKAGE = "fanoise_lightning."


class ShortHelp(DefaultHelpFormatter):
    """Says what the options of this package do; of Lightning's, the common ones get a sentence."""

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any) -> None:
        super().add_usage(f"{self._prog.replace(' [options]', '')} [options]", actions, *args, **kwargs)

    def add_arguments(self, actions: Iterable[Action]) -> None:
        actions = list(actions)
        shown = [action for action in actions if _is_shown(action)]
        super().add_arguments(shown)
        hidden = [a.dest.removeprefix(_TRAINER) for a in actions if a not in shown and _is_option(a)]
        if hidden:
            self.add_text(
                f"More options of Lightning's trainer ({_TRAINER}*): {', '.join(hidden)}; see "
                "https://lightning.ai/docs/pytorch/stable/common/trainer.html"
            )

    def _get_help_string(self, action: Action) -> str:
        text = _without_foreign_classes(super()._get_help_string(action), action.dest)
        if not action.dest.startswith(_TRAINER) and action.dest not in _OF_METHODS:
            return text
        sentence = re.split(r"(?<=[.!])\s|(?<=\))\s*\(", action.help or "", maxsplit=1)[0]
        return f"{' '.join(sentence.split())} (default: %(default)s)"


def _is_option(action: Action) -> bool:
    return action.dest.startswith(_TRAINER) and not action.option_strings[0].endswith(".help")


def _is_shown(action: Action) -> bool:
    return not action.dest.startswith(_TRAINER) or action.dest.removeprefix(_TRAINER) in COMMON


def _without_foreign_classes(text: str, option: str) -> str:
    """Of the classes that an option can take, only those of this package: torch alone has hundreds."""

    def own(match: re.Match[str]) -> str:
        names = [name for name in match[1].split(", ") if name.removeprefix(_PACKAGE) in HOME]
        if option == "model.loss":  # takes any module, but few are losses
            losses = {cls.__name__ for cls in InBatchLoss.__subclasses__()}
            names = [name for name in names if name.removeprefix(_PACKAGE) in losses]
        return f", such as {', '.join(names)})" if names else ")"

    return re.sub(r", known subclasses: ([^)]*)\)", own, text)


class CommandParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser, with `ShortHelp` and one-line errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, **kwargs})

    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """Lightning's; but no class has to be named before it is known whether a checkpoint does."""
        names = super().add_lightning_class_args(lightning_class, nested_key, subclass_mode, required=False)
        for action in self._actions:
            if action.dest.startswith(f"{nested_key}."):
                action.required = False
        if nested_key == "data":  # Lightning's own docstring ends in a list
            self._action_groups[-1].title = "Where queries and targets come from"
        return names

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """jsonargparse's, under a heading of its own: the first lines of Lightning's docstrings are cut."""
        names = super().add_method_arguments(*args, **kwargs)
        self._action_groups[-1].title = "Of this run"
        return names


def with_recipe(args: list[str], commands: Iterable[str]) -> list[str]:
    """The arguments, with a recipe as the config if they ask to print a config and name none."""
    prints = any(arg.startswith("--print_config") for arg in args)
    named = any(re.match(r"-c$|-c=|--config(=|$)", arg) for arg in args)
    place = next((number for number, arg in enumerate(args, 1) if arg in set(commands)), None)
    if not prints or named or place is None:
        return args
    own = any(re.match(r"--data(=|$)", arg) for arg in args)
    return [*args[:place], f"--config={OWN_DATA if own else RECIPE}", *args[place:]]
