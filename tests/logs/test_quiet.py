"""What is said again and again is said once a minute, with how often it was left out."""

from __future__ import annotations

import logging

from streams.quiet import OncePerMinute, hush, once_a_minute


def test_one_line_of_a_kind_passes_in_a_minute(caplog):
    logger, now_s = logging.getLogger("quiet.one"), [0.0]
    logger.addFilter(OncePerMinute(monotonic_s=lambda: now_s[0]))
    for second in range(121):
        now_s[0] = float(second)
        logger.warning("broker %d is away", second % 3)
        logger.warning("another thing")

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 6
    assert said[2] == "broker 0 is away (59 more since the last time)"


def test_all_loggers_of_a_library_share_their_minute(caplog):
    """
    1,900 lines of an outage become one of each level; what the library says first is said at once.
    """
    library = logging.getLogger("noisy")
    hush(library)
    hush(library)
    for i in range(1900):
        logging.getLogger(f"noisy.net.{i % 7}").warning("connection %d refused", i)
    logging.getLogger("noisy.producer").error("no broker")

    assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"]


def test_our_own_loggers_are_asked_twice_and_filtered_once():
    logger = logging.getLogger("quiet.two")
    assert once_a_minute(once_a_minute(logger)) is logger
    assert len(logger.filters) == 1
