"""The tokenizer of a language model, as far as it is needed to judge texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from seatrial.errors import BadInput, missing_extra

_MOST_TOKENS = 2048
"""The longest text where a model states no limit, or a larger one (the usual length of perplexity)."""


@final
@dataclass(frozen=True, eq=False)
class Tokenizer:
    """`encode` turns text into ids without special ones; `begin` is the id that the model wants in front, if any.

    `length` is the number of tokens that the model can read at once, at most 2,048. `front` and `back` are the special
    ids around a text alone ([CLS] and [SEP]), `pad` the one that fills a row up. `save` writes the tokenizer's files
    into a folder and returns them.
    """

    encode: Callable[[str], list[int]]
    begin: int | None
    length: int
    front: tuple[int, ...]
    back: tuple[int, ...]
    pad: int
    save: Callable[[Path], list[Path]]


def open_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer of `hf:REPO_OR_FOLDER` (the prefix may be left out); code from there is never run.

    Raises BadInput where there is none, or where it cannot be read.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "text", f"the tokenizer of '{name}'") from error
    source = name.removeprefix("hf:")
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            source = str(folder)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        found = tokenizer.encode("a")
    except Exception as error:  # hub, network, file and validation errors have no common base
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"no tokenizer in '{name}' ({type(error).__name__}: {reason})",
            "a model's folder with its tokenizer",
            "save the tokenizer there",
        ) from error
    first = tokenizer.bos_token_id
    begin = first if first is not None and found[:1] == [first] else None
    stated = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    limits = [limit for limit in (stated, tokenizer.model_max_length) if isinstance(limit, int) and limit > 0]

    def encode(text: str) -> list[int]:
        # A long text is cut into pieces later, so the warning about its length would be wrong.
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def save(folder: Path) -> list[Path]:
        return [Path(file) for file in tokenizer.save_pretrained(folder) if Path(file).is_file()]

    front, back = _around(found, encode("a"))
    pads = (tokenizer.pad_token_id, getattr(config, "pad_token_id", None))
    pad = next((token for token in pads if isinstance(token, int)), 0)
    return Tokenizer(encode, begin, min(_MOST_TOKENS, *limits), front, back, pad, save)


def _around(whole: Sequence[int], plain: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that stand before and after `plain` in `whole`; all before it where they cannot be told apart."""
    starts = range(len(whole) - len(plain) + 1) if plain else ()
    at = next((at for at in starts if list(whole[at : at + len(plain)]) == list(plain)), len(whole))
    return tuple(whole[:at]), tuple(whole[at + len(plain) :])
