"""Embedding texts and images outside of the Trainer, in one process or in one for each device."""

from __future__ import annotations

import multiprocessing.queues
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.sample import Collate, Sample
from fanoise_lightning.training.embedding import embed_batch, eval_mode, on_cpu
from fanoise_lightning.training.lockstep import embed_own_rows, is_sharded, largest

__all__ = ["as_sample", "check_device", "check_truncation", "encode"]


def encode(
    encoder: Encoder,
    samples: Any,
    where: torch.device | Sequence[str | torch.device],
    batch_size: int,
    num_workers: int,
    show_progress_bar: bool,
) -> Tensor:
    """The embeddings of one sample, (D,), or several, (n, D), as the encoder returns them, on the CPU.

    Arguments and errors are those of ContrastiveModule.encode.
    """
    single = is_single(samples)
    items = [samples] if single else list(samples)
    with tqdm(total=len(items), unit=" samples", disable=not show_progress_bar) as bar:
        if isinstance(where, torch.device):
            found = encode_items(encoder, _Items(items), where, batch_size, num_workers, bar)
        else:
            found = encode_on_devices(where, encoder, items, batch_size, num_workers, bar)
    return found[0] if single else found


def check_truncation(truncate_dim: int | None, dim: int) -> None:
    """Raise ValueError if embeddings of D dimensions cannot be cut to these."""
    if truncate_dim is not None and not 1 <= truncate_dim <= dim:
        raise ValueError(f"`truncate_dim` must be from 1 to the {dim} of the encoder, got {truncate_dim}")


def check_device(device: str | torch.device) -> None:
    """Raise ValueError if there is no such device here: a module half moved to it would be of no use."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"`device` {str(device)!r} is not available on this machine: {reason}") from error


def is_single(samples: Any) -> bool:
    """Whether ContrastiveModule.encode is given one item instead of several.

    Raises:
        TypeError: if it is given what has no order, or is neither.
    """
    if isinstance(samples, Sample | str | os.PathLike | Mapping):
        return True
    if isinstance(samples, bytes | Set):
        raise _not_encodable(samples)
    if not isinstance(samples, Iterable) or getattr(samples, "ndim", 1) in (0, 2, 3):
        # a Pillow image or the array of one
        if hasattr(samples, "convert") or hasattr(samples, "__array_interface__"):
            return True
        raise _not_encodable(samples)
    return False


def _not_encodable(samples: Any) -> TypeError:
    return TypeError(
        "`encode` takes a text, an image, a path, a Sample, a dictionary with `text` and `image`, or a "
        f"sequence of these, got {type(samples).__qualname__}"
    )


def as_sample(item: Any, index: int) -> Sample:
    """A sample of what ContrastiveModule.encode takes for one.

    A string is a text, a dictionary has the arguments of a :class:`Sample`, and anything else is an image.

    Raises:
        TypeError: if it is something else.
        ValueError: if it is empty or cannot be decoded.
        FileNotFoundError: if it is a path and the file does not exist.
    """
    if isinstance(item, Sample):
        return item
    if isinstance(item, list | tuple) and any(isinstance(part, str) for part in item):
        raise TypeError(
            f"item {index} of `encode` is a {type(item).__name__} with a text in it: pass Sample(text, image)"
        )
    if isinstance(item, Mapping) and not set(item) <= {"text", "image"}:
        raise TypeError(
            f"item {index} of `encode` is a dictionary with the keys {', '.join(map(repr, item))}; expected "
            "'text', 'image' or both"
        )
    try:
        if isinstance(item, Mapping):
            return Sample(item.get("text") or "", _image_of(item))
        return Sample(item) if isinstance(item, str) else Sample(image=item)
    except (TypeError, ValueError, FileNotFoundError) as error:
        kind = next(kind for kind in (TypeError, FileNotFoundError, ValueError) if isinstance(error, kind))
        raise kind(f"item {index} of `encode`: {error}") from error


def _image_of(item: Mapping[str, Any]) -> Any:
    """The image of a dictionary; ``""`` and ``[]``, which tables have for none, are ``None``."""
    image = item.get("image")
    return None if isinstance(image, str | list | tuple) and not image else image


def encode_items(
    encoder: Encoder,
    items: _Items,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    bar: tqdm | None = None,
) -> Tensor:
    """The embeddings of items, in eval mode. With a sharded encoder, call it on all ranks.

    Args:
        encoder: on its device.
        items: n items.
        device: the encoder's.
        batch_size: how many go through the encoder at once. Long texts go together, which saves padding.
        num_workers: processes that open images and tokenise; 0 for this one.
        bar: counts the items that are done.

    Returns:
        (n, D) float32, as the encoder returns them, on the CPU, in the order of the items.
    """
    order = torch.from_numpy(_by_cost(items.items))
    loader = DataLoader(
        items,
        batch_size=batch_size,
        sampler=order.numpy(),
        collate_fn=_CollateItems(encoder.collate),
        num_workers=num_workers,
    )
    embeddings, start = torch.empty(len(items), encoder.embedding_dim), 0

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        return embed_own_rows(encoder, inputs, device)

    missing = largest(len(loader)) - len(loader) if is_sharded(encoder) else 0  # other ranks may have more
    with eval_mode(encoder):
        for inputs in chain(loader, repeat({}, missing)):
            found = embed_batch(embed, encoder, inputs, device).float().cpu()
            embeddings[order[start : start + len(found)]] = found
            start += len(found)
            if bar is not None:
                bar.update(len(found))
    return embeddings


class _Items(Dataset[tuple[int, Any]]):
    """Items with their places among those that `encode` was given, for messages.

    Args:
        items: n items.
        numbers: (n,) their places; by default 0 to n - 1.
    """

    def __init__(self, items: Sequence[Any], numbers: NDArray[np.int64] | None = None) -> None:
        self.items, self.numbers = items, numbers

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        return int(place if self.numbers is None else self.numbers[place]), self.items[place]


def _by_cost(items: Sequence[Any]) -> NDArray[np.int64]:
    """The order of items by what they cost, (n,): those with an image first, then long texts."""
    costs = np.fromiter(map(_cost, items), dtype=np.int64, count=len(items))
    return np.argsort(-costs, kind="stable")


def _cost(item: Any) -> int:
    image = 2**40  # more than any text has characters
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Sample):
        return image * (item.image is not None) + len(item.text)
    if isinstance(item, Mapping):
        return image * (_image_of(item) is not None) + len(item.get("text") or "")
    return image


@dataclass(frozen=True)
class _CollateItems:
    """Turns numbered items into samples, and these into tensors; runs in the loader's workers."""

    collate: Collate

    def __call__(self, items: Sequence[tuple[int, Any]]) -> dict[str, Tensor]:
        return self.collate([as_sample(item, index) for index, item in items])


