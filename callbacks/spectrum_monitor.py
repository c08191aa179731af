"""Records and draws the singular values of the features that enter the loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fanoise_lightning._checks import check_at_least
from fanoise_lightning._lightning import batches_that_stepped
from fanoise_lightning.callbacks._features import FeatureFinder
from fanoise_lightning.callbacks._files import output_folder, whole_file, write_json
from fanoise_lightning.callbacks._hooks import hook_after, hook_before
from fanoise_lightning.callbacks._loss_search import find_loss
from fanoise_lightning.callbacks._repeats import trains
from fanoise_lightning.figures.spectra import side_spectrum, spectrum_figure


class SpectrumMonitor(Callback):
    """Record the clean and noisy spectra of queries and targets during training, and draw the last ones.

    The features are read where they enter the loss module: the clean ones before all other hooks, the noisy
    ones after them. So :class:`FANoise` may come before or after in the list of callbacks, or be missing.
    Only rank 0 records, and only its own batch. At the end of the fit, even an interrupted one, it writes
    ``spectrum.json`` and ``spectrum.png``; with ``fast_dev_run`` it writes nothing. The JSON file holds::

        {"skipped_batches": 0,                              # monitored batches with NaN or infinite features
         "spectra": [{"step": 0, "sides": {
             "query": {"batch_size": B, "dim": D, "clean": [...],              # min(B, D) values
                       "noisy": [...], "noise": [...], "noise_rms": 0.01},     # if there is noise
             "target": {...}},
             "alignment": 0.7, "uniformity": {"query": -3.1, "target": -3.2}}, ...]}

    Alignment and uniformity (Wang and Isola, ICML 2020) are those of the clean features, normalised: lower is
    better. A batch of one row has no uniformity; a call without a target for each query has no alignment.

    Args:
        target: the dotted path of the loss module; by default it is found as :class:`FANoise` finds it.
        every_n_steps: record every n-th step; by default the trainer's ``log_every_n_steps``, where 0 means
            never.
        path: the folder to write to; by default the logger's, or else the trainer's ``default_root_dir``.

    Raises:
        ValueError: if ``every_n_steps`` is not positive; at the start of the fit, unless exactly one loss
            module is found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SpectrumMonitor(every_n_steps=100)], logger=False)
    """

    def __init__(
        self, target: str | None = None, every_n_steps: int | None = None, path: str | Path | None = None
    ) -> None:
        if every_n_steps is not None:
            check_at_least("every_n_steps", every_n_steps, 1)
        self.target = target
        self.every_n_steps = every_n_steps
        self.path = path
        self.spectra: list[dict[str, Any]] = []
        self.skipped_batches = 0
        self._clean: dict[str, Tensor] = {}
        self._last_step = -1
        self._folder: Path | None = None
        self._handles: list[RemovableHandle] = []
        self._finder: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # a module may hold its callback: a copy must not copy the trainer too
        return {**self.__dict__, "_handles": [], "_finder": None}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        self.spectra, self.skipped_batches, self._last_step = [], 0, -1
        self._folder = output_folder(trainer, self.path)  # on all ranks, as it is broadcast
        _, loss = find_loss(pl_module, self.target)
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and every:
            self._finder = FeatureFinder(loss)
            self._handles = [
                hook_before(loss, partial(self._before, trainer, every), first=True),
                hook_after(loss, self._after),
            ]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()

    def _before(
        self, trainer: Trainer, every: int, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._clean = {}
        step = batches_that_stepped(trainer)
        # Once per step: with accumulated gradients, the loss is called several times in it.
        if trainer.training and trains() and step % every == 0 and step != self._last_step:
            self._last_step = step
            self._clean = self._read(args, kwargs)

    def _after(self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        clean, self._clean = self._clean, {}
        if not clean:
            return
        noisy = self._read(args, kwargs)
        if all(x.isfinite().all() for x in (*clean.values(), *noisy.values())):
            sides = {side: side_spectrum(clean[side], noisy[side]) for side in clean}
            self.spectra.append({"step": self._last_step, "sides": sides, **_on_the_sphere(clean)})
        else:
            self.skipped_batches += 1

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """The features (B, D) of each side, without hard negatives."""
        call = self._finder.find(args, kwargs)
        return {} if call is None else {side: x[0].detach() for side, x in call.features().items()}

    def _finish(self, trainer: Trainer) -> None:
        """Remove the hooks and write; a second call does nothing."""
        if not self._handles:
            return
        self._remove_hooks()
        if self._folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not self.spectra:
            rank_zero_warn(
                f"SpectrumMonitor has nothing to draw: it saw {self.skipped_batches} batches with features "
                "that are not finite, and no other call of the loss module"
            )
            return
        write_json(
            self._folder / "spectrum.json", {"skipped_batches": self.skipped_batches, "spectra": self.spectra}
        )
        with whole_file(self._folder / "spectrum.png") as unfinished:
            spectrum_figure(self.spectra).savefig(unfinished, format="png")

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._clean = {}


def _on_the_sphere(clean: dict[str, Tensor]) -> dict[str, Any]:
    """The alignment and the uniformity of clean features, as far as they have any."""
    # not to slow the callback's import
    from fanoise_lightning.evaluation.alignment import alignment, uniformity

    spread = {side: _rounded(uniformity(x)) for side, x in clean.items() if len(x) > 1}
    known: dict[str, Any] = {"uniformity": spread} if spread else {}
    if len(clean) == 2 and len({x.shape for x in clean.values()}) == 1:
        known["alignment"] = _rounded(alignment(clean["query"], clean["target"]))
    return known


def _rounded(value: Tensor) -> float:
    return float(f"{value.item():.6g}")
