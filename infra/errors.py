"""What can go wrong with machines and their settings.

InfraError
├── SettingsUnreadable   the settings file is missing or is not TOML
├── SettingsInvalid      a setting is unknown, of the wrong type or out of bounds
├── NoSiteYet            a command that looks found no state where it looked
├── StateUnwritable      the state folder can't be written, or is full
├── StatePrivate         the state folder is another user's
├── AddressTaken         somebody listens already where we are to
├── AddressUnusable      nobody can listen there: no address of this machine, or no address
├── BackupRefused        a copy of a site can't be made, or none can be made from it
├── StateInUse           another `fairlead up` uses the state folder
├── ClusterFailed        the local cluster could not be started, or what is to run in it
│   └── RayEnded         a process that Ray needs has died under us
├── ServerFailed         a pool's model server could not be started
└── PageUnreadable       a server's metrics page can't be had, or can't be read
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


class AddressTaken(InfraError):
    """Somebody listens already where we are to."""

    def __init__(self, setting: str, host: str, port: int) -> None:
        super().__init__(setting, host, port)
        self.setting, self.host, self.port = setting, host, port

    def __str__(self) -> str:
        return (
            f"{self.setting}: {self.host}:{self.port} is taken by another process. End that "
            f"process, or set another port."
        )


class StateInUse(InfraError):
    """Another `fairlead up` uses the state folder."""

    def __init__(self, state_dir: str, pid: str) -> None:
        super().__init__(state_dir, pid)
        self.state_dir, self.pid = state_dir, pid

    def __str__(self) -> str:
        return (
            f"state_dir {self.state_dir} is used by another `fairlead up`, process {self.pid}: two "
            f"would take the learning from each other. Stop that one, or set another `state_dir`."
        )


class StateUnwritable(InfraError):
    """The state folder can't be written, or is full."""

    def __init__(self, folder: str, problem: str) -> None:
        super().__init__(folder, problem)
        self.folder, self.problem = folder, problem

    def __str__(self) -> str:
        return (
            f"state_dir {self.folder} can't be written: {self.problem}. What is learned is kept "
            f"there: make it writable, make room, or set `state_dir` to another folder."
        )


class StatePrivate(InfraError):
    """The state folder is another user's: it holds keys, so nobody else may read it."""

    def __init__(self, path: str, owner: str) -> None:
        super().__init__(path, owner)
        self.path, self.owner = path, owner

    def __str__(self) -> str:
        return (
            f"{self.path} can't be read: the state folder of a site is private to the user that "
            f"runs it. Run this as {self.owner}, or with a `state_dir` of your own."
        )


class NoSiteYet(InfraError):
    """Who only looks found no state of a site: most often the command was run in another folder."""

    def __init__(self, folder: str, working_folder: str, found_in: str) -> None:
        """`working_folder` is what a relative `state_dir` was looked up from, "" for an absolute
        one; `found_in`, a folder in which the same `state_dir` holds a site, "" if none is known.
        """
        super().__init__(folder, working_folder, found_in)
        self.folder, self.working_folder, self.found_in = folder, working_folder, found_in

    def __str__(self) -> str:
        said = f"no site has run with state_dir {self.folder}, so there is nothing to look at. "
        if self.working_folder:
            said += f"It is relative to the folder of the command, {self.working_folder}. "
        if self.found_in:
            return (
                f"{said}A site's state is in {self.found_in}: run this there, or make `state_dir` "
                f"absolute."
            )
        return f"{said}Run this where `fairlead up` runs, or start that first."


class ClusterFailed(InfraError):
    """The local cluster could not be started, or what is to run in it."""


class RayEnded(ClusterFailed):
    """A process that Ray needs has died under us."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.process = process

    @property
    def reason(self) -> str:
        """What happened, in a sentence."""
        return f"Ray's {self.process} has ended, and what runs in Ray ends with it."

    def __str__(self) -> str:
        return (
            f"{self.reason} It was started again several times, and ended again. What was learned "
            f"is kept: Ray's own logs, in /tmp/ray/session_latest/logs, say more; then start "
            f"`fairlead up` again."
        )


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


class AddressUnusable(InfraError):
    """Nobody can listen where we are to."""

    def __init__(self, setting: str, host: str, port: int, why: str) -> None:
        super().__init__(setting, host, port, why)
        self.setting, self.host, self.port, self.why = setting, host, port, why

    def __str__(self) -> str:
        return (
            f"{self.setting}: {self.host}:{self.port} can't be listened at: {self.why}. Hosts are "
            f"names or addresses of this machine, such as 127.0.0.1 or 0.0.0.0 (all it has)."
        )


class BackupRefused(InfraError):
    """A copy of a site can't be made here, or no site can be made from it."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def __str__(self) -> str:
        return f"{self.what} {self.problem}"


class PageUnreadable(InfraError):
    """A server's metrics page can't be had, or can't be read. Nothing is known for that moment."""
