"""Train a small language model on local text, and grow activation outliers in a copy of it.

    python examples/train_language_models.py --what bert --data ../shared/data --out models/bert --outliers

`bert` is a sentence classifier for SST-2 (4 layers of 256 channels), `opt` a causal model of the same size for the
English of WikiText-2, `stories` the 260k LLaMA that lies in the data already and is only given outliers. `--out` gets a
folder that `seatrial` opens as `hf:FOLDER`, tokenizer included; with `--outliers` a second one with that ending holds
the copy with outliers. A model that lies in `--out` is not trained again. Each takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.testing.trained_outliers import GrownOutliers, trained_outliers

Batch = dict[str, Tensor]
Tokenizer = transformers.PreTrainedTokenizerFast

SIZE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
LONGEST = {"bert": 64, "opt": 256, "stories": 256}
BATCH = {"bert": 64, "opt": 8, "stories": 16}
EPOCHS = {"bert": 2, "opt": 6, "stories": 0}
PEAK_RATE = {"bert": 4e-4, "opt": 1e-3}
STORIES_JUDGED = 500


@dataclass(frozen=True)
class Subject:
    """A network with its text: what it learns from, what it is judged on, and what it is given outliers on."""

    what: str
    module: Any
    tokenizer: Tokenizer
    learned: list[list[int]]
    labels: list[int] | None
    judge: Callable[[nn.Module], str]
    seldom_enough: int
    """The number of rows that outliers are grown on: five epochs of all of them would take longer than the training."""

    def batches(self, rng: np.random.Generator, most: int | None = None) -> list[Batch]:
        """Return the rows (or `most` of them) in batches of nearly equal lengths, in random order."""
        rows = rng.permutation(len(self.learned))[:most]
        lengths = np.array([len(self.learned[row]) for row in rows])
        rows = rows[np.argsort(lengths + rng.uniform(0, 2, len(rows)), kind="stable")]
        cut = [rows[start : start + BATCH[self.what]] for start in range(0, len(rows), BATCH[self.what])]
        return [self._batch(cut[place]) for place in rng.permutation(len(cut))]

    def _batch(self, rows: np.ndarray) -> Batch:
        batch = padded([self.learned[row] for row in rows], self.tokenizer.pad_token_id)
        if self.labels is not None:
            return {**batch, "labels": torch.tensor([self.labels[row] for row in rows])}
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def padded(rows: Sequence[Sequence[int]], pad: int | None) -> Batch:
    """Return ids and mask [rows, length] of token rows, filled up on the right."""
    ids = torch.full((len(rows), max(map(len, rows))), pad or 0)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def bert(data: Path, folder: Path, rows: int, rng: np.random.Generator) -> Subject:
    """Return a sentence classifier with a WordPiece tokenizer of 8,000 entries made from the training sentences."""
    learned, judged = (tab_separated(data / "text" / "sst2" / f"{part}.tsv") for part in ("train", "dev"))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if (folder / "config.json").is_file():
        tokenizer = Tokenizer.from_pretrained(folder)
        module = transformers.BertForSequenceClassification.from_pretrained(folder)
    else:
        plain = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        plain.normalizer = normalizers.BertNormalizer(lowercase=True)
        plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        plain.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=8000, special_tokens=list(special.values()), show_progress=False)
        plain.train_from_iterator((text for _, text in learned), trainer)
        ends = [(token, plain.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        plain.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        tokenizer = Tokenizer(tokenizer_object=plain, model_max_length=LONGEST["bert"], **special)
        config = transformers.BertConfig(
            **SIZE,
            vocab_size=len(tokenizer),
            intermediate_size=1024,
            max_position_embeddings=LONGEST["bert"],
            type_vocab_size=1,
            pad_token_id=tokenizer.pad_token_id,
            id2label={0: "negative", 1: "positive"},
            label2id={"negative": 0, "positive": 1},
        )
        module = transformers.BertForSequenceClassification(config)
    chosen = [learned[row] for row in rng.permutation(len(learned))[:rows]]
    ids = tokenized(tokenizer, [text for _, text in chosen])
    shown = tokenized(tokenizer, [text for _, text in judged])
    truth = torch.tensor([label for label, _ in judged])

    def judge(network: nn.Module) -> str:
        answers = [network(**padded(shown[at : at + 64], 0)).logits.argmax(1) for at in range(0, len(shown), 64)]
        return f"accuracy {(torch.cat(answers) == truth).double().mean():.4f} on {len(shown)} sentences"

    return Subject("bert", module, tokenizer, ids, [label for label, _ in chosen], judge, 12_000)


def tokenized(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text, special ones included, cut off at the longest that the model reads."""
    return tokenizer(texts, truncation=True, return_attention_mask=False, return_token_type_ids=False)["input_ids"]


