"""What can go wrong with streams.

StreamError
├── LogUnavailable      the log can't be reached or did not answer in time; try again
├── LogTruncated        the log no longer holds the offset asked for; no silent skipping
├── LogReplaced         the topic was deleted and made again; offsets no longer mean the same
├── RecordTooLarge      one record is larger than the log takes; trying again won't help
├── TopicUnfit          a topic that exists is set up so that the log can't keep its promises
├── OptionRefused       an option has a name or a value that can't work
├── BadFeedback         one feedback record can't be learned from (see `feedback.Reason`)
├── AnswersRefused      a file of judged answers has rows that can't be taken
├── BadTelemetry        one telemetry record can't be folded (see `telemetry.Reason`)
├── BadTicket           a ticket is malformed, forged, foreign or of another version
├── SnapshotError
│   ├── SnapshotDamaged     a snapshot does not match its checksums or can't be read
│   ├── SnapshotForeign     it was made by another encoder, another version or other options
│   └── SnapshotFenced      another trainer publishes here; this one must stop
└── OutboxClosed        something was handed to an outbox that is shutting down

Constructors are positional and pass their arguments on, so that every error survives pickling.
"""

from __future__ import annotations


class StreamError(Exception):
    """Base of all errors of this folder."""


class LogUnavailable(StreamError):
    """The log can't be reached or did not answer in time. What was not acknowledged may be lost."""


class LogTruncated(StreamError):
    """The log begins after, or ends before, the offset asked for.

    Going on anyway would skip records without a trace.
    """

    def __init__(self, topic: str, partition: int, wanted: int, first: int, end: int) -> None:
        super().__init__(topic, partition, wanted, first, end)
        self.topic, self.partition, self.wanted = topic, partition, wanted
        self.first, self.end = first, end

    def __str__(self) -> str:
        return (
            f"{self.topic}[{self.partition}] holds offsets {self.first} to {self.end - 1}, but "
            f"reading was to go on at {self.wanted}. Most likely retention is shorter than the "
            f"longest trainer outage, or the topic was made again. Raise retention; then set "
            f'`on_gap = "continue"` once to learn what is left.'
        )


class LogReplaced(StreamError):
    """The topic under this name is not the one the snapshot was learned from."""

    def __init__(self, topic: str, wanted: str, found: str) -> None:
        super().__init__(topic, wanted, found)
        self.topic, self.wanted, self.found = topic, wanted, found

    def __str__(self) -> str:
        return (
            f"{self.topic} has identity {self.found}, the snapshot was learned from {self.wanted}: "
            f"the topic was deleted and made again, so its offsets mean other records. Set "
            f'`on_gap = "continue"` once to keep what was learned and read the new topic from '
            f"its start."
        )


class RecordTooLarge(StreamError):
    """One record is larger than the log takes; nothing handed over with it may be relied on."""

    def __init__(self, topic: str, bytes_found: int, bytes_max: int) -> None:
        super().__init__(topic, bytes_found, bytes_max)
        self.topic, self.bytes_found, self.bytes_max = topic, bytes_found, bytes_max

    def __str__(self) -> str:
        return (
            f"a record of {self.bytes_found} bytes for {self.topic} is larger than what it takes, "
            f"{self.bytes_max} bytes. Trying again can't help: make it smaller, or raise "
            f"`record_bytes_max` and the topic's `max.message.bytes` together."
        )


class TopicUnfit(StreamError):
    """A topic that exists is set up so that the log can't keep its promises."""

    def __init__(self, topic: str, setting: str, found: str, wanted: str) -> None:
        super().__init__(topic, setting, found, wanted)
        self.topic, self.setting, self.found, self.wanted = topic, setting, found, wanted

    def __str__(self) -> str:
        return (
            f"topic {self.topic} has {self.setting}={self.found}, but must have {self.wanted}. "
            f"Most likely it was made by hand or by another program. Change it with "
            f"`kafka-configs.sh --alter --entity-type topics --entity-name {self.topic} "
            f"--add-config {self.setting}={self.wanted}`, or name another topic."
        )


class OptionRefused(StreamError):
    """An option has a name or a value that can't work. Found at start-up."""

    def __init__(self, option: str, value: object, allowed: str) -> None:
        super().__init__(option, value, allowed)
        self.option, self.value, self.allowed = option, value, allowed

    def __str__(self) -> str:
        return f"{self.option} is {self.value!r}, but must be {self.allowed}."


class BadFeedback(StreamError):
    """One feedback record can't be learned from. `reason` is a `feedback.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class AnswersRefused(StreamError):
    """A file of judged answers can't be taken; nothing of it was."""

    def __init__(self, file: str, problems: tuple[str, ...], n_wrong: int) -> None:
        super().__init__(file, problems, n_wrong)
        self.file, self.problems, self.n_wrong = file, problems, n_wrong

    def __str__(self) -> str:
        more = self.n_wrong - len(self.problems)
        said = [*self.problems, *([f"and {more:,} more rows"] if more > 0 else [])]
        return f"{self.file} was not imported, nothing of it:\n  " + "\n  ".join(said)


class BadTelemetry(StreamError):
    """One telemetry record can't be folded. `reason` is a `telemetry.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class BadTicket(StreamError):
    """A ticket can't be opened: it is malformed, forged, foreign or of another version."""


class SnapshotError(StreamError):
    """Something about a snapshot."""


class SnapshotDamaged(SnapshotError):
    """A snapshot does not match its checksums or can't be read."""


class SnapshotForeign(SnapshotError):
    """A snapshot made by another encoder, another version, or with other options."""


class SnapshotFenced(SnapshotError):
    """Another trainer publishes to this store; this one must stop."""


class OutboxClosed(StreamError):
    """Something was handed to an outbox that is shutting down."""
