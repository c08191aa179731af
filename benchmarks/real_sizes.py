"""The backbones of the paper's recipes at their real sizes, with random weights: nothing is downloaded.

Each has the layers of the published checkpoint, and the tokenizer of the tiny models of the tests: a letter
is a token, and an image has as many tokens as in the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from fanoise_lightning.encoders import vision_language
from fanoise_lightning.encoders.adapters import add_lora
from fanoise_lightning.encoders.families import FAMILIES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "encoders"))

import tiny_models

from benchmarks.tensor_memory import TensorMemory

ROOT = Path(__file__).resolve().parents[1]
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN_TOWER = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
}


@dataclass(frozen=True)
class RealSize:
    """A published backbone.

    Args:
        recipe: the name of its file in examples/configs.
        family: the model type.
        published: the number of parameters that its page on the hub states, the language head included.
        text: what the config of its language model sets.
        vision: what the config of its image tower sets.
        tokens: of a chunk's rows that hold an image: its own, and about 78 of text.
        tied: whether its language head is its token embedding.
        processor: what its image processor differs in from that of the tiny model of the tests.
    """

    recipe: str
    family: str
    published: int
    text: dict[str, Any]
    vision: dict[str, Any]
    tokens: int
    tied: bool = False
    processor: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _module(self) -> dict[str, Any]:
        return yaml.safe_load((ROOT / "examples" / "configs" / f"{self.recipe}.yaml").read_text())["model"]

    @property
    def chunk(self) -> int:
        """The recipe's pairs in memory at once."""
        return int(self._module["chunk_size"])

    @property
    def options(self) -> dict[str, Any]:
        """The recipe's arguments of VisionLanguageEncoder, without the name of the checkpoint."""
        options = dict(self._module["encoder"]["init_args"])
        del options["model"]
        return options

    def tiny(self) -> RealSize:
        """The same with the layers of the tiny model of the tests."""
        config = tiny_models.BUILDERS[self.family](**self.processor)[0].config
        text, vision = config.get_text_config(), config.vision_config
        return replace(
            self,
            text={name: getattr(text, name) for name in self.text},
            vision={name: getattr(vision, name) for name in self.vision},
        )

    def config(self) -> Any:
        """The config of the published checkpoint, with the token numbers of the tests' tokenizer."""
        config = tiny_models.BUILDERS[self.family](**self.processor)[0].config
        for part, values in ((config.get_text_config(), self.text), (config.vision_config, self.vision)):
            for name, value in values.items():
                setattr(part, name, value)
        config.tie_word_embeddings = self.tied
        if self.family == "phi3_v":
            config.img_processor = {**config.img_processor, "image_dim_out": self.vision["hidden_size"]}
        return config

    def network(self, dtype: torch.dtype = torch.bfloat16) -> Any:
        """The model as the recipe trains it, on the current default device: adapter, no language head."""
        network = AutoModelForImageTextToText.from_config(self.config(), dtype=dtype)
        add_lora(network, self.options["lora"], FAMILIES[self.family].lora_targets)
        network.lm_head = torch.nn.Identity()
        network.gradient_checkpointing_enable({"use_reentrant": False})
        return network.train()

    @contextmanager
    def encoder(self, folder: Path, device: str, **options: Any) -> Iterator[Any]:
        """A VisionLanguageEncoder of random weights, built on the device; the folder gets its processor."""
        model, processor = tiny_models.BUILDERS[self.family](**self.processor)
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        options = {**self.options, **options}

        def load(loader: Any, name: str, dtype: str, *_: Any, **more: Any) -> Any:
            with torch.device(device):
                return loader.from_config(self.config(), dtype=getattr(torch, dtype), **more).eval()

        # weights that were drawn need no digests
        with (
            patch.object(vision_language, "load_network", load),
            patch.object(vision_language, "digests", lambda network: {}),
        ):
            yield vision_language.VisionLanguageEncoder(str(folder), **options)


def _qwen(
    recipe: str, published: int, hidden: int, intermediate: int, heads: int, kv: int, vocab: int
) -> RealSize:
    text = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": 28,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rope_parameters": QWEN_ROPE,
        "layer_types": ["full_attention"] * 28,
    }
    tower = {**QWEN_TOWER, "hidden_size": hidden}
    return RealSize(recipe, "qwen2_vl", published, text, tower, 2381, tied=recipe == "qwen2_vl_2b")


REAL_SIZES = {
    size.recipe: size
    for size in (
        _qwen("qwen2_vl_2b", 2_208_985_600, 1536, 8960, 12, 2, 151_936),
        RealSize(
            "phi35_vision",
            "phi3_v",
            4_146_621_440,
            {
                "hidden_size": 3072,
                "intermediate_size": 8192,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 32_064,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 4096,
                    "short_factor": [1.0] * 48,
                    "long_factor": [1.0] * 48,
                },
            },
            CLIP_LARGE,
            tokens=836,
            processor={"num_crops": 4},
        ),
        RealSize(
            "llava16_lr",
            "llava_next",
            7_566_747_648,
            {
                "hidden_size": 4096,
                "intermediate_size": 14_336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 32_064,
            },
            CLIP_LARGE,
            tokens=1254,
            processor={"side": 336},
        ),
        _qwen("qwen2_vl_7b", 8_291_375_616, 3584, 18_944, 28, 4, 152_064),
    )
}


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step of a backbone.

    Args:
        weights: of all parameters, frozen or not, and buffers.
        state: of the gradients and Adam's moments.
        peak: the most at once, with the weights and the activations.
    """

    weights: int
    state: int
    peak: int


def step_memory(size: RealSize, rows: int, tokens: int, *, fake: bool = True) -> StepMemory:
    """The memory of one chunk's forward and backward pass, by the tensors that exist at once.

    The image tower is left out: it is frozen, keeps no activations, and is done before the language model
    runs.

    Args:
        size: the backbone.
        rows: rows of the chunk.
        tokens: of each row, of its image and its text.
        fake: use tensors that have shapes and no values, so that any size takes seconds and no memory.
    """
    with torch.device("meta" if fake else "cpu"):
        network = size.network()
    text = network.config.get_text_config()
    weights = sum(storage.nbytes() for storage in _storages(network))
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        if fake:
            _allocate(network)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
        planes = (3,) if size.family == "qwen2_vl" else ()  # of M-RoPE's positions
        inputs = {
            "inputs_embeds": torch.zeros(rows, tokens, text.hidden_size, dtype=torch.bfloat16),
            "position_ids": torch.zeros(*planes, rows, tokens, dtype=torch.long),
            "attention_mask": torch.ones(rows, 1, tokens, tokens, dtype=torch.bool),
        }

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = network.model(**inputs, use_cache=False).last_hidden_state
            hidden[:, -1].float().sum().backward()
            optimizer.step()

        with TensorMemory() as memory:
            step()
            state, memory.peak = memory.now, memory.now
            step()
    return StepMemory(weights, state, weights + memory.peak)


def _storages(network: torch.nn.Module) -> Iterator[torch.UntypedStorage]:
    """Each once: tied weights share theirs."""
    tensors = [*network.parameters(), *network.buffers()]
    yield from {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}.values()


def _allocate(network: torch.nn.Module) -> None:
    """Give a network on the meta device tensors of the default device."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
