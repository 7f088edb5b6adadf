"""MLPs in place of the attention projections of pretrained networks."""

from __future__ import annotations

import copy
from operator import attrgetter

import pytest
import torch

from planer.config.conversion import hidden_width
from planer.config.pretrained import SiteProjectionConfig
from planer.conversion.clusters import apply_labels, cluster_sites
from planer.conversion.counter import counting
from planer.conversion.dynamic import dynamic_layers, make_dynamic, set_selector
from planer.conversion.projections import distil_projections, make_layers
from planer.conversion.selectors import Selector
from planer.conversion.site_sparsity import SitePenalty, prepare_activation
from planer.conversion.sites import feed_forward_sites
from planer.errors import UserError
from planer.pretrained.projections import NAMES, projections
from planer.runtime import Runtime
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record

pytest.importorskip("transformers", reason="the package transformers is not installed")

from planer.pretrained.types import replace_projections  # noqa: E402
from tests.unit.pretrained_networks import ADAMW, network, task_of  # noqa: E402
from tests.unit.test_clusters import config as cluster_config  # noqa: E402
from tests.unit.test_site_sparsity import config as sparsity_config  # noqa: E402
from tests.unit.tiny_pretrained import LAYERS, WIDTH  # noqa: E402

FAMILIES = ("bert", "vit")


def config(steps: int = 4, **changed) -> SiteProjectionConfig:
    defaults = {"replace": NAMES, "width_factor": 1.0, "activation": "same", "dropout": 0.05, "weight": 1e-3}
    defaults["ramp"] = "linear"
    return SiteProjectionConfig(
        batch=4, steps=steps, optimizer=ADAMW, log_steps=2, checkpoint_steps=3, **(defaults | changed)
    )


def replaced(family: str, **changed):
    """A network with untrained MLPs of 8 hidden neurons in place of its projections."""
    model = network(family)
    replace_projections(model, *make_layers(model, config(**changed), torch.Generator().manual_seed(0)))
    return model.eval()


def test_a_layer_of_width_768_gets_384_hidden_neurons():
    assert hidden_width(768, 768, 1.0) == 384
    weights = 2 * 384 * 768 + 384 + 768
    assert weights == pytest.approx(768 * 768 + 768, rel=1e-3)
    assert hidden_width(16, 16, 0.01) == 1, "at least 1"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_has_four_projections(family):
    model = network(family)
    assert len(projections(model)) == 4 * LAYERS
    layers, _ = make_layers(model, config(), torch.Generator().manual_seed(0))
    sites = feed_forward_sites(replaced(family))
    assert [site.name for site in sites[LAYERS:]] == list(layers)
    assert {(site.d_model, site.d_inner) for site in sites[LAYERS:]} == {(WIDTH, WIDTH // 2)}
    assert [site.is_projection for site in sites] == [False] * LAYERS + [True] * 4 * LAYERS


@pytest.mark.parametrize(
    ("family", "reason"), [("gpt2", "GPT-2's quality suffers most"), ("llama", "key and value projections are too sm")]
)
def test_families_that_lose_quality_are_refused(family, reason, tmp_path):
    task = task_of(family, tmp_path, config())
    with pytest.raises(UserError, match=reason):
        distil_projections(network(family), task, config(), Runtime(), Record(Checkpoint(tmp_path / "c", "")))


@pytest.mark.parametrize("family", FAMILIES)
def test_distillation_trains_only_the_projections(family, tmp_path):
    errors = []
    for steps in (1, 60):
        settings = config(steps, weight=0.0, dropout=0.0)
        model, task = network(family), task_of(family, tmp_path, settings)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        record = Record(Checkpoint(tmp_path / f"{steps}", ""))
        history, metrics = distil_projections(model, task, settings, Runtime(), record)
        errors.append(metrics["error"])
        state = model.state_dict()
        gone = {name for name in before if name not in state}
        assert all(any(name.startswith(f"{one}.") for one in projections(network(family))) for name in gone)
        assert all(torch.equal(state[name], value) for name, value in before.items() if name not in gone)
    assert errors[1] < 0.7 * errors[0] and metrics["projections"] == 4 * LAYERS
    assert history["error"].iloc[-1] < history["error"].iloc[0]
    assert metrics["error"] == pytest.approx(sum(v for k, v in metrics.items() if k.startswith("error_")) / 4 / LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_distillation_in_bfloat16_has_the_errors_of_single_precision(family, tmp_path):
    errors, settings = [], config(2)
    for dtype in (torch.float32, torch.bfloat16):
        task, runtime = task_of(family, tmp_path, settings), Runtime(dtype=dtype)
        task.runtime = runtime
        record = Record(Checkpoint(tmp_path / str(dtype), ""))
        errors.append(distil_projections(network(family), task, settings, runtime, record)[1]["error"])
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_an_interrupted_run_resumes_with_the_same_bits(tmp_path):
    results = []
    for name, stops in (("whole", (None,)), ("parts", (3, None))):
        for stop in stops:
            model, task = network("vit"), task_of("vit", tmp_path, config(5))
            record = Record(Checkpoint(tmp_path / name, ""), until=stop)
            distil_projections(model, task, config(5), Runtime(), record)
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_replaced_projections_are_converted(family, tmp_path):
    model, task = replaced(family), task_of(family, tmp_path)
    prepare_activation(model, "relu")
    activations = {type(attrgetter(site.adapter.activation)(site.layer)) for site in feed_forward_sites(model)}
    assert activations == {torch.nn.ReLU}
    before = task.scores(model, "test").nll
    labels, metrics = cluster_sites(model, task, cluster_config("activations"), 0)
    assert metrics["converted_layers"] == 5 * LAYERS
    apply_labels(model, labels)
    twin = copy.deepcopy(model)
    assert len(make_dynamic(twin, 4, 8)) == 5 * LAYERS
    set_selector(twin, Selector("dynamic_k", 0.0))
    torch.testing.assert_close(torch.tensor(task.scores(twin, "test").nll), torch.tensor(before), rtol=1e-3, atol=1e-4)
    set_selector(twin, Selector("top_k", 1))
    with counting(twin) as counter:
        task.scores(twin, "test")
    assert len(counter.names) == len(dynamic_layers(twin)) and set(counter.per_token().values()) == {1.0}


def test_the_penalty_is_the_sum_over_layers_and_projections(tmp_path):
    settings = sparsity_config(ramp="none")
    model, task = replaced("vit"), task_of("vit", tmp_path, settings)
    prepare_activation(model, "relu")
    term, batch, hidden = SitePenalty(model, task, settings), task.batch(0), {}
    for site in feed_forward_sites(model):
        module = site._module(site.adapter.activation)
        module.register_forward_hook(lambda module, x, y, name=site.name: hidden.update({name: y}))
    with term.watching():
        penalty = term(task.loss(model, batch, None), batch, 0)[1]["penalty"]
    measures = {name: (h.sum(-1) ** 2 / (h**2).sum(-1).clamp(min=1e-15)).mean() for name, h in hidden.items()}
    groups = [[v for k, v in measures.items() if ("mlp" in k) == is_ffn] for is_ffn in (True, False)]
    torch.testing.assert_close(penalty, sum(torch.stack(group).mean() for group in groups), rtol=1e-4, atol=1e-4)
