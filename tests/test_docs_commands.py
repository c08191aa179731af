"""The commands and configs of the documentation are those that ``fanoise`` accepts. Nothing is run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from fanoise_lightning.__main__ import main
from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.data.sources import download
from fanoise_lightning.export import export_command
from fanoise_lightning.search import embed_command, search_command
from fanoise_lightning.study import compare_command, figures_command, study_command
from fanoise_lightning.study.plan import Study
from fanoise_lightning.study.resolve import fingerprints

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
YAML = {"own_pairs.md": "pairs.yaml", "study.md": "study.yaml", "encoders.md": "encoder.yaml"}
ACTS = [  # what a command does once it has read its arguments
    (FANoiseCLI, "merge_checkpoint"),
    (download, "download"),
    (study_command, "run_study"),
    (compare_command, "compare"),
    (embed_command, "model_of_checkpoint"),
    (export_command, "model_of_checkpoint"),
    (search_command, "_search"),
    (figures_command, "draw"),
]


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of ``fanoise`` wherever a line of a page has it."""
    for block in blocks(page, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.findall(r"(?:^|\s)fanoise (.*?)(?:&&|$)", line):
                yield shlex.split(command, comments=True)


COMMANDS = [(page, args) for page in PAGES for args in commands(page)]


class Accepted(Exception):
    """The command has read its arguments."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the pages name, where commands end as soon as they would act."""
    configs = ROOT / "examples" / "configs"
    shutil.copytree(configs, tmp_path / "examples" / "configs")
    shutil.copy(configs / "emoji.yaml", tmp_path)
    for name in ("recipe.yaml", "..."):  # what the pages call a config of the reader's
        shutil.copy(configs / "qwen2_vl_2b.yaml", tmp_path / name)
    for page in PAGES:
        for text in blocks(page, "yaml"):
            (tmp_path / YAML[page.name]).write_text(text)
    for owner, name in ACTS:

        @wraps(getattr(owner, name))
        def accept(*args: Any, **kwargs: Any) -> None:
            raise Accepted

        monkeypatch.setattr(owner, name, accept)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "the reader's")
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
    return tmp_path


@pytest.mark.parametrize(
    ("page", "args"), COMMANDS, ids=[f"{page.stem}: {args[0]}" for page, args in COMMANDS]
)
def test_a_command_of_a_page_is_accepted(page: Path, args: list[str], folder: Path) -> None:
    with pytest.raises((Accepted, SystemExit)) as end:
        main(args)
    assert getattr(end.value, "code", 0) == 0  # --print_config exits with that


def test_a_wrong_option_is_not_accepted(folder: Path) -> None:
    for args in (
        "fit --config=recipe.yaml --noise.alhpa=0",
        "data --rot=mmeb",
        "compare runs",
        "study a.yaml",
        "search index a --hmtl=a.html",
    ):
        with pytest.raises(SystemExit) as end:
            main(args.split())
        assert end.value.code == 2


def test_the_encoders_page_has_options_of_an_encoder(folder: Path) -> None:
    with pytest.raises(Accepted):
        main(["fit", "--config=recipe.yaml", "--config=encoder.yaml"])


def test_the_study_page_has_a_study(folder: Path) -> None:
    study = Study.load("study.yaml")
    assert len(fingerprints(study)) == len(study.arms) * len(study.regimes)
