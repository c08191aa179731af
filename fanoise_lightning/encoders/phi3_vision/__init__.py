"""Phi-3.5-vision, built from stock transformers parts; importing this registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from fanoise_lightning.encoders.phi3_vision.configuration import Phi3VConfig
from fanoise_lightning.encoders.phi3_vision.image_processing import Phi3VImageProcessor
from fanoise_lightning.encoders.phi3_vision.modeling import EmbeddingAlias, Phi3VForCausalLM, Phi3VModel
from fanoise_lightning.encoders.phi3_vision.processing import Phi3VProcessor

__all__ = ["Phi3VConfig", "Phi3VForCausalLM", "Phi3VImageProcessor", "Phi3VModel", "Phi3VProcessor"]

AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
AutoModel.register(Phi3VConfig, Phi3VModel, exist_ok=True)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
# It works on PIL images. Under both names, or each load would warn that there is no torchvision version.
AutoImageProcessor.register(
    Phi3VConfig,
    image_processor_classes={"pil": Phi3VImageProcessor, "torchvision": Phi3VImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)
register_checkpoint_conversion_mapping(
    "phi3_v", [EmbeddingAlias("vision_embed_tokens.wte", "embed_tokens")], overwrite=True
)