def tab_separated(path: Path) -> list[tuple[int, str]]:
    """Return label and text of each row of a file with these two columns and a heading."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    cells = [line.split("\t") for line in lines if line]
    return [(int(label), text.strip()) for label, text in cells]


def opt(data: Path, folder: Path, rows: int, rng: np.random.Generator) -> Subject:
    """Return a causal model with a byte-level BPE tokenizer of 4,000 entries made from the training text."""
    learned, judged = ((data / "text" / "wikitext2" / f"{part}.txt").read_text("utf-8") for part in ("valid", "test"))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    if (folder / "config.json").is_file():
        tokenizer, module = Tokenizer.from_pretrained(folder), transformers.OPTForCausalLM.from_pretrained(folder)
    else:
        plain = tokenizers.Tokenizer(models.BPE())
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        plain.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=4000, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
        )
        plain.train_from_iterator(learned.splitlines(keepends=True), trainer)
        begin = [("</s>", plain.token_to_id("</s>"))]
        plain.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=begin)
        tokenizer = Tokenizer(tokenizer_object=plain, model_max_length=LONGEST["opt"], **special)
        config = transformers.OPTConfig(
            **SIZE,
            vocab_size=len(tokenizer),
            ffn_dim=1024,
            word_embed_proj_dim=SIZE["hidden_size"],
            max_position_embeddings=LONGEST["opt"],
            dropout=0.1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        module = transformers.OPTForCausalLM(config)
    ids, shown = (windows(tokenizer, text, LONGEST["opt"]) for text in (learned, judged))
    return Subject("opt", module, tokenizer, ids[:rows], None, lambda network: perplexity(network, shown), 480)


def windows(tokenizer: Tokenizer, text: str, length: int) -> list[list[int]]:
    """Return a text in pieces of `length` tokens, the one that begins a text in front of each."""
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    step = length - 1
    return [[tokenizer.bos_token_id, *ids[at : at + step]] for at in range(0, len(ids), step)]


def stories(data: Path, folder: Path, rows: int, rng: np.random.Generator) -> Subject:
    """Return the 260k LLaMA with stories sampled from it; the first 500 are kept to judge it on."""
    source = data / "models" / "stories260k"
    lines = (source / "sampled_stories.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [json.loads(line)["ids"] for line in lines]
    shown, learned = ids[:STORIES_JUDGED], ids[STORIES_JUDGED:]
    tokenizer, module = Tokenizer.from_pretrained(source), transformers.LlamaForCausalLM.from_pretrained(source)
    return Subject("stories", module, tokenizer, learned[:rows], None, lambda net: perplexity(net, shown), 1500)


def perplexity(network: nn.Module, rows: Sequence[Sequence[int]]) -> str:
    """Return the exponent of the mean loss per token behind the first of each row."""
    loss, count = 0.0, 0
    for at in range(0, len(rows), 16):
        batch = padded(rows[at : at + 16], 0)
        logits = network(**batch).logits[:, :-1].flatten(0, 1)
        wanted = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:].flatten()
        loss += float(nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        count += int((wanted >= 0).sum())
    return f"perplexity {math.exp(loss / count):.3f} on {count} tokens"


def train(subject: Subject, epochs: int, rng: np.random.Generator) -> None:
    """Train in place with AdamW, a linear warm-up over a tenth of the steps and a cosine down."""
    steps = -(-len(subject.learned) // BATCH[subject.what])
    peak = PEAK_RATE[subject.what]
    optimizer = torch.optim.AdamW(subject.module.parameters(), lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    end = steps * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * end), (1 + math.cos(math.pi * step / end)) / 2)
    )
    subject.module.train()
    for epoch in range(epochs):
        seen = 0.0
        for number, batch in enumerate(subject.batches(rng), start=1):
            optimizer.zero_grad()
            loss = subject.module(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(subject.module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            seen += loss.item()
            if number % 50 == 0:
                say(f"epoch {epoch + 1}/{epochs}, batch {number}/{steps}, loss {seen / number:.3f}")
    subject.module.eval()


def answers_of(original: nn.Module) -> Callable[[nn.Module, Mapping[str, Tensor]], Tensor]:
    """Return a loss that keeps a network's answers near those of another: cross entropy, a mean over what is judged."""

    def loss(network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            wanted = original(**read).logits.softmax(-1)
        found = network(**read).logits
        if found.ndim == 3:
            shown = batch["attention_mask"].bool()
            wanted, found = wanted[shown], found[shown]
        return nn.functional.cross_entropy(found, wanted)

    return loss


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


@torch.no_grad()
def judged(subject: Subject, module: nn.Module) -> str:
    """Return what a network reaches, as words."""
    return subject.judge(module.eval())


def saved(module: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that `hf:FOLDER` names."""
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def table(grown: GrownOutliers) -> str:
    """Return the channels that were grown, as a table of plain text."""
    lines = [f"channels {grown.channels}; {len(grown.tokens)} token ids, {grown.share:.1%} of the text"]
    for before, after in zip(grown.before, grown.after):
        ranges = ", ".join(f"{low:.0f}..{high:.0f}" for low, high in after.channels)
        was = f"{before.largest:.1f} / {before.typical:.2f}"
        lines.append(f"{after.path}: largest / typical {was} -> {after.largest:.1f} / {after.typical:.2f}  ({ranges})")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, train, grow outliers, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("bert", "opt", "stories"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder with text/ and models/")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="2 for bert, 6 for opt")
    parser.add_argument("--rows", type=int, help="rows to train on; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--outliers", action="store_true", help="also write OUT-outliers")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = generator(given.seed, given.what)
    torch.manual_seed(given.seed)
    rows = given.rows or 10**9
    subject = {"bert": bert, "opt": opt, "stories": stories}[given.what](given.data, given.out, rows, rng)
    if subject.what in PEAK_RATE and not (given.out / "config.json").is_file():
        train(subject, EPOCHS[given.what] if given.epochs is None else given.epochs, rng)
        saved(subject.module, subject.tokenizer, given.out)
    print(judged(subject, subject.module), flush=True)
    if given.outliers:
        batches = subject.batches(rng, subject.seldom_enough)
        module, grown = trained_outliers(
            subject.module,
            batches,
            answers_of(subject.module),
            spared=subject.tokenizer.all_special_ids,
            rng=rng,
            progress=lambda done, of: say(f"outliers, epoch {done}/{of}"),
        )
        saved(module, subject.tokenizer, given.out.with_name(f"{given.out.name}-outliers"))
        print(f"{table(grown)}\nwith outliers: {judged(subject, module)}", flush=True)


if __name__ == "__main__":
    main()
