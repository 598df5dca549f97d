import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lookupjax.config import default_config
from lookupjax.errors import UserError
from lookupjax.training.optimizer import layer_rates, make_optimizer, make_schedule, multipliers


def schedule(name="cosine", steps=100, **changes):
    config = default_config().schedule
    config.update(dict(name=name, warmup_steps=10, **changes))
    return make_schedule(config, 0.4, steps)


@pytest.mark.parametrize("name", ["cosine", "linear", "rsqrt", "constant"])
def test_schedules_warm_up_linearly_from_zero(name):
    rate = schedule(name)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0.0, 0.2, 0.4], rtol=1e-6, atol=1e-6)


def test_schedules_against_their_formulas():
    steps = np.arange(10, 101)
    done = (steps - 10) / 90
    cosine = jax.vmap(schedule())(jnp.asarray(steps))
    np.testing.assert_allclose(cosine, 0.2 * (1 + np.cos(np.pi * done)), atol=1e-6)
    linear = jax.vmap(schedule("linear", end=0.25))(jnp.asarray(steps))
    np.testing.assert_allclose(linear, 0.4 * (0.25 + 0.75 * (1 - done)), atol=1e-6)
    rsqrt = jax.vmap(schedule("rsqrt", timescale=30, cooldown_steps=20))(jnp.asarray(steps))
    expected = 0.4 * np.sqrt(30 / (30 + steps - 10)) * np.clip((100 - steps) / 20, 0, 1)
    np.testing.assert_allclose(rsqrt, expected, atol=1e-6)


def test_knots_are_joined_by_lines():
    rate = schedule("knots", knots=((0.0, 0.4), (0.5, 1.0), (1.0, 0.0)))
    np.testing.assert_allclose(
        [rate(10), rate(55), rate(70), rate(100)], [0.16, 0.4, 0.8 / 3, 0.0], atol=1e-6
    )
    with pytest.raises(UserError, match="in order"):
        schedule("knots", knots=((0.5, 1.0), (0.0, 0.4)))


def test_bad_schedules():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        schedule("cosin")
    with pytest.raises(UserError, match="must be smaller than steps=5"):
        schedule(steps=5)


PARAMS = {
    "embed": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((3,))},
    "blocks": {0: {"fc": {"kernel": jnp.ones((3, 3))}}, 1: {"fc": {"kernel": jnp.ones((3, 3))}}},
    "head": {"kernel": jnp.ones((3, 2))},
}


def test_decay_takes_the_first_rule_that_matches():
    factors = multipliers(PARAMS, (("^head/", 0.5), ("kernel$", 1.0)), "decay")
    assert factors["head"]["kernel"] == 0.5 and factors["embed"] == {"kernel": 1.0, "bias": 0.0}
    with pytest.raises(UserError, match="decay: 'kernl' matches no parameter"):
        multipliers(PARAMS, (("kernl", 1.0),), "decay")


def test_layer_rates_fall_towards_the_input():
    rates = layer_rates(PARAMS, 0.5)
    assert rates["head"]["kernel"] == 1.0
    assert [rates["blocks"][i]["fc"]["kernel"] for i in (1, 0)] == [0.5, 0.25]
    assert rates["embed"]["kernel"] == 0.125


def test_adamw_equals_optax():
    config = default_config().optimizer
    config.update(dict(weight_decay=0.1, clip_norm=0.0))
    ours = make_optimizer(config, lambda _: 1e-2, PARAMS)
    mask = jax.tree_util.tree_map_with_path(lambda k, _: k[-1].key == "kernel", PARAMS)
    theirs = optax.adamw(1e-2, weight_decay=0.1, mask=mask)
    grads = jax.tree.map(lambda p: 0.3 * p, PARAMS)
    results = []
    for optimizer in (ours, theirs):
        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


def test_sgd_clips_the_global_norm():
    config = default_config().optimizer
    config.update(dict(name="sgd", momentum=0.0, clip_norm=1.0))
    optimizer = make_optimizer(config, lambda _: 1.0, PARAMS)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert optax.global_norm(updates) == pytest.approx(1.0, rel=1e-6)


def test_adam_puts_weight_decay_into_the_gradient():
    config = default_config().optimizer
    config.update(dict(name="adam", weight_decay=0.1, clip_norm=0.0, decay=((".", 1.0),)))
    params = {"w": jnp.array([1.0, -2.0])}
    optimizer = make_optimizer(config, lambda step: 1.0, params)
    gradient = {"w": jnp.array([0.3, 0.3])}
    with jax.numpy_dtype_promotion("standard"):
        update, _ = optimizer.update(gradient, optimizer.init(params), params)
        adam = optax.scale_by_adam()
        expected, _ = adam.update({"w": gradient["w"] + 0.1 * params["w"]}, adam.init(params))
    np.testing.assert_allclose(update["w"], -expected["w"], rtol=1e-6)


def test_lars_scales_arrays_but_not_vectors():
    """Two steps by the formula: g *= 0.001 |w| / |g|, mu = 0.9 mu + g, w -= lr mu."""
    config = default_config().optimizer
    config.update(dict(name="lars", weight_decay=0.0, clip_norm=0.0))
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([3.0, 4.0])}
    grads = jax.tree.map(lambda p: jnp.ones_like(p), params)
    optimizer = make_optimizer(config, lambda _: 10.0, params)
    expected, momenta = jax.device_get(params), {"kernel": 0.0, "bias": 0.0}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        trust = 0.001 * np.linalg.norm(expected["kernel"]) / np.sqrt(2)
        for name, factor in (("kernel", trust), ("bias", 1.0)):
            momenta[name] = 0.9 * momenta[name] + factor
            expected[name] = expected[name] - 10.0 * momenta[name]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)


def test_muon_makes_hidden_kernels_updates_orthogonal():
    """Singular values of about 0.2 sqrt(longer side), a root mean square of 0.2; the rest follows Adam."""
    config = default_config().optimizer
    config.update(dict(name="muon", clip_norm=0.0, momentum=0.95))
    shapes = {"fc": {"kernel": (6, 24), "bias": (24,)}, "head_p": {"kernel": (24, 3)}}
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    optimizer = make_optimizer(config, lambda _: 1.0, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    singular = np.linalg.svd(updates["fc"]["kernel"], compute_uv=False) / (0.2 * np.sqrt(24))
    assert (singular > 0.6).all() and (singular < 1.3).all()
    assert (updates["fc"]["kernel"] * grads["fc"]["kernel"]).sum() < 0
    for name, leaf in (("fc", "bias"), ("head_p", "kernel")):  # Adam's first step: the sign
        step = updates[name][leaf] / -np.sign(grads[name][leaf])
        np.testing.assert_allclose(step, step.mean(), rtol=1e-3)
        assert step.mean() > 0
