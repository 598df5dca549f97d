"""Words as the Penn Treebank splits them, and scores of captions."""

import math
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import pycocoevalcap
import pytest

from lookupjax.errors import UserError
from lookupjax.evaluation import caption_scores, ptb
from lookupjax.tasks.captioning import token_losses
from lookupjax.tasks.classification import Classification

CORPUS = [
    line.split("\t")
    for line in (Path(__file__).parent / "ptb_corpus.tsv").read_text(encoding="utf-8").split("\n")
    if line
]
JAVA = shutil.which("java")


def without_punctuation(tokens: str) -> str:
    return " ".join(token for token in tokens.rstrip().split(" ") if token not in ptb.PUNCTUATION)


def test_words_are_those_that_java_wrote():
    """The corpus: 63 captions and what is difficult; beside each line the output of the Java tokenizer."""
    assert len(CORPUS) > 140
    wrong = {text: (ptb.tokenize(text), theirs) for text, theirs in CORPUS}
    assert {t: o for t, (o, j) in wrong.items() if o != without_punctuation(j)} == {}


@pytest.mark.skipif(JAVA is None, reason="there is no java on the PATH")
def test_java_still_writes_them(tmp_path):
    place = Path(pycocoevalcap.__path__[0]) / "tokenizer"
    (tmp_path / "lines.txt").write_text("\n".join(text for text, _ in CORPUS), encoding="utf-8")
    command = [JAVA, "-Dfile.encoding=UTF-8", "-cp", str(next(place.glob("stanford-corenlp-*.jar")))]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run([*command, tmp_path / "lines.txt"], capture_output=True, check=True)
    theirs = done.stdout.decode().split("\n")
    assert [line.rstrip() for line in theirs[: len(CORPUS)]] == [out.rstrip() for _, out in CORPUS]


def test_scores_of_captions_that_agree_and_do_not():
    references = {1: ["a red bus on a street", "a bus drives by"], 2: ["two dogs play in a field"]}
    totals, each = caption_scores.score(
        references, {1: "a red bus on a street", 2: "two dogs play in a field"}
    )
    assert totals["bleu4"] == pytest.approx(1, abs=1e-6) and totals["rouge_l"] == 1 and totals["cider"] > 5
    totals, each = caption_scores.score(references, {1: "nothing of that", 2: "two dogs play in a field"})
    assert each["cider"][1] == 0 and each["cider"][2] > 5 and each["rouge_l"] == {1: 0.0, 2: 1.0}


def test_scores_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: None)
    assert caption_scores.missing("meteor") == "there is no java on the PATH"
    assert caption_scores.missing("cider") == ""
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: "/usr/bin/java")
    assert "SPICE's parser" in caption_scores.missing("spice")
    with pytest.raises(UserError, match="no caption score 'blue'"):
        caption_scores.score({1: ["a"]}, {1: "a"}, ("blue",))
    with pytest.raises(UserError, match="of the same images"):
        caption_scores.score({1: ["a"]}, {2: "a"})


def test_label_smoothing_is_a_divergence():
    """0 exactly where the model says the smoothed target; without smoothing the cross-entropy."""
    target = jnp.array([[2, 0]])
    smoothed = jnp.full((1, 2, 5), 0.1 / 4).at[0, 0, 2].set(0.9).at[0, 1, 0].set(0.9)
    assert jnp.abs(token_losses(jnp.log(smoothed), target, 0.1)).max() < 1e-6
    assert float(token_losses(jnp.log(smoothed), target)[0, 0]) == pytest.approx(-math.log(0.9), rel=1e-5)
    assert (token_losses(jnp.zeros((1, 2, 5)), target, 0.1) > 0).all()


def test_either_of_two_equal_labels_is_right():
    target = jnp.array([[0.5, 0, 0.5, 0], [0, 1.0, 0, 0], [0.5, 0, 0.5, 0]])
    logits = jnp.array([[0, 0, 9.0, 0], [0, 0, 9.0, 0], [0, 9.0, 0, 0]])
    figures = Classification().evaluate({"logits": logits}, {"label": target})
    assert figures["accuracy"].tolist() == [1, 0, 0]
    choices = Classification().choices({"logits": logits}, {"label": target})
    assert choices["label"].tolist() == [2, 1, 0] and choices["predicted"].tolist() == [2, 2, 1]
