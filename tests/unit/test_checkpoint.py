"""Checkpoints are restored exactly and survive kills and full disks."""

import multiprocessing
import time
from types import SimpleNamespace

import pytest
import torch
from small_disk import small_disk

from planer import runtime
from planer.config import Experiment
from planer.errors import UserError
from planer.tensors import write_tensors
from planer.training.checkpoint import Checkpoint
from planer.workflow.job import Job

pytestmark = pytest.mark.slow


def test_round_trip_keeps_every_bit(tmp_path):
    base = torch.randn(6, 5)
    tensors = {
        "weight": base,
        "tied": base,
        "view": base[2:4],
        "transposed": base.t(),
        "half": torch.randn(3).bfloat16(),
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "random": torch.get_rng_state(),
        "empty": torch.zeros(2, 0, 4),
        "also_empty": torch.zeros(0),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    values = {"step": 7, "loss": 0.1 + 0.2, "rows": [{"a": None}], "nested": {"b": [1, "x"]}}
    checkpoint = Checkpoint(tmp_path / "deep" / "folder", "stage 1")
    checkpoint.save(tensors, values)
    loaded, loaded_values = checkpoint.load()
    assert loaded_values == values
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_tied_tensors_are_stored_once(tmp_path):
    weight = torch.zeros(1000)
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save({"a": weight, "b": weight}, {})
    assert checkpoint.path.stat().st_size < 2 * 4 * 1000


def test_loaded_tensors_survive_the_next_save(tmp_path):
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save({"a": torch.zeros(5000)}, {})
    loaded, _ = checkpoint.load()
    loaded["a"] += 1
    checkpoint.save({"a": torch.full((5000,), 7.0)}, {})
    assert loaded["a"].unique().tolist() == [1.0]


def test_a_missing_checkpoint_is_none(tmp_path):
    assert Checkpoint(tmp_path / "absent", "x").load() is None
    Checkpoint(tmp_path / "absent", "x").delete()


def test_another_identity_is_ignored_with_a_reason(tmp_path, capsys):
    Checkpoint(tmp_path, "lr 0.01").save({"a": torch.ones(1)}, {})
    assert Checkpoint(tmp_path, "lr 0.02").load() is None
    message = capsys.readouterr().err
    assert "lr 0.01" in message and "lr 0.02" in message and message.count("\n") == 1
    assert Checkpoint(tmp_path, "lr 0.01").load() is not None  # and stays


def test_another_limit_in_hours_and_another_pattern_keep_the_checkpoint(tmp_path, monkeypatch):
    """Another input or parameter does not."""
    monkeypatch.setattr(runtime, "set_up_process", lambda: None)
    (tmp_path / "train").write_text("a text")

    def identity(**params) -> str:
        names = {"wildcards": {"experiment": "mine", "variant": "dense"}, "input": {"train": tmp_path / "train"}}
        return Job(SimpleNamespace(rule="finetune", params=params, **names), None, Experiment).checkpoint().identity

    first = identity(max_hours=24.0, seed=1)
    assert identity(max_hours=48.0, seed=1) == first != identity(max_hours=24.0, seed=2)
    patterns = {"baseline": "(sf)x2", "sandwich": "sf", "par": "sf", "others": {}}
    assert identity(patterns={"patterns": patterns}, notations=["(sf)x2"]) == identity(notations=["(sf)x2"])
    (tmp_path / "train").write_text("another text")
    assert identity(max_hours=24.0, seed=1) != first


def test_a_damaged_file_is_ignored_with_a_reason(tmp_path, capsys):
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save({"a": torch.ones(100)}, {})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-50])
    assert checkpoint.load() is None
    assert "damaged" in capsys.readouterr().err


