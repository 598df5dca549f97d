"""The captioner: counts, the cache, and what decoding promises. All on tiny decoders with random weights."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_params, count_products
from lookupjax.errors import UserError
from lookupjax.layers.decoding import Decoding, decode, restrict
from lookupjax.layers.rngs import Keys
from lookupjax.models.caption_decoder import CAPPA, GIT, CaptionDecoder

IMAGES, TOKENS, LENGTH, WORDS = 6, 5, 9, 17


def random_decoder(form: str) -> CaptionDecoder:
    """With weights large enough that texts differ and end at different places."""
    options = dict(vocab_size=WORDS, length=LENGTH, image_dim=12, dim=16, depth=1, num_heads=2, form=form)
    model = CaptionDecoder(**options, word_std=0.6, pos_std=0.6, rngs=nnx.Rngs(3))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear):
            module.kernel[...] = 2.0 * module.kernel[...]
    return model


@cache
def written(form: str, cached: bool) -> dict[str, dict[str, np.ndarray]]:
    """What every method writes about the same images, in one program."""
    methods = dict(
        greedy=Decoding(method="greedy", length=LENGTH),
        one=Decoding(beams=1, length=LENGTH),
        beam=Decoding(beams=3, length=LENGTH),
        sample=Decoding(method="sample", length=LENGTH, top_k=6, top_p=0.9, temperature=0.8),
    )
    image = jax.random.normal(jax.random.key(0), (IMAGES, TOKENS, 12))
    mask = jnp.arange(TOKENS)[None] < jnp.array([5, 5, 4, 3, 5, 2])[:, None]

    def run(model: CaptionDecoder) -> dict:
        begin, step = (model.begin, model.step) if cached else (model.begin_plain, model.step_plain)

        def start(rows: int) -> dict:
            return begin(image, length=LENGTH, rows=rows, image_mask=mask)

        texts = {
            name: decode(step, start, IMAGES, options, jax.random.key(1)) for name, options in methods.items()
        }
        state, logits = start(1), []  # the logits along the greedy texts, word by word
        for place in range(LENGTH - 1):
            out, state = step(state, texts["greedy"]["tokens"][:, place], jnp.int32(place))
            logits.append(out)
        return texts | {"logits": {"step": jnp.stack(logits, 1)}}

    return jax.device_get(jax.jit(run)(random_decoder(form)))


@pytest.mark.parametrize("form", ["cross", "prefix"])
def test_the_cache_changes_nothing(form):
    with_cache, without = written(form, True), written(form, False)
    np.testing.assert_allclose(with_cache["logits"]["step"], without["logits"]["step"], atol=1e-5)
    for method in with_cache:
        for name, values in with_cache[method].items():
            np.testing.assert_allclose(values, without[method][name], atol=1e-5, err_msg=f"{method} {name}")


@pytest.mark.parametrize("form", ["cross", "prefix"])
def test_one_beam_is_greedy_and_more_are_never_worse(form):
    texts = written(form, True)
    for name in texts["greedy"]:
        np.testing.assert_allclose(texts["one"][name], texts["greedy"][name], rtol=1e-6)
    assert (texts["beam"]["score"] >= texts["greedy"]["score"]).all()
    assert (texts["beam"]["score"] > texts["greedy"]["score"] + 1e-3).any()
    assert len({tuple(text) for text in texts["greedy"]["tokens"]}) > 1
    for method in ("greedy", "beam", "sample"):
        for text in texts[method]["tokens"]:
            end = text.tolist().index(2)
            assert text[0] == 1 and (text[end + 1 :] == 0).all() and 2 not in text[1:end]


def test_scores_are_those_of_the_whole_text():
    """Beams that were exchanged still belong to their texts: the log-probability, computed anew."""
    texts = written("cross", True)
    image = jax.random.normal(jax.random.key(0), (IMAGES, TOKENS, 12))
    mask = jnp.arange(TOKENS)[None] < jnp.array([5, 5, 4, 3, 5, 2])[:, None]
    tokens = jnp.asarray(texts["beam"]["tokens"])
    logits = jax.jit(lambda m: m(image, tokens[:, :-1], image_mask=mask))(random_decoder("cross"))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for text, sums, log_prob, score in zip(
        tokens, log_probs, texts["beam"]["log_prob"], texts["beam"]["score"]
    ):
        text = text.tolist()
        end = text.index(2)
        if end < LENGTH - 1:  # not closed by force
            total = sum(sums[i, text[i + 1]] for i in range(end))
            assert log_prob == pytest.approx(total, abs=1e-4)
            assert score == pytest.approx(total / ((5 + end) / 6) ** 0.6, abs=1e-4)


def test_top_k_and_nucleus():
    log_probs = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

    def kept(**options) -> list[bool]:
        return (np.asarray(jax.nn.softmax(restrict(log_probs, Decoding(**options)))) > 1e-6)[0].tolist()

    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.8) == [True, True, False, False] and kept(top_p=0.81) == [True, True, True, False]
    assert kept(top_p=0.1) == [True, False, False, False]
    cold = jax.nn.softmax(restrict(log_probs, Decoding(temperature=0.5)))
    np.testing.assert_allclose(cold[0, 0] / cold[0, 1], (0.5 / 0.3) ** 2, rtol=1e-5)


def test_no_repeat():
    def step(cache, token, place):
        return jnp.zeros((2, 5)).at[:, 4].set(3.0), cache  # always the same word

    def write(**options) -> list[int]:
        options = Decoding(method="greedy", length=6, **options)
        return decode(step, lambda rows: {"own": ()}, 2, options)["tokens"][0].tolist()

    assert write() == [1, 4, 4, 4, 4, 2] and write(no_repeat=True)[1:3] == [4, 0]


def test_published_counts():
    def count(size: tuple[int, int, int], options: dict) -> int:
        dim, heads, image_dim = size
        make = partial(CaptionDecoder, dim=dim, num_heads=heads, image_dim=image_dim, **options)
        return count_params(nnx.eval_shape(lambda: make(rngs=Keys(0))))

    assert count((768, 12, 768), GIT) == 67_378_746 and count((768, 12, 1024), GIT) == 67_575_354
    table = 64 * 768  # big_vision counts CapPa's positions elsewhere
    assert count((768, 12, 768), CAPPA) == 105_823_232 + table
    assert count((1024, 16, 1024), CAPPA) == 166_252_800 + 64 * 1024


@pytest.mark.parametrize("form", ["cross", "prefix"])
def test_macs_are_those_of_the_program(form):
    """Writing with the cache multiplies with the empty places too; the formula leaves them out."""
    model = random_decoder(form)
    image, token = jnp.zeros((1, TOKENS, 12)), jnp.zeros((1,), jnp.int32)

    def begin() -> dict:
        return model.begin(image, length=LENGTH)

    first = count_products(jax.jit(begin).trace())
    each = count_products(jax.jit(lambda s: model.step(s, token, jnp.int32(0))).trace(jax.eval_shape(begin)))
    empty = 2 * 16 * sum(LENGTH - i - 1 for i in range(LENGTH)) * len(model.blocks)
    assert first + LENGTH * each - empty == model.macs(TOKENS, LENGTH)


def test_any_encoder_with_tokens_and_no_other():
    for encoder in ("vit_mu", "davit_mu"):
        model = nnx.eval_shape(lambda name=encoder: create_model("captioner_mu", encoder=name))
        out = jax.eval_shape(lambda m, x: m(x), model, jnp.zeros((2, 32, 32, 3)))
        assert out["logits"].shape == (2, 16, 64)
    with pytest.raises(UserError, match="no encode"):
        nnx.eval_shape(lambda: create_model("captioner_mu", encoder="probe_mu"))


def test_video_frames():
    model = create_model("captioner_mu", decoder=dict(frames=3, form="prefix"))
    x = jnp.ones((2, 3, 32, 32, 3))
    out = jax.eval_shape(lambda m, x: m(x), model, x)
    assert out["tokens"].shape == (2, 3, 9, 32) and out["logits"].shape == (2, 16, 64)
