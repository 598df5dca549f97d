"""The layer table: what belongs to whom, and the pages it is printed on."""

import json

import pytest
from flax import nnx

from lookupjax import create_model, inspect
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.analysis.layer_costs import layer_costs
from lookupjax.config import default_config, to_json
from lookupjax.errors import UserError


@pytest.mark.parametrize("name, call", [("lookupvit_mu", dict(compressed=(2, 2))), ("overlock_mu", {})])
def test_layers_add_up_to_the_model(name, call):
    def make():
        return create_model(name)

    size = (64, 64)
    layers = {layer.path: layer for layer in layer_costs(make, size, **call)}
    model = nnx.eval_shape(make)
    assert layers[""].params == count_params(model)
    assert layers[""].macs == count_products(trace_model(model, size, **call))
    top = [layer for path, layer in layers.items() if path and "/" not in path]
    own = sum(p.size for p in vars(model).values() if isinstance(p, nnx.Param))
    assert sum(layer.params for layer in top) + own == layers[""].params
    assert sum(layer.macs for layer in top) <= layers[""].macs


def test_figures_of_single_layers():
    layers = {
        layer.path: layer
        for layer in layer_costs(lambda: create_model("vit_mu", num_classes=7, dim=32, depth=2), (32, 32))
    }
    fc1 = layers["blocks/1/mlp/fc1"]
    assert (fc1.params, fc1.macs, fc1.activations) == (32 * 128 + 128, 65 * 32 * 128, 65 * 128 * 4)
    assert layers["head"].macs == 32 * 7 and layers["head"].kind == "Linear"
    assert layers["blocks"].macs == 2 * layers["blocks/0"].macs


def test_one_and_two_models_in_the_terminal_and_on_pages(tmp_path, capsys):
    pages = [f"--markdown={tmp_path / 'a.md'}", f"--html={tmp_path / 'a.html'}"]
    inspect.main(["vit_mu", "lookupvit_mu", "--depth=1", "--size=32x32", *pages])
    shown = capsys.readouterr().out
    assert "A: vit_mu at 32x32x3" in shown and "B / A" in shown and "total" in shown
    lines = (tmp_path / "a.md").read_text().splitlines()
    total = next(line for line in lines if line.startswith("| total"))
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1 and total.count("x |") == 3
    text = (tmp_path / "a.html").read_text()
    assert "http" not in text and text.count("<tr>") == sum(line.startswith("| ") for line in lines)


def test_a_run_is_inspected_as_it_was_configured(tmp_path, capsys):
    config = default_config()
    config.model = dict(name="vit_mu", scan=True, dim=16, num_classes=10, channels=1)
    config.data.channels = 1
    (tmp_path / "config.json").write_text(to_json(config))
    inspect.main([str(tmp_path)])
    assert "(vit_mu) at 8x8x1" in " ".join(capsys.readouterr().out.split())  # a long path is wrapped
    assert json.loads((tmp_path / "config.json").read_text())["model"]["scan"]


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="is no work directory"):
        inspect.main([str(tmp_path)])
    with pytest.raises(UserError, match="there is no model 'vit_m'"):
        inspect.main(["vit_m"])
    with pytest.raises(UserError, match="vit_mu has no compressed tokens"):
        inspect.main(["vit_mu", "--compressed=2x2"])
