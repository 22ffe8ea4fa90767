"""Published towers of native resolution by hub id: the family, and what they state of its arguments.

Part of the table in `known`. The numbers are those of the published config.json and preprocessor_config.json.
What a family's constructor has as default is not repeated. No torch.
"""

from __future__ import annotations

from typing import Any

_PIXTRAL = {"image_size": 1024, "patch_size": 16, "hidden_act": "silu"}


def _qwen2_5(out: int) -> tuple[str, dict[str, Any]]:
    return "qwen2_5_vl", {"vision_config": {"hidden_size": 1280, "depth": 32, "out_hidden_size": out}}


def _qwen3(width: int, hidden: int, depth: int, out: int) -> tuple[str, dict[str, Any]]:
    sizes = {"hidden_size": width, "intermediate_size": hidden, "depth": depth, "out_hidden_size": out}
    return "qwen3_vl", {"vision_config": sizes}


KNOWN_NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-community/pixtral-12b": ("pixtral", {"vision_config": _PIXTRAL}),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(2048),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(3584),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(1024, 4096, 24, 2560),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(1152, 4304, 27, 4096),
}
