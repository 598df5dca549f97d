"""Captions of a split: what is written about each image, and how it agrees with the references.

    {"coco": {"type": "captions", "split": "test", "beams": 4}}

Writes `captions_SPLIT_results.json` in COCO's submission format, `captions_SPLIT_scores.json` with the scores
of each image and why others were left out, and a picture of samples.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from lookupjax.analysis.caption_plots import caption_samples
from lookupjax.data.sources import open_source
from lookupjax.data.tokenizer import CaptionTokens, example_captions, load_tokenizer
from lookupjax.data.transforms import build_transforms
from lookupjax.errors import UserError
from lookupjax.evaluation.caption_scores import PURE, check_metrics, missing, score
from lookupjax.evaluation.context import Context, OfModel, call_name
from lookupjax.evaluation.ptb import tokenize
from lookupjax.layers.decoding import Decoding
from lookupjax.tasks.base import Batch, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Write(OfModel):
    """The captions of a batch."""

    options: Decoding
    seed: int = 0

    def of_model(self, task: Task, model: nnx.Module, batch: Batch, **call: Any) -> dict[str, jax.Array]:
        key = None
        if self.options.method == "sample":  # the same texts each time, others in each batch
            key = jax.random.fold_in(jax.random.key(self.seed), batch["image/id"][0])
        return model.write(batch["image"], self.options, key=key, **call) | {"id": batch["image/id"]}


@dataclass(frozen=True)
class Seen(OfModel):
    """The images themselves, for the picture."""

    def of_model(self, task: Task, model: nnx.Module, batch: Batch, **call: Any) -> dict[str, jax.Array]:
        return {"image": batch["image"], "id": batch["image/id"]}


def decoding_options(context: Context, data: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Any:
    """(how captions are written with the tokenizer of the run, that tokenizer).

    Raises:
      UserError: when the evaluation transforms have no captions.
    """
    transforms = build_transforms(context.data_config(data).eval_transforms)
    captions = [t for t in transforms if isinstance(t, CaptionTokens)]
    if not captions:
        raise UserError("there is no transform captions in config.data.eval_transforms")
    tokenizer = load_tokenizer(captions[0].tokenizer)
    tokens = dict(length=captions[0].length, start=tokenizer.start, end=tokenizer.end, pad=tokenizer.pad)
    known = {field.name for field in dataclasses.fields(Decoding)}
    return Decoding(**(tokens | {k: v for k, v in options.items() if k in known})), tokenizer


class Evaluator:
    """exact, the share of captions that are one of their references, and caption scores, per call.

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`.
      method, beams, length_penalty, early_stop, temperature, top_k, top_p, no_repeat: see `Decoding`.
      seed: of sampling.
      scores: of `evaluation.caption_scores`; those that need what is not here are left out with a reason.
      pictures: images drawn with their captions.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        data: Mapping[str, Any] | None = None,
        method: str = "beam",
        beams: int = 4,
        length_penalty: float | int = 0.6,
        early_stop: bool = True,
        temperature: float | int = 1.0,
        top_k: int = 0,
        top_p: float | int = 1.0,
        no_repeat: bool = False,
        seed: int = 0,
        scores: tuple[str, ...] = PURE,
        pictures: int = 8,
    ):
        self.context, self.batches, self.pictures = context, context.batches(split, data), pictures
        config = context.data_config(data)
        self.split = split or config.eval_split
        self.source = open_source(config.name, self.split, config.dir)
        options = dict(method=method, beams=beams, length_penalty=length_penalty, early_stop=early_stop)
        options |= dict(temperature=temperature, top_k=top_k, top_p=top_p, no_repeat=no_repeat)
        decoding, self.tokenizer = decoding_options(context, data, options)
        self.write = Write(decoding, seed)
        check_metrics(scores)
        self.skipped = {name: why for name in scores if (why := missing(name))}
        self.scores = tuple(name for name in scores if name not in self.skipped)
        for name, why in self.skipped.items():
            log.warning("%s is left out: %s", name, why)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        references = {
            int(example["image/id"]): example_captions(example)
            for example in (self.source[i] for i in range(len(self.source)))
        }
        words = {i: [tokenize(text) for text in texts] for i, texts in references.items()}
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.write, params, stats, self.batches, call)
            captions = {int(i): self.tokenizer.decode(t) for i, t in zip(columns["id"], columns["tokens"])}
            written = {i: tokenize(text) for i, text in captions.items()}
            totals, each = score({i: words[i] for i in written}, written, self.scores)
            exact = float(np.mean([text in words[i] for i, text in written.items()]))
            results[call_name(call)] = {"exact": exact} | totals | {"examples": len(written)}
            self.store(call_name(call), captions, each)
            self.draw(call, captions, references, params, stats)
        return results

    def store(self, name: str, captions: Mapping[int, str], each: Mapping[str, Mapping[int, float]]) -> None:
        """Writes the two JSON files."""
        directory = self.context.drawing_directory()
        if directory is None:
            return
        stem = f"captions_{self.split}{name and '_'}{name}"
        rows = [{"image_id": i, "caption": text} for i, text in captions.items()]
        (directory / f"{stem}_results.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n")
        single = {i: {figure: values[i] for figure, values in each.items()} for i in captions}
        content = {
            "skipped": self.skipped,
            "decoding": dataclasses.asdict(self.write.options),
            "images": single,
        }
        (directory / f"{stem}_scores.json").write_text(json.dumps(content, indent=1) + "\n")

    def draw(
        self,
        call: Any,
        captions: Mapping[int, str],
        references: Mapping[int, list[str]],
        params: Any,
        stats: Any,
    ) -> None:
        """Draws the first batch's images, evenly spread, with their captions."""
        directory = self.context.drawing_directory() if self.pictures else None
        if directory is None:
            return
        first = next(iter(self.context.stream(Seen(), params, stats, self.batches, call)))
        count = len(first["id"])
        chosen = np.linspace(0, count - 1, min(self.pictures, count)).astype(int)
        ids = [int(first["id"][i]) for i in chosen]
        name = f"samples{'_' if call else ''}{call_name(call)}.png"
        caption_samples(
            [first["image"][i] for i in chosen],
            [captions[i] for i in ids],
            [references[i] for i in ids],
            directory / name,
        )
