"""What an active-learning run has done so far, on disk before the next step begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from uqbench.errors import DataError
from uqbench.runs.run_dir import RunDir

JOURNAL = "journal.jsonl"


class Journal:
    """The steps of a run that are finished, one JSON line each: generation, step, and facts about its outcome.

    A step that leaves a file is finished when the file is whole and then the line is written; both survive a power cut.
    A process that is killed in between repeats the step, to the same result, because every step is a function of what
    came before.
    """

    def __init__(self, run: RunDir) -> None:
        self.run, self.lines = run, []
        path = run.path / JOURNAL
        if path.exists():
            try:
                self.lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: damaged ({error}); delete {run.path} and run the command again") from error

    def once(
        self, generation: int, step: str, name: str, make: Callable[[], tuple[bytes, dict[str, Any]]]
    ) -> dict[str, Any]:
        """Leave a file with the content that `make` returns, beside facts for the journal, unless that was done before.

        Returns the line of the journal, the facts among it. Raises DataError when the file of a finished step has been
        lost or changed since.
        """
        path = self.run.path / name
        line = next((line for line in self.lines if (line["generation"], line["step"]) == (generation, step)), None)
        if line is None:
            content, facts = make()
            self.run.write_bytes(name, content)
            digest = hashlib.sha256(content).hexdigest()
            line = {"generation": generation, "step": step, "file": name, "sha256": digest, **facts}
            self.lines.append(line)
            self.run.write_text(JOURNAL, "".join(json.dumps(each) + "\n" for each in self.lines))
        elif not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != line["sha256"]:
            raise DataError(
                f"{path}: missing or changed since it was made; restore it, or delete {self.run.path} and run the "
                "command again"
            )
        return line
