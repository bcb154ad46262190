"""What can go wrong with replays and benchmarks.

LoadError
├── EventRefused       a file of events is none, or has one that can't happen
├── LandmarksRefused   a site's own landmarks can't be made
├── LogRefused         a file of decisions is none, or has a value that can't be
├── LoopStuck          outcomes were sent and not learned in the time that learning should take
├── PreferenceRefused  a setting of the dial is no weight
├── SnapshotMissing    a folder has no snapshot to begin with
├── TableRefused       a file is no outcome table, or has a value that can't be
├── ToolMissing        a benchmark needs a tool that only a checkout has
└── TraceRefused       a file is no trace, or has a row that can't be
"""

from __future__ import annotations


class LoadError(Exception):
    """Base of all errors of this folder."""


class EventRefused(LoadError):
    """A file of events is none, or has one that can't happen at this site."""

    def __init__(self, file: str, number: int | None, why: str) -> None:
        super().__init__(file, number, why)
        self.file, self.number, self.why = file, number, why

    def __str__(self) -> str:
        which = f", event {self.number}" if self.number is not None else ""
        return f"{self.file}{which} {self.why}. docs/planning.md lists what can happen"


class LogRefused(LoadError):
    """A file of decisions is none, or has a value that can't be."""

    def __init__(self, file: str, column: str, row: int | None, why: str) -> None:
        super().__init__(file, column, row, why)
        self.file, self.column, self.row, self.why = file, column, row, why

    def __str__(self) -> str:
        where = f", column `{self.column}`" if self.column else ""
        where += f", row {self.row} (the first is 0)" if self.row is not None else ""
        return (
            f"{self.file}{where} {self.why}. `fairlead decisions export --outcomes` makes such a "
            f"file; docs/evaluate.md says what others' need"
        )


class LoopStuck(LoadError):
    """Outcomes were sent and not learned in the time that learning should take."""


class PreferenceRefused(LoadError):
    """A setting of the dial is no weight."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return (
            f"--lambdas has {self.text[:40]!r}: a weight of cost is a number from 0 to 100; give "
            f"several with commas, such as 0.03,0.1,0.4"
        )


class LandmarksRefused(LoadError):
    """Landmarks can't be made of what was learned."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"landmarks can't be made: {self.problem}. Until there are some, those of the encoder "
            f"are used; nothing has to be done."
        )


class SnapshotMissing(LoadError):
    """A folder has no snapshot to begin with."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return (
            f"{self.folder} has no snapshots: give the folder that has `manifests` in it, which is "
            f"`snapshots` in the site's state_dir unless its settings say otherwise"
        )


class TableRefused(LoadError):
    """A file is no outcome table, or has a value that can't be."""

    def __init__(self, table: str, column: str, row: int | None, why: str) -> None:
        super().__init__(table, column, row, why)
        self.table, self.column, self.row, self.why = table, column, row, why

    def __str__(self) -> str:
        where = f", column `{self.column}`" if self.column else ""
        where += f", row {self.row} (the first is 0)" if self.row is not None else ""
        return (
            f"{self.table}{where}: {self.why}. docs/decisions.md says what an outcome table is: "
            f"`embedding`, `prompt_tokens` or `prompt`, and for every model `quality:<model>` and "
            f"`cost_usd:<model>`"
        )


class ToolMissing(LoadError):
    """A benchmark needs a tool that only a checkout has."""

    def __init__(self, tool: str) -> None:
        super().__init__(tool)
        self.tool = tool

    def __str__(self) -> str:
        return (
            f"this benchmark needs {self.tool}, which is not part of the package: run it in a "
            f"checkout after `make install`"
        )


class TraceRefused(LoadError):
    """A file is no trace, or has a row that can't be."""

    def __init__(self, trace: str, where: str, why: str) -> None:
        super().__init__(trace, where, why)
        self.trace, self.where, self.why = trace, where, why

    def __str__(self) -> str:
        where = f", {self.where}" if self.where else ""
        return f"{self.trace}{where} {self.why}. docs/planning.md has the formats and their rules"
