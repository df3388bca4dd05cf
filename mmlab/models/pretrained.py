"""The one place that turns a name into a pretrained part: asset, local folder, timm name, Hugging Face id."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from mmlab.assets import catalog


def load_vision(
    name: str, *, pretrained: bool, drop_path: float | None = None, image_size: int | None = None
) -> nn.Module:
    """Make a timm model without its classifier.

    Args:
        name: An asset, a folder in timm's format, a timm name, or a Hugging Face id of a timm model.
        pretrained: False gives the same architecture with random weights.
        drop_path: Share of residual branches to drop in training; None leaves the model's default.
        image_size: Side in pixels, for models of fixed size (ViT, Swin); None leaves the model's default.

    Raises:
        ValueError: No such model, its weights cannot be had, or it lacks one of the options.
    """
    source = _vision_source(name)
    options = {"drop_path_rate": drop_path, "img_size": image_size}
    options = {key: value for key, value in options.items() if value is not None}
    with quiet():
        try:
            model: nn.Module = timm.create_model(source, pretrained=pretrained, num_classes=0, **options)
        except (OSError, RuntimeError) as error:
            raise _unavailable(name, error) from error
        except TypeError as error:
            if not options:
                raise
            raise ValueError(
                f"{name!r} does not take {', '.join(options)}: leave it out ({error})"
            ) from error
    return model.train()


def load_text(name: str, *, pretrained: bool) -> PreTrainedModel:
    """Make a transformers model that gives hidden states of tokens, in float32.

    Of an encoder-decoder only the encoder is kept; a pooling layer is removed, because parameters without
    a gradient make distributed training fail.

    Args:
        name: An asset, a folder, or a Hugging Face id.
        pretrained: False gives the same architecture with random weights.

    Raises:
        ValueError: No such model, or its weights do not fill it.
    """
    model = load_model(name, pretrained=pretrained)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        model.pooler = None
    # A decoder would otherwise keep the keys and values of every training step.
    model.config.use_cache = False
    return model.train()


def load_whisper_encoder(name: str, *, pretrained: bool) -> PreTrainedModel:
    """Make the encoder half of a Whisper model, in float32.

    Args:
        name: An asset, a folder, or a Hugging Face id.
        pretrained: False gives the same architecture with random weights.

    Raises:
        ValueError: No such model, not a Whisper model, or its weights do not fill it.
    """
    model = load_model(name, pretrained=pretrained)
    if model.config.model_type != "whisper":
        raise ValueError(f"{name!r} is of type {model.config.model_type}: name a Whisper model")
    return model.get_encoder().train()


def load_causal(name: str, *, pretrained: bool) -> PreTrainedModel:
    """Make a causal language model with its vocabulary head, in float32.

    Args:
        name: An asset, a folder, or a Hugging Face id.
        pretrained: False gives the same architecture with random weights.

    Raises:
        ValueError: No such model, not a causal language model, or its weights do not fill it.
    """
    return load_model(name, pretrained=pretrained, kind=AutoModelForCausalLM).train()


class SpecialTokens(NamedTuple):
    """Token ids that stand for no word."""

    mask: int | None
    """Stands for a word that is to be guessed; None where the tokenizer knows no such token."""
    every: tuple[int, ...]
    """All of them, ascending."""


def load_special_tokens(name: str) -> SpecialTokens:
    """Read from a tokenizer which ids stand for no word.

    Args:
        name: Of the model that it belongs to: an asset, a folder, or a Hugging Face id.

    Raises:
        ValueError: There is none.
    """
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source_of(name))
        except (OSError, ValueError) as error:
            raise _unavailable(name, error) from error
    special = sorted(set(tokenizer.all_special_ids))
    # Of a folder without a tokenizer transformers makes one that knows no word.
    if len(tokenizer) <= len(special):
        raise ValueError(f"there is no tokenizer beside the weights of {name!r}: save the model's own there")
    return SpecialTokens(tokenizer.mask_token_id, tuple(special))


def load_model(name: str, *, pretrained: bool, kind: type = AutoModel) -> PreTrainedModel:
    """Load a transformers model; attention is sdpa wherever the architecture has it."""
    source = source_of(name)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source)
            if not pretrained:
                return kind.from_config(config, dtype=torch.float32)  # type: ignore[attr-defined]
            model, report = kind.from_pretrained(  # type: ignore[attr-defined]
                source, config=config, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _unavailable(name, error) from error
    # No encoder here uses a pooling layer, and many checkpoints come without.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"the weights of {name!r} do not fill {type(model).__name__}: {len(missing)} tensors are missing "
            f"({missing[0]}, ...): name a checkpoint of this architecture"
        )
    return model


def source_of(name: str) -> str:
    """What transformers calls a model: a folder, or an id of the hub."""
    return str(_folder(name) or name)


def _folder(name: str) -> Path | None:
    """The folder of an asset or a local one; None for what only a hub can know."""
    asset: Path | None = catalog.resolve(name)
    if asset is not None:
        return asset
    local = Path(name).expanduser()
    return local if local.is_dir() else None


def _vision_source(name: str) -> str:
    """What timm calls the model."""
    folder = _folder(name)
    if folder is not None:
        return f"local-dir:{folder}"
    if timm.is_model(name.partition(".")[0]) or name.startswith("hf-hub:"):
        return name
    if "/" in name:
        return f"hf-hub:{name}"
    near = ", ".join(get_close_matches(name, timm.list_models())) or "none"
    raise ValueError(f"no vision model {name!r}; nearest timm names: {near}; {_remedy()}")


def _unavailable(name: str, error: Exception) -> ValueError:
    """One line for the user out of what a hub or a loader said."""
    reason = str(error).strip().partition("\n")[0]
    return ValueError(f"cannot load {name!r}: {reason}; {_remedy()}")


def _remedy() -> str:
    return f"give a local folder or an asset, which needs no model hub: {', '.join(catalog.names())}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, reports and retries of the hub off the screen; what matters is raised instead."""
    hub = logging.getLogger("huggingface_hub")
    verbosity, bars, level = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), hub.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(level)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
