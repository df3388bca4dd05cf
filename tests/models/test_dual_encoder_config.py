from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from mmlab.batch import Modality
from mmlab.models.dual_encoder import DualEncoder
from mmlab.models.encoders.text import TextEncoder

pytest_plugins = "tiny_parts"


def test_a_config_builds_it(tiny_bert: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DualEncoder, "model")
    config = f"""
    model:
      class_path: mmlab.models.dual_encoder.DualEncoder
      init_args:
        text:
          class_path: mmlab.models.dual_encoder.Tower
          init_args:
            dim: 4
            hidden: 8
            encoder: {{class_path: mmlab.models.encoders.text.TextEncoder, init_args: {{name: {tiny_bert}}}}}
            pooling: {{class_path: mmlab.models.pooling.FirstTokenPooling}}
        signal:
          class_path: mmlab.models.dual_encoder.Tower
          init_args:
            dim: 4
            encoder: {{class_path: mmlab.models.encoders.signal.SignalEncoder, init_args: {{channels: 3}}}}
    """
    model = parser.instantiate(parser.parse_object(yaml.safe_load(config))).model
    assert [modality for modality, _ in model.towers()] == [Modality.TEXT, Modality.SIGNAL]
    assert isinstance(model.text.encoder, TextEncoder)
