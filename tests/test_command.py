"""The ``fanoise`` command as people meet it: its help, its errors, and what it says at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from fanoise_lightning import ContrastiveModule, Encoder
from fanoise_lightning import __main__ as command
from fanoise_lightning._user_errors import is_users, one_line
from fanoise_lightning._version import __version__
from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.command_parser import RECIPE, with_recipe
from fanoise_lightning.training.describe import differences
from fanoise_lightning.training.devices import check_devices

main = command.main
EMOJI = Path(__file__).parents[1] / "examples" / "configs" / "emoji.yaml"


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert not end.value.code
    return capsys.readouterr().out


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of a command that ends with code 2."""
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("Seed set to 42")]
    assert line.startswith("fanoise: ")
    return line


def test_the_help_lists_every_command_lightnings_too(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    for name in {*FANoiseCLI.subcommands(), "data", "study", "compare", "figures"}:
        assert f"\n  {name} " in out
    main(["--version"])
    assert capsys.readouterr().out == f"fanoise {__version__}\n"


@pytest.mark.parametrize("args", [[], ["-h"]])
def test_without_a_command_the_help_is_shown(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(args)
    assert capsys.readouterr().out.startswith("usage: fanoise COMMAND [options]\n")


def test_lightnings_commands_get_all_arguments_the_others_those_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, list[str]]] = []
    act = lambda name: SimpleNamespace(main=lambda args: seen.append((name, list(args))))  # noqa: E731
    monkeypatch.setattr(command, "import_module", act)
    for args in (["fit", "--x"], ["--trainer.x=1", "fit"], ["data", "--root=x"]):
        main(args)
    trainer, data = "fanoise_lightning.cli", "fanoise_lightning.data.sources.download"
    assert seen == [(trainer, ["fit", "--x"]), (trainer, ["--trainer.x=1", "fit"]), (data, ["--root=x"])]


