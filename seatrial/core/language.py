"""Language models: how likely a text is, and which of several continuations is likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from seatrial.core.sample import Picture, Sample
from seatrial.core.task import Task
from seatrial.core.truth import Choices, Tokens
from seatrial.errors import BadInput


@final
@dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Next-token prediction; the network gives logits [batch, length, vocabulary] for rows as `token_rows` makes them.

    Records: `sample`, `tokens` that were judged (all but the first, unless the text says how many), `nll`, the sum of
    their negative log likelihoods in nats (NaN where a logit is no number), and `correct_tokens`, predicted as the
    likeliest.
    """

    SCHEMA = pa.schema(
        [("sample", pa.string()), ("tokens", pa.int64()), ("nll", pa.float64()), ("correct_tokens", pa.int64())]
    )

    def answer(self, outputs: Tensor, samples: Sequence[Sample], pictures: Sequence[Picture] = ()) -> pa.Table:
        """Return the records of one batch; raises BadInput for other outputs and samples that are no text."""
        rows = token_rows(samples)
        logits = _checked(outputs, rows)
        columns: list[list[Any]] = [[], [], [], []]
        for sample, ids, scores in zip(samples, rows, logits, strict=True):
            if not isinstance(sample.target, Tokens):
                raise BadInput(f"sample '{sample.id}' with choices", "plain text", "judge it as multiple choice")
            judged = len(ids) - 1 if sample.target.judged is None else sample.target.judged
            losses, likeliest = _losses(scores, ids, judged)
            right = int(np.count_nonzero(likeliest == ids[len(ids) - judged :]))
            record = (sample.id, judged, float(losses.sum()), right)
            for column, value in zip(columns, record):
                column.append(value)
        return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, self.SCHEMA)], schema=self.SCHEMA)


@final
@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """The likeliest of several continuations of a prompt.

    The network gives logits [rows, length, vocabulary], a row for each choice of each sample in turn, as
    `token_rows` makes them. Likelihoods count the tokens of the continuation alone, once as their sum and once
    divided by its length in bytes. Of equal ones the first wins; one that is no number is never the answer, which is
    -1 where all are.

    Records: `sample`, `label`, `answer`, `answer_by_length`, `correct`, `correct_by_length`, and for each choice
    `choice_nll` in nats and `choice_bytes`.
    Source: the measures `acc` and `acc_norm` of EleutherAI's lm-evaluation-harness.
    """

    SCHEMA = pa.schema(
        [
            ("sample", pa.string()),
            ("label", pa.int32()),
            ("answer", pa.int32()),
            ("answer_by_length", pa.int32()),
            ("correct", pa.bool_()),
            ("correct_by_length", pa.bool_()),
            ("choice_nll", pa.list_(pa.float64())),
            ("choice_bytes", pa.list_(pa.int32())),
        ]
    )

    def answer(self, outputs: Tensor, samples: Sequence[Sample], pictures: Sequence[Picture] = ()) -> pa.Table:
        """Return the records of one batch; raises BadInput for other outputs and samples without choices."""
        rows = token_rows(samples)
        logits = iter(zip(_checked(outputs, rows), rows))
        records = []
        for sample in samples:
            if not isinstance(sample.target, Choices):
                raise BadInput(f"sample '{sample.id}' without choices", "a prompt with choices", "check --data")
            question = sample.target
            nll = np.array([_losses(*next(logits), len(part))[0].sum() for part in question.continuations])
            by_length = nll / np.maximum(question.lengths, 1)
            best, best_by_length = _least(nll), _least(by_length)
            correct = best == question.answer, best_by_length == question.answer
            records.append((sample.id, question.answer, best, best_by_length, *correct, nll, list(question.lengths)))
        columns = list(zip(*records)) if records else [()] * len(self.SCHEMA)
        return pa.Table.from_arrays(
            [pa.array(list(column), kind.type) for column, kind in zip(columns, self.SCHEMA)], schema=self.SCHEMA
        )


def token_rows(samples: Sequence[Sample]) -> list[Int64[np.ndarray, " length"]]:
    """Return the ids of each row that the network sees: one a text, one a choice; raises BadInput for other samples."""
    rows: list[Int64[np.ndarray, " length"]] = []
    for sample in samples:
        match sample.target:
            case Tokens(ids):
                rows.append(np.array(ids, dtype=np.int64))
            case Choices(prompt, continuations):
                rows.extend(np.array([*prompt, *part], dtype=np.int64) for part in continuations)
            case _:
                raise BadInput(f"sample '{sample.id}' without tokens", "a text that was tokenized", "check --data")
    return rows


def token_inputs(samples: Sequence[Sample], pad: int = 0) -> dict[str, Int64[Tensor, "rows length"]]:
    """Return `input_ids` and `attention_mask` of `token_rows`, filled up to the longest row on the right.

    What fills is the id `pad` with mask 0: a causal network never looks ahead to it, others mask it, and no record
    reads its logits.
    """
    rows = token_rows(samples)
    length = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row)
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _checked(outputs: Any, rows: Sequence[np.ndarray]) -> Float[Tensor, "rows length vocabulary"]:
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or len(outputs) != len(rows):
        shape = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
        raise BadInput(
            f"an output of {shape} for {len(rows)} rows of tokens",
            "logits [rows, length, vocabulary]",
            "pass a causal language model",
        )
    longest, highest = max(map(len, rows), default=0), max((int(row.max()) for row in rows if len(row)), default=0)
    if outputs.shape[1] < longest or outputs.shape[2] <= highest:
        raise BadInput(
            f"logits for {outputs.shape[1]} tokens of a vocabulary of {outputs.shape[2]}",
            f"{longest} tokens with ids up to {highest}",
            "use the tokenizer of this model",
        )
    return outputs.detach()


def _losses(
    logits: Float[Tensor, "length vocabulary"], ids: Int64[np.ndarray, " length"], count: int
) -> tuple[Float64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
    """Return the negative log likelihoods in nats of the last `count` ids, and the likeliest ids in their places."""
    start = len(ids) - count
    if start < 1 or count < 0:
        raise BadInput("a text of no more tokens than are judged", "one before the first", "begin it with a token")
    # Row by row and in double precision, so that a record does not depend on the batch around it.
    before = logits[start - 1 : len(ids) - 1].double().cpu().contiguous()
    wanted = torch.from_numpy(ids[start:])
    losses = torch.logsumexp(before, dim=-1) - before.gather(1, wanted[:, None])[:, 0]
    return losses.numpy(), before.argmax(-1).numpy()


def _least(values: Float64[np.ndarray, " choices"]) -> int:
    return -1 if np.isnan(values).all() else int(np.nanargmin(values))