def encode_on_devices(
    devices: Sequence[str | torch.device],
    encoder: Encoder,
    items: Sequence[Any],
    batch_size: int,
    num_workers: int,
    bar: tqdm | None,
) -> Tensor:
    """The embeddings of items by copies of the encoder, in a process for each device.

    The processes are spawned, so a script that calls this needs ``if __name__ == "__main__":``. Arguments and
    the returned tensor are those of `encode_items`.

    Raises:
        ValueError: if there is no device, or the encoder is sharded.
    """
    if not devices:
        raise ValueError("`device` is an empty list: name one device or several, or leave it out")
    for device in devices:
        check_device(device)
    if is_sharded(encoder):
        raise ValueError("the encoder is sharded over the ranks already: call `encode` without `device`")
    order = _by_cost(items)
    # several parts for each process, as in SentenceTransformer's pool: not all are equally fast
    size = batch_size * max(1, len(items) // (10 * batch_size * len(devices)))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    context = torch.multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices:
        free.put(str(device))
    threads = max(1, torch.get_num_threads() // len(devices))
    embeddings = torch.empty(len(items), encoder.embedding_dim)
    with on_cpu(encoder):
        arguments = (encoder, free, threads, batch_size, num_workers)
        with ProcessPoolExecutor(len(devices), context, _start, arguments) as pool:
            futures = [pool.submit(_encode_part, [items[place] for place in part], part) for part in parts]
            try:
                for part, future in zip(parts, futures):
                    embeddings[torch.from_numpy(part)] = torch.from_numpy(future.result())
                    if bar is not None:
                        bar.update(len(part))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return embeddings


_worker: tuple[Encoder, torch.device, int, int] | None = None


def _start(
    encoder: Encoder, free: multiprocessing.queues.Queue[str], threads: int, batch_size: int, num_workers: int
) -> None:
    """Start a process: take a device, and move the encoder to it."""
    global _worker
    device = torch.device(free.get())
    torch.set_num_threads(threads)
    _worker = encoder.to(device), device, batch_size, num_workers


@torch.inference_mode()
def _encode_part(items: Sequence[Any], numbers: NDArray[np.int64]) -> Any:
    assert _worker is not None
    encoder, device, batch_size, num_workers = _worker
    # as an array: a tensor would be sent through a file descriptor, of which there are few
    return encode_items(encoder, _Items(items, numbers), device, batch_size, num_workers).numpy()
