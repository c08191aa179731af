"""MMEB, or any evaluation subsets of a data module, as a benchmark of mteb."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

from fanoise_lightning.data.batches.skipped import SkipLimit, SkipLog
from fanoise_lightning.data.datamodule import ContrastiveDataModule
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.precision_at_one import subset_result
from fanoise_lightning.evaluation.scores import group_by_mean
from fanoise_lightning.export.mteb_data import SplitReader, modalities, outcomes
from fanoise_lightning.export.mteb_metadata import mmeb_metadata

__all__ = ["RefusedError", "import_mteb", "mmeb_benchmark"]


class RefusedError(ValueError):
    """An encoder cannot take an item.

    Attributes:
        item: its id in mteb's tables.
    """

    def __init__(self, item: str, why: str) -> None:
        super().__init__(why)
        self.item = item


def mmeb_benchmark(data: ContrastiveDataModule, name: str | None = None) -> Any:
    """The evaluation subsets of a data module as an ``mteb.Benchmark``, which any model of mteb can run.

    Each subset is a retrieval task in which a query ranks its own candidates. Its main score,
    ``precision_at_1``, is the scoreboard's: a tie counts 1 / (number tied). ``hit_rate_at_1`` is mteb's,
    where ties are decided by the ids of the candidates. ``get_score`` gives the means of the scoreboard, by
    their names there.

    Rows are read at once; the pictures of a subset when its task runs, and decoded batch by batch. A query
    whose own picture or right answers cannot be read is left out, and counted in ``num_skipped``; if more
    cannot be read than the `max_skipped` of `data` allows, the task is an error.

    mteb keeps one result of each task and revision of a model. Where that is of other rows or candidates, the
    task runs again and replaces it.

    Args:
        data: the subsets, such as ``MMEBDataModule("mmeb")``. From the hub, pass it ``train_subsets=[]`` to
            download nothing to train on.
        name: what results call the benchmark; its tasks are called ``"{name}-{subset}"``. ``"MMEB"`` by
            default, if all subsets are MMEB's.

    Returns:
        The benchmark. It is a sequence of tasks, too.

    Raises:
        ImportError: if mteb is not installed.
        ValueError: if subsets are not MMEB's and there is no `name`; and whatever `data` raises.

    Example:
        >>> benchmark = mmeb_benchmark(MMEBDataModule("mmeb"))                        # doctest: +SKIP
        >>> result = mteb.evaluate(MtebEncoder(module, "me/my-model"), benchmark)     # doctest: +SKIP
        >>> benchmark.get_score([result])["me/my-model"]["overall"]                   # doctest: +SKIP
        0.601
    """
    import_mteb()
    data.prepare_data()
    data.setup("validate")
    suite = data.eval_suite
    assert suite is not None
    datasets = suite.subsets
    foreign = [dataset.subset.name for dataset in datasets if dataset.subset.name not in CATALOG]
    if name is None and foreign:
        more = ", ..." if len(foreign) > 3 else ""
        raise ValueError(
            f"the subsets {', '.join(foreign[:3])}{more} are not MMEB's: pass `name`, what results call your "
            "benchmark"
        )
    name = name or "MMEB"
    limit = SkipLimit.of_share("evaluation items", suite.sizes, data.max_skipped)
    skips = SkipLog(limit, len(suite))
    readers = [SplitReader(suite, number, skips) for number in range(len(datasets))]
    tasks = [_task(reader, f"{name}-{reader.dataset.subset.name}") for reader in readers]
    return _benchmark_class()(
        name=name,
        tasks=tasks,
        description=f"{len(tasks)} multimodal retrieval tasks; a query ranks its own candidates.",
        reference=tasks[0].metadata.reference,
        citation=tasks[0].metadata.bibtex_citation,
    )


def import_mteb() -> None:
    """Raise ImportError if mteb is not installed, with how to install it."""
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise ImportError("MMEB in mteb needs mteb: `pip install mteb`") from error


@cache
def _benchmark_class() -> Any:
    from mteb.benchmarks.benchmark import Benchmark

    class WithMeans(Benchmark):
        """A benchmark whose means are those of the scoreboard."""

        def get_score(self, results: Any, *, raise_error: bool = False) -> dict[str, dict[str, float | None]]:
            """The means of each model, ``None`` if a task of theirs has no result.

            Args:
                results: what ``mteb.evaluate`` returned for each model, in a list or as `BenchmarkResults`.
                raise_error: raise ValueError instead.

            Raises:
                ValueError: if a result is of other data than the benchmark's.
            """
            return {result.model_name: self._means(result, raise_error) for result in results}

        def _means(self, result: Any, raise_error: bool) -> dict[str, float | None]:
            revisions = {task.metadata.name: task.metadata.revision for task in self.tasks}
            scores = {}
            for found in result.task_results:
                if found.dataset_revision == revisions.get(found.task_name):
                    scores[found.task_name] = found.scores["test"][0]["main_score"]
                elif found.task_name in revisions:
                    raise ValueError(
                        f"the result of {found.task_name} is of other data than this benchmark's "
                        f"(dataset_revision {found.dataset_revision[:12]}, here "
                        f"{revisions[found.task_name][:12]}): run the task again"
                    )
            missing = [task.metadata.name for task in self.tasks if task.metadata.name not in scores]
            if missing and raise_error:
                raise ValueError(f"{result.model_name} has no result of {', '.join(missing)}")
            subsets = {task.reader.dataset.subset: task.metadata.name for task in self.tasks}
            means = {
                mean: _mean([scores.get(subsets[member]) for member in members])
                for mean, members in group_by_mean(subsets).items()
            }
            meta_tasks = dict.fromkeys(subset.meta_task for subset in subsets)
            return means | {"mean_of_meta_tasks": _mean([means[name] for name in meta_tasks])}

    return WithMeans


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None


def _task(reader: SplitReader, name: str) -> Any:
    """A task of a class of its own, as all of mteb's are: it unloads what an instance knows."""
    return type(name, (_task_class(),), {"metadata": _metadata(reader, name), "reader": reader})()


