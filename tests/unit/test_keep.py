"""The search for the fastest network that keeps the baseline's quality, with made-up losses."""

from __future__ import annotations

import dataclasses

import pytest
from planted import losses
from toy import VOCAB_SIZE, experiment, latency_table

from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.search.keep import keep, refusal
from planer.search.network import chosen_network, space_of

pytestmark = pytest.mark.slow
LATENCIES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
REFERENCE = 2.0


def run(final, loss=0.01, proxies=None, latencies=LATENCIES, trained=3):
    """Networks with these final losses; the proxy losses are 1.5 times as high unless given."""
    proxies = proxies or [1.5 * nll for nll in final]
    whole = []

    def train(number: int, share: float):
        assert share in (0.2, 1.0)
        if share == 1.0:
            whole.append(number)
        return losses(final[number] if share == 1.0 else proxies[number])

    kept, path = keep(loss, REFERENCE, latencies, train, 0.2, trained)
    assert len(set(whole)) == len(whole) <= trained, "no network is trained twice, and at most ``trained`` of them"
    assert [step.final_nll is not None for step in path] == [number in whole for number in range(len(final))]
    return kept, path, whole


@pytest.mark.parametrize("best", range(7))
def test_the_fastest_network_that_keeps_the_quality_is_found(best):
    """Faster networks are worse; up to ``best`` they keep the quality.  Proxy losses predict final ones exactly."""
    final = [1.95 + 0.005 * number + (0.1 if number > best else 0) for number in range(7)]
    kept, path, whole = run(final)
    assert kept == best and len(whole) <= 2
    assert whole[0] == 3, "the middle of the path is first, without predictions"
    for step, nll in zip(path, final, strict=True):
        assert step.predicted_nll == pytest.approx(nll) and step.proxy_nll == pytest.approx(1.5 * nll)


def test_networks_in_any_order_of_latency():
    order = [3, 0, 6, 2, 5, 1, 4]
    final = [1.95, 1.96, 1.97, 1.98, 1.99, 2.5, 2.6]
    kept, _, _ = run([final[i] for i in order], latencies=[LATENCIES[i] for i in order])
    assert order[kept] == 4


def test_a_prediction_that_is_wrong_is_corrected():
    """Other networks improve less by training than the middle one, so the first predictions are too low."""
    final = [1.98, 1.99, 2.00, 2.01, 2.10, 2.20, 2.30]
    proxies = [2.90, 2.91, 2.92, 3.05, 3.06, 3.08, 3.10]
    kept, path, whole = run(final, proxies=proxies)
    assert whole == [3, 4], "4 was predicted to keep the quality; after its training no faster network is"
    assert kept == 3 and path[4].final_nll == pytest.approx(2.10)
    fall = (2.01 / 3.05 + 2.10 / 3.06) / 2
    assert [step.predicted_nll for step in path] == pytest.approx([fall * proxy for proxy in proxies])


def test_a_failure_leads_to_slower_networks():
    """The middle network fails; the fastest one that is predicted to succeed comes next."""
    kept, _, whole = run([1.95, 1.97, 2.01, 2.5, 2.6, 2.7, 2.8])
    assert whole == [3, 2] and kept == 2


def test_without_good_predictions_the_lowest_are_trained():
    kept, path, whole = run([2.3, 2.2, 2.25, 2.4, 2.5, 2.6, 2.7])
    assert kept is None and whole == [3, 1, 2]
    assert path[1].final_nll == pytest.approx(2.2)


def test_a_path_of_one_network():
    assert run([1.9], latencies=[0.5])[0] == 0
    assert run([2.9], latencies=[0.5])[0] is None


def test_a_refusal_is_one_line_with_the_best_network():
    _, path, _ = run([2.3, 2.2, 2.25, 2.4, 2.5, 2.6, 2.7])
    error = refusal("keep_0.01", 0.01, REFERENCE, path, [f"network{i}" for i in range(7)])
    text = str(error)
    assert isinstance(error, UserError) and "\n" not in text
    assert text.startswith("keep_0.01: no network") and "at most 0.01 above" in text
    assert "network1 at 0.800" in text and "+0.1000" in text


CONFIG = experiment(keep={"targets": [1.0, 0.8, 0.6, 0.4], "proxy_share": 0.2, "trained": 3})


def chosen(name: str, loss_at, reference: float = REFERENCE, config=CONFIG):
    """Run keep_<q>.  loss_at(latency, share): the loss of a network by its estimated latency and share of training."""
    variant, table = parse_variant(name), latency_table()
    space = space_of(config, variant, VOCAB_SIZE, table, seed=1)
    target = space.limits[0]
    calls = []

    def proxy(candidate, share):
        calls.append((candidate.options, share))
        return losses(loss_at(target.of(candidate.options) / target.baseline, share))

    network, notes = chosen_network(config, variant, space, table, None, proxy, reference)
    return network, notes["selection"], calls


def test_the_notes_have_the_path():
    network, notes, calls = chosen("keep_0.05", lambda share, done: 1.8 + 0.5 * (1 - share) + (1 - done))
    path = notes["path"]
    assert network.pattern in [step["pattern"] for step in path]
    own = next(step for step in path if step["pattern"] == network.pattern)
    bound = 1.05 * REFERENCE
    assert own["final_nll"] <= bound
    faster = [s for s in path if s["latency"] < own["latency"]]
    assert all(step["final_nll"] is None or step["final_nll"] > bound for step in faster)
    assert [step["latency"] for step in path] == sorted((step["latency"] for step in path), reverse=True)
    assert sum(share == 1.0 for _, share in calls) <= 3
    assert (notes["chosen_by"], notes["source"], notes["reference_nll"]) == ("quality kept", "shallow", REFERENCE)
    assert notes["estimated"] == pytest.approx(own["latency"])


def test_an_impossible_quality_is_refused_with_the_best_network():
    with pytest.raises(UserError, match=r"^keep_1e-9: no network .* the best, \S+ at ") as error:
        chosen("keep_1e-9", lambda share, done: 2.1 + 0.5 * (1 - share) + (1 - done))
    assert "\n" not in str(error.value)


def test_targets_without_a_network_are_skipped():
    config = dataclasses.replace(CONFIG, keep=dataclasses.replace(CONFIG.keep, targets=(1.0, 0.001)))
    network, notes, _ = chosen("keep_0.1", lambda share, done: 1.9, config=config)
    assert len(notes["path"]) == 1 and network.pattern == "(sf)x2"


def test_no_network_for_any_target_is_one_line():
    config = dataclasses.replace(CONFIG, keep=dataclasses.replace(CONFIG.keep, targets=(0.002, 0.001)))
    with pytest.raises(UserError, match="^keep_0.1: no cut of the baseline is within keep.targets") as error:
        chosen("keep_0.1", lambda share, done: 1.9, config=config)
    assert "\n" not in str(error.value)
