"""Captions as numbers: sentencepiece models, trained on a dataset's captions or given as a file.

The package `sentencepiece` is in the extra `captions`. Models trained here lower-case and NFKC-normalise
texts; of a given file what it was trained with holds.
"""

import functools
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from lookupjax.data.sources import Source, open_source
from lookupjax.errors import UserError
from lookupjax.files import write_whole

KINDS = ("bpe", "unigram")
PAD, START, END, UNKNOWN = 0, 1, 2, 3  # of the models trained here


def sentencepiece() -> Any:
    """The package.

    Raises:
      UserError: when it is not installed.
    """
    try:
        import sentencepiece
    except ImportError:
        raise UserError("captions need sentencepiece: pip install -e '.[captions]'") from None
    return sentencepiece


class Tokenizer:
    """Texts to token numbers and back.

    A model without a start token begins texts with padding (CapPa's does), one without padding pads with its
    unknown token, which is then neither learned nor scored.
    """

    def __init__(self, model: bytes, name: str = "the tokenizer"):
        try:
            self.model = sentencepiece().SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{name} is no sentencepiece model: {error}") from None
        self.size, self.end, self.unknown = self.model.vocab_size(), self.model.eos_id(), self.model.unk_id()
        if self.end < 0:
            raise UserError(f"{name} has no end token (eos), so captions could not end")
        self.pad = self.model.pad_id() if self.model.pad_id() >= 0 else self.unknown
        self.start = self.model.bos_id() if self.model.bos_id() >= 0 else self.pad

    def encode(self, text: str, length: int) -> np.ndarray:
        """(length,) int32: start, words, end, padding. A longer text loses its last words."""
        words = self.model.encode(text)[: length - 2]
        row = np.full((length,), self.pad, np.int32)
        row[: len(words) + 2] = [self.start, *words, self.end]
        return row

    def decode(self, tokens: Iterable[int] | np.ndarray) -> str:
        """The text of tokens that begin with the start token, up to the end token."""
        words = [int(token) for token in tokens][1:]
        if self.end in words:
            words = words[: words.index(self.end)]
        return self.model.decode([word for word in words if word != self.pad])


@functools.lru_cache(maxsize=8)
def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
      UserError: when there is none, or it is no such model.
    """
    try:
        return Tokenizer(Path(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror or error}") from None


def train_tokenizer(texts: Iterable[str], kind: str, size: int) -> bytes:
    """A sentencepiece model of at most `size` tokens; fewer where the texts have no more.

    Raises:
      UserError: for an unknown kind, or a size that cannot hold every character.
    """
    if kind not in KINDS:
        raise UserError(f"data.tokenizer.kind={kind!r} is unknown; choose one of {KINDS}")
    written = io.BytesIO()
    try:
        sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text.strip()),
            model_writer=written,
            model_type=kind,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=0.9995,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=PAD,
            bos_id=START,
            eos_id=END,
            unk_id=UNKNOWN,
            num_threads=1,  # the same model from the same texts
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"no tokenizer of data.tokenizer.size={size} could be trained: {error}") from None
    return written.getvalue()


def example_captions(example: dict[str, Any]) -> list[str]:
    """The captions of an example of a dataset, as TFDS's `coco_captions` has them.

    Raises:
      UserError: when it has none.
    """
    captions = example.get("captions")
    if captions is None:
        raise UserError(f"examples have no 'captions'; they have {sorted(example)}")
    return [text.decode() if isinstance(text, bytes) else str(text) for text in captions["text"]]


@dataclass(frozen=True)
class CaptionTokens:
    """Puts one of an example's captions into the batch as "caption", (length,) int32; see `Tokenizer.encode`.

    In training one is drawn at each visit, in evaluation it is the first.

    Args:
      length: in tokens, start and end included.
      tokenizer: its file; training sets it to the one in the work directory.
    """

    length: int = 32
    tokenizer: str = ""

    random: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __call__(self, example: dict[str, Any], random: np.random.Generator | None) -> dict[str, Any]:
        if not self.tokenizer:
            raise UserError(
                "the transform captions has no tokenizer; train with data.tokenizer.size or .path set"
            )
        texts = example_captions(example)
        text = texts[0 if random is None else int(random.integers(len(texts)))]
        rest = {name: value for name, value in example.items() if name != "captions"}
        return rest | {"caption": load_tokenizer(self.tokenizer).encode(text, self.length)}


class Captions:
    """All captions of a split, one after the other; can be iterated any number of times."""

    def __init__(self, source: Source):
        self.source = source

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self.source)):
            yield from example_captions(self.source[index])


def make_tokenizer(data: ConfigDict, path: Path) -> None:
    """Writes the tokenizer of `data.tokenizer` to `path` unless there is one: the given file, or a new model
    of the training captions.

    Raises:
      UserError: when neither can be had.
    """
    if path.exists():
        return
    options = data.tokenizer
    if options.path:
        load_tokenizer(options.path)  # says what is wrong with it
        content = Path(options.path).read_bytes()
    else:
        content = train_tokenizer(
            Captions(open_source(data.name, data.train_split, data.dir)), options.kind, options.size
        )
    write_whole(path, content)
