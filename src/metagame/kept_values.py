"""Values of a game in a file, batch by batch, so that a run that is killed loses the batch in work alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float


class KeptValues:
    """An append-only file with a line for each batch: its coalitions and their values, as hexadecimal digits.

    A line that a killed process left unfinished does not count. It has one writer at a time.

    Args:
        path: of the file; made when the first batch is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, n_players: int) -> dict[bytes, Float[np.ndarray, " t"]]:
        """The values of each coalition, by its bytes."""
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(complete))
        found: dict[bytes, np.ndarray] = {}
        for line in complete.decode("ascii").splitlines():
            names, numbers = map(bytes.fromhex, line.split())
            coalitions = [names[start : start + n_players] for start in range(0, len(names), n_players)]
            found |= zip(coalitions, np.frombuffer(numbers).reshape(len(coalitions), -1), strict=True)
        return found

    def append(self, coalitions: Bool[np.ndarray, "k n"], values: Float[np.ndarray, "k t"]) -> None:
        """Keep a batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            file.write(f"{coalitions.tobytes().hex()} {values.tobytes().hex()}\n")

    def remove(self) -> None:
        """Once the result is on the disk."""
        self.path.unlink(missing_ok=True)