def test_after_ctrl_c_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: list[str]) -> None:
        raise KeyboardInterrupt

    a_module(interrupt, monkeypatch)
    with pytest.raises(SystemExit) as caught:
        main(["export", "a", "b"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "fanoise: interrupted\n"
    monkeypatch.setenv("FANOISE_DEBUG", "1")
    with pytest.raises(KeyboardInterrupt):
        main(["export", "a", "b"])


def test_the_help_of_fit_is_short_and_complete(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = printed(["fit", "--help"], capsys)
    assert len(out.splitlines()) < 300
    assert "torch.nn.Linear" not in out
    for word in ("InfoNCE", "SigmoidLoss", "--noise.alpha", "--ckpt_path", "detect_anomaly", "max_steps"):
        assert word in out
    losses = re.search(r"--model\.loss .*?such as ([\w., ]+)\)", " ".join(out.split()))
    assert losses is not None
    names = {name.removeprefix("fanoise_lightning.") for name in losses[1].split(", ")}
    assert names == {"InfoNCE", "MatryoshkaLoss", "SigmoidLoss"}


def test_a_recipe_is_printed_where_no_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert yaml.safe_load(RECIPE.read_text()) == yaml.safe_load(EMOJI.read_text())  # which trains in test_cli
    recipe = yaml.safe_load(printed(["fit", "--print_config"], capsys))
    assert recipe["model"]["encoder"]["init_args"]["model"] == "emoji-resnet"
    assert recipe["data"]["init_args"]["root"] == "emoji"


@pytest.mark.parametrize(
    "args", [["fit"], ["fit", "--print_config", "--config=own.yaml"], ["--print_config"]]
)
def test_arguments_that_name_a_config_or_print_none_stay(args: list[str]) -> None:
    assert with_recipe(args, ["fit"]) == args


OWN = ["--data=PairDataModule", "--data.source=a.csv"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fti"], "unknown command `fti`; did you mean `fit`?"),
        (
            ["fit", "--noise.alhpa=1"],
            "did you mean `--noise.alpha`? (`fanoise fit --help` lists the options)",
        ),
        (["fit", *OWN, "--data.batch_sise=3"], "no argument `batch_sise`; did you mean `batch_size`?"),
        (
            ["fit", "--noise.scaling=cubic"],
            "`--noise.scaling` must be `uniform`, `linear` or `sublinear`, got cubic",
        ),
        (
            ["fit", "--model.chunk_size=x"],
            "`--model.chunk_size` must be a whole number or a list such as `[1, 2]`, got x",
        ),
        (["fit", "--noise.alpha=x"], "`--noise.alpha` must be a number, got x"),
        (["fit", "--noise.relative=x"], "`--noise.relative` must be `true` or `false`, got x"),
        (["fit", "--model.metrics=mrr"], "`--model.metrics` must be a list such as `[a, b]`, got mrr"),
        (["fit", *OWN, "--data.batch_size=x"], "`--data.batch_size` must be a whole number, got x"),
        (["fit", *OWN, "--data.val_fraction=x"], "`--data.val_fraction` must be a number, got x"),
        (
            ["fit", *OWN, "--data.mask_same_target=x"],
            "`--data.mask_same_target` must be `all` or `none`, got x",
        ),
        (["fit", "--data.batch_size=3"], "name the data first: `--data PairDataModule`"),
        (
            ["fit", "--model.encoder.model=x"],
            "name the encoder first: `--model.encoder OpenClipEncoder`",
        ),
        (["fit", "--data=PairDataModule"], "PairDataModule needs `--data.source`"),
        (
            ["fit", "--data=PairDataModul"],
            "`--data`: there is no class `PairDataModul`; did you mean `PairDataModule`?",
        ),
        (
            ["fit", "--model.loss=Infonce"],
            "`--model.loss`: there is no class `Infonce`; did you mean `InfoNCE`?",
        ),
        (["fit", "--data=torch.nope.X"], "`--data`: there is no class `torch.nope.X`"),
        (
            ["fit", "--trainer.logger=CSVLoger"],
            "there is no class `CSVLoger`; did you mean `CSVLogger`?",
        ),
        (["fit", "--config=none.yaml"], "`--config`: File does not exist"),
        (["fit"], "`model.encoder` and `data` missing: pass `--config`"),
        (["validate", "--ckpt_path=none.ckpt"], "fanoise: there is no checkpoint `none.ckpt`"),
        (["validate", "--ckpt_path=/"], "`data` missing, and / is a folder, which does not describe it"),
        (["study", "none.yaml", "--folder=x"], "fanoise: none.yaml: No such file or directory"),
        (
            ["study", "none.yaml", "--folder=x", "--workers=x"],
            "`--workers` must be a whole number, got x",
        ),
        (["search", "a", "b", "--k=abc"], "`--k` must be a whole number, got abc"),
        (["embed", "a"], "`--out` missing"),
        (["embed", "--print_config"], "--print_config (`fanoise embed --help` lists the options)"),
        (["figures", "--print_config"], "--print_config (`fanoise figures --help` lists the options)"),
    ],
)
def test_a_users_error_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(args, capsys)
    assert message in line
    assert "Namespace" not in line
    assert "<class" not in line


def a_module(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(main=act))


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    a_module(lambda rest: int("a"), monkeypatch)
    with pytest.raises(ValueError, match="invalid literal"):
        main(["data"])


def test_the_help_has_no_sentence_that_breaks_off(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(["predict", "--help"], capsys)
    assert out.split("\n\n")[1].endswith(".")
    assert "Useful to" not in out
    assert "The main advantage" not in out


def test_with_debug_an_unknown_option_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANOISE_DEBUG", "1")
    with pytest.raises(ValueError, match="alhpa"):
        main(["fit", "--noise.alhpa=1"])


def test_what_lightning_finds_contradictory_is_the_users_to_put_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def contradicts(args: list[str]) -> None:
        raise MisconfigurationException("one and\n  the other")

    a_module(contradicts, monkeypatch)
    assert refused(["data"], capsys) == "fanoise: one and the other"


def test_what_is_not_implemented_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    a_module(lambda rest: Encoder().forward(), monkeypatch)
    with pytest.raises(NotImplementedError):
        main(["data"])


def test_what_a_raise_of_this_package_says_is_the_users_to_put_right() -> None:
    for call, users in (
        (lambda: check_devices("cuda", 10**6), True),
        (lambda: check_devices(None, {}[0]), False),
    ):
        with pytest.raises((ValueError, KeyError)) as caught:
            call()
        assert is_users(caught.value) is users


def test_the_error_of_a_worker_is_its_message() -> None:
    source = Path(command.__file__).with_name("pixels.py")
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/x.py", line 1, in f\n    g()\n'
        f'  File "{source}", line 3, in g\n    raise ValueError(text)\nValueError: row 3 is broken'
    )
    error = ValueError(text)
    assert is_users(error)
    assert one_line(error) == "row 3 is broken"
    assert not is_users(ValueError(text.replace(str(source), "/x.py")))
    assert not is_users(ValueError(text.replace("    raise", "    int")))


def test_the_working_directory_can_be_imported_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    main(["--version"])
    assert sys.path[-1] == str(tmp_path)


def test_a_recipe_for_gpus_is_refused_before_anything_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(FANoiseCLI, "instantiate_classes", lambda cli: pytest.fail("it was built"))
    line = refused(["fit", f"--config={EMOJI}", "--trainer.accelerator=cuda"], capsys)
    assert "no GPU on this machine" in line


def test_differences_of_encoders_are_named() -> None:
    ours = {"class_path": "fanoise_lightning.OpenClipEncoder", "init_args": {"model": "a", "size": (1, 2)}}
    theirs = {"class_path": "fanoise_lightning.OpenClipEncoder", "init_args": {"model": "b", "size": [1, 2]}}
    assert differences(ours, ours) == ""
    assert differences(ours, theirs) == "model='b' in the checkpoint, 'a' here"
    assert differences(ours, {**theirs, "class_path": "x.Y"}).startswith("x.Y in the checkpoint")


SCRIPT = "from fanoise_lightning.__main__ import COMMANDS, main\n"  # as pip writes it, in a folder of its own


def process(folder: Path, *args: str, script: str) -> SimpleNamespace:
    """Run the command in a process whose working directory is `folder`."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "fanoise").write_text(f"{script}main()\n")
    known = {name: value for name, value in os.environ.items() if name != "FANOISE_DEBUG"}
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [known.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "bin/fanoise", *args],
        cwd=folder,
        env={**known, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=250,
    )


ENCODER = """
import torch
from fanoise_lightning import Encoder

class MyEncoder(Encoder):
    embedding_dim = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.net = torch.nn.Linear(width, 8)

    def collate(self, samples):
        return {"x": torch.tensor([[len(sample.text) * 1.0] * self.width for sample in samples])}

    def forward(self, x):
        return self.net(x)
"""


def test_the_recipe_that_is_printed_for_own_data_runs_with_an_encoder_of_the_working_directory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_encoder.py").write_text(ENCODER)
    rows = [f"{'n' * number},{'t' * number}" for number in range(1, 21)]
    (tmp_path / "pairs.csv").write_text("\n".join(["name,text", *rows]))
    data = ["--data.source=pairs.csv", "--data.query=name", "--data.target=text", "--data.num_workers=0"]
    data += ["--data.batch_size=4"]
    encoder = ["--model.encoder=my_encoder.MyEncoder", "--model.encoder.width=3"]
    out = printed(["fit", "--data=PairDataModule", *data, *encoder, "--print_config"], capsys)
    assert "emoji" not in out
    (tmp_path / "recipe.yaml").write_text(out)
    short = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    with caplog.at_level("INFO", logger="fanoise_lightning"):
        main(["fit", "--config=recipe.yaml", *short])
    sys.modules.pop("my_encoder")
    assert any(line.startswith("wrote to runs/own/version_0/checkpoints: ") for line in caplog.messages)
    described = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["hyper_parameters"][
        "encoder"
    ]
    assert described == {"class_path": "my_encoder.MyEncoder", "init_args": {"width": 3}}


OPENS = f"{SCRIPT}COMMANDS['open'] = ('opens', '')\n"


@pytest.mark.parametrize("args", [["open", "none.txt"], ["--debug", "open", "none.txt"]])
def test_a_process_ends_in_one_line_or_with_debug_in_a_traceback(args: list[str], tmp_path: Path) -> None:
    (tmp_path / "opens.py").write_text("def main(args):\n    open(*args)\n")
    done = process(tmp_path, *args, script=OPENS)
    if "--debug" in args:
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback (most recent call last)")
        assert done.stderr.endswith("FileNotFoundError: [Errno 2] No such file or directory: 'none.txt'\n")
    else:
        assert done.returncode == 2
        assert done.stderr == "fanoise: none.txt: No such file or directory\n"


@pytest.mark.parametrize(
    ("args", "value", "traceback"),
    [(["data"], "0", False), (["data"], "1", True), (["data", "--debug"], "0", True)],
)
def test_debug_is_an_option_or_a_variable(
    args: list[str], value: str, traceback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_module(lambda rest: Path("/none.txt").read_text(), monkeypatch)
    monkeypatch.setenv("FANOISE_DEBUG", value)
    monkeypatch.setattr("sys.argv", ["fanoise", *args])
    with pytest.raises(FileNotFoundError if traceback else SystemExit):
        main()


class Forgetful(Encoder):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Linear(width, width)


def test_an_encoder_that_does_not_keep_its_arguments_is_warned_of_when_it_is_built() -> None:
    with pytest.warns(UserWarning, match="not describe the encoder Forgetful: it does not keep `width`"):
        ContrastiveModule(Forgetful(3))
