"""Values of coalitions that are kept until their sample is done; runs that are killed meanwhile are in tests/system."""

from __future__ import annotations

import numpy as np

from metagame.kept_values import KeptValues


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