def test_a_checkpoint_is_handed_over_to_another_job(tmp_path):
    """A job that has its own checkpoint continues from that."""
    tensors, path = {"a": torch.ones(3), "b": torch.full((2,), torch.nan)}, tmp_path / "training.safetensors"
    first = Checkpoint(tmp_path / "first", "choose")
    first.save(tensors | {"tied": tensors["a"]}, {"step": 3})
    first.hand_over(path)
    first.delete()
    second = Checkpoint(tmp_path / "second", "retrain")
    second.take_up(path)
    loaded, values = second.load()
    assert values == {"step": 3} and torch.equal(loaded["tied"], tensors["a"]) and loaded["b"].isnan().all()
    second.save({"a": torch.zeros(1)}, {"step": 5})
    second.take_up(path)
    assert second.load()[1] == {"step": 5}
    second.delete()
    second.take_up(path)
    assert second.load()[1] == {"step": 3}


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    path, checkpoint = tmp_path / "training.safetensors", Checkpoint(tmp_path / "job", "x")
    for content, reason in ((None, "does not exist"), (b"", "no readable"), ({"a": torch.ones(1)}, "is no checkpoint")):
        if isinstance(content, dict):
            write_tensors(path, content)
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"training.safetensors .*{reason}") as error:
            checkpoint.take_up(path)
        assert "\n" not in str(error.value) and checkpoint.load() is None


def test_parts_of_a_job_have_separate_checkpoints(tmp_path):
    whole = Checkpoint(tmp_path, "choose")
    parts = [whole.part(f"proxy_{number}", pattern) for number, pattern in enumerate(("sf", "ff"))]
    for number, part in enumerate(parts):
        part.save({"a": torch.full((1,), number)}, {"step": number})
    assert whole.load() is None and [part.load()[1]["step"] for part in parts] == [0, 1]
    assert whole.part("proxy_1", "sf").load() is None, "of another network"
    parts[0].delete()
    assert parts[0].load() is None and parts[1].load() is not None


def test_delete_removes_leftovers_too(tmp_path):
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save({"a": torch.ones(1)}, {})
    (checkpoint.path.parent / ".tmp123").write_text("written by a killed process")
    (tmp_path / "mlflow.json").write_text("not the checkpoint's")
    checkpoint.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.json"]


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save({"a": torch.ones(100)}, {"step": 1})
    with pytest.raises(UserError, match="cannot write .*free space") as error, small_disk(2**16):
        checkpoint.save({"a": torch.zeros(100_000)}, {"step": 2})
    assert "\n" not in str(error.value)
    assert list(checkpoint.path.parent.iterdir()) == [checkpoint.path]
    tensors, values = checkpoint.load()
    assert values == {"step": 1} and torch.equal(tensors["a"], torch.ones(100))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as error:
        Checkpoint(tmp_path / "file" / "folder", "x").save({"a": torch.ones(1)}, {})
    assert "\n" not in str(error.value)


def save_forever(folder, written) -> None:
    """Save checkpoints filled with their number, and set ``written`` after the third."""
    checkpoint = Checkpoint(folder, "x")
    for number in range(1_000_000):
        full = torch.full((50_000,), float(number))
        checkpoint.save({"first": full, "last": full.clone()}, {"number": number})
        if number == 2:
            written.set()


def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    spawn = multiprocessing.get_context("spawn")  # a forked child would wait for threads that it lacks
    children = []
    for delay_ms in (0, 1, 2, 3, 5, 8, 13):
        written = spawn.Event()
        child = spawn.Process(target=save_forever, args=(tmp_path / str(delay_ms), written), daemon=True)
        child.start()
        children.append((delay_ms, written, child))
    for delay_ms, written, child in children:
        assert written.wait(timeout=600)
        time.sleep(delay_ms / 1000)
        child.kill()
        child.join()
        checkpoint = Checkpoint(tmp_path / str(delay_ms), "x")
        tensors, values = checkpoint.load()
        assert values["number"] >= 2
        assert tensors["first"].unique().tolist() == tensors["last"].unique().tolist() == [values["number"]]
        assert list(checkpoint.path.parent.iterdir()) == [checkpoint.path]
