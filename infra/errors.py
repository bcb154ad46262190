"""What can go wrong with machines and their settings.

InfraError
├── SettingsUnreadable   the settings file is missing or is not TOML
├── SettingsInvalid      a setting is unknown, of the wrong type or out of bounds
├── ClusterFailed        the local cluster could not be started
└── ServerFailed         a pool's model server could not be started
"""

from __future__ import annotations


class InfraError(Exception):
    """Base of all errors of this folder."""


class SettingsUnreadable(InfraError):
    """The settings file is missing or is not TOML."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"settings {self.path} can't be read: {self.problem}"


class SettingsInvalid(InfraError):
    """Settings are unknown, of the wrong type or out of bounds; all problems at once."""

    def __init__(self, path: str, problems: tuple[str, ...]) -> None:
        super().__init__(path, problems)
        self.path, self.problems = path, problems

    def __str__(self) -> str:
        return f"settings {self.path} are not valid:\n" + "\n".join(
            f"  {problem}" for problem in self.problems
        )


class ClusterFailed(InfraError):
    """The local cluster could not be started."""


class ServerFailed(InfraError):
    """A pool's model server could not be started."""

    def __init__(self, command: str, problem: str) -> None:
        super().__init__(command, problem)
        self.command, self.problem = command, problem

    def __str__(self) -> str:
        return (
            f"the model server {self.command} failed: {self.problem}. Run the pool's `command` by "
            f"hand to see what it says."
        )
