"""What kind of answer a network of transformers gives, read off its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

TextHead = Literal["classification", "causal", "masked"]
_HEADS: dict[str, TextHead] = {
    "ForSequenceClassification": "classification",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
}


def text_head(name: str) -> TextHead | None:
    """Return the head of the text model `hf:REPO_OR_FOLDER`, None for any other model and one that cannot be read.

    `seatrial.models.opened.open_model` says what is wrong with those.
    """
    if not name.startswith("hf:"):
        return None
    architectures = _architectures(name.removeprefix("hf:"))
    return next((head for given in architectures for ending, head in _HEADS.items() if given.endswith(ending)), None)


def _architectures(source: str) -> list[str]:
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
        else:
            import transformers

            found = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False).architectures
    except Exception:  # hub, network, file and validation errors have no common base
        return []
    return [str(one) for one in found] if isinstance(found, list) else []
