"""The parser of one action: `mmlab data ACTION`, `mmlab shards ACTION`."""

from __future__ import annotations

import argparse
from typing import Any


class ActionParser(argparse.ArgumentParser):
    """A parser that may hand on words which the parser of a config is to understand."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep what is unknown as `words` where the action has such a default."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if self.get_default("words") is None:
            return parsed, unknown
        parsed.words = unknown
        return parsed, []