def _metadata(reader: SplitReader, name: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    subset = reader.dataset.subset
    sides = [modalities(items) for items in (reader.query_items, reader.candidate_items)]
    known = mmeb_metadata(subset) if subset.name in CATALOG else {}
    kind = {"IND": "in-distribution", "OOD": "out-of-distribution"}[subset.distribution]
    return TaskMetadata(
        name=name,
        description=f"{subset.name}, {kind} {subset.meta_task}: each query ranks its own candidates.",
        dataset={
            "path": "TIGER-Lab/MMEB-eval" if known else name,
            "revision": reader.revision,
        },
        type="Any2AnyReranking",
        category="2".join(sides),
        modalities=[word for letter, word in (("i", "image"), ("t", "text")) if letter in "".join(sides)],
        eval_splits=["test"],
        # mteb takes any cached result that has this subset: its name says of what data
        eval_langs={reader.revision[:12]: ["eng-Latn"]},
        main_score="precision_at_1",
        is_public=bool(known),
        **known,
    )


@cache
def _task_class() -> Any:
    """The class of all these tasks: not at the top of the module, which is imported without mteb too."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.types import PromptType

    class OwnCandidates(AbsTaskRetrieval):
        """Each query ranks its own candidates."""

        reader: SplitReader
        abstask_prompt = "Find the candidate that the query asks for."

        def __init__(self, **kwargs: Any) -> None:
            # mteb keeps the best of the largest k
            most = max(1000, self.reader.most_candidates)
            self.k_values: Sequence[int] = sorted({*AbsTaskRetrieval.k_values, most})
            super().__init__(**kwargs)

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            (subset,) = self.hf_subsets
            self.dataset = {subset: {"test": self.reader.read()}}
            self.data_loaded = True

        def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            """As mteb's; a model whose meta does not name what the task shows is refused.

            Raises:
                ValueError: mteb would drop the pictures or texts, and score what is left; or
                    `MtebEncoder` refuses an item.
            """
            takes = set(model.mteb_model_meta.modalities or ("text", "image"))
            shown = {m for side in PromptType for m in self.metadata.get_modalities(side)}
            if missing := sorted(shown - takes):
                raise ValueError(
                    f"{self.metadata.name} has {' and '.join(missing)}s, but the meta of "
                    f"{model.mteb_model_meta.name} names {sorted(takes)} alone, and mteb would drop the "
                    "rest. If the model takes them, say so, and wrap a SentenceTransformer in mteb's "
                    "SentenceTransformerEncoderWrapper for it: `model.mteb_model_meta = "
                    'model.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})`'
                )
            try:
                return super().evaluate(model, *args, **kwargs)
            except RefusedError as error:
                raise ValueError(
                    f"{self.metadata.name}: {self.reader.describe(error.item)}: {error}. Replace the "
                    "picture or leave its row out; the scoreboard skips it"
                ) from error

        def task_specific_scores(
            self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
        ) -> dict[str, float]:
            found = outcomes(results, qrels, self.reader.dataset.subset.name)
            precision, num_queries, num_ties, _ = subset_result(found)
            return {
                "precision_at_1": precision,
                "num_queries": num_queries,
                "num_ties": num_ties,
                "num_skipped": len(self.reader.dataset.queries) - num_queries,
            }

    return OwnCandidates
