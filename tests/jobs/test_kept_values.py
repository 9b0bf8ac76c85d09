"""A run that is killed inside a prompt loses the batch in work alone, and ends as if nothing had happened."""

from __future__ import annotations

import signal

import numpy as np

from metagame.kept_values import KeptValues
from tests.tiny.runs import Run, contents, records, run

JOB = (
    "model=gemma3_1b_it", "attribution=meta_attnlrp", "benchmark=prompts", "limit=1", "model.device=cpu",
    "model.tokens_per_batch=64", "estimator.budget_per_player=10",
)  # fmt: skip


def batches(folder):
    """The complete lines of what a run keeps of the sample in work."""
    return [line for file in folder.glob("jobs/*/unfinished/*.txt") for line in file.read_text().splitlines()]


def arrays(folder):
    (path,) = folder.glob("jobs/*/arrays/*.npz")
    with np.load(path) as stored:
        return {name: stored[name].tobytes() for name in stored}


def test_a_kill_inside_a_prompt_loses_a_batch_and_the_result_is_the_same_to_the_last_bit(tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    killed = Run(*JOB, output_dir=cut)
    killed.until(lambda: len(batches(cut)) > 5)
    killed.stop(signal.SIGKILL)
    before = batches(cut)
    assert records(cut) == {}
    again = Run(*JOB, output_dir=cut)
    again.until(lambda: len(batches(cut)) > len(before))
    assert batches(cut)[: len(before)] == before, "nothing is evaluated again"
    assert again.end()[0] == 0
    assert run(*JOB, output_dir=whole)[0] == 0
    assert batches(cut) == batches(whole) == []
    assert records(cut) == records(whole)
    assert contents(cut) == contents(whole)
    assert arrays(cut) == arrays(whole)


def test_values_are_read_as_they_were_kept_but_for_an_unfinished_line(tmp_path):
    kept = KeptValues(tmp_path / "folder/values.txt")
    assert kept.read(2) == {}
    coalitions, values = np.array([[True, False], [True, True]]), np.array([[0.1, -0.0, 1e-300], [1, 2, 3]])
    kept.append(coalitions[:1], values[:1])
    kept.append(coalitions[1:], values[1:])
    whole = kept.path.read_bytes()
    kept.path.write_bytes(whole[:-1])
    assert list(kept.read(2)) == [coalitions[0].tobytes()]
    kept.append(coalitions[1:], values[1:])
    assert kept.path.read_bytes() == whole
    assert [each.tobytes() for each in kept.read(2).values()] == [each.tobytes() for each in values]
    kept.remove()
    assert not kept.path.exists()
