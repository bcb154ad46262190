"""`fairlead init`: five questions, and a settings file that `fairlead up` takes.

    which models · what a call costs · where they answer · where the router listens · which log

The file is checked as any other before it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InfraError, SettingsUnreadable
from infra.settings.settings import read_settings

Ask = Callable[[str, str], str]  # question and default to answer


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered, in words as a person types them."""

    models: str = "small, large"
    usd_per_call: str = "0.0002, 0.005"
    urls: str = ""
    address: str = "127.0.0.1:7480"
    kafka: str = ""


QUESTIONS = {
    "models": "Models to choose from, cheapest first, with commas",
    "usd_per_call": "What one call of each costs, in USD, in the same order",
    "urls": "URLs of their OpenAI-compatible servers in the same order; empty: you call them",
    "address": "Where the router listens, HOST:PORT",
    "kafka": "Kafka brokers, HOST:PORT with commas; empty: a file of this machine",
}


def asked(ask: Ask, defaults: Answers) -> Answers:
    """Put the five questions."""
    return Answers(**{key: ask(text, getattr(defaults, key)) for key, text in QUESTIONS.items()})


def settings_text(answers: Answers) -> str:
    """The settings file (TOML) of these answers. Raises SettingsUnreadable where they don't fit."""
    models, prices, urls = map(_listed, (answers.models, answers.usd_per_call, answers.urls))
    _same_length("prices", prices, models)
    if urls:
        _same_length("URLs", urls, models)
    host, _, port = answers.address.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsUnreadable("the address", f"{answers.address!r} is not HOST:PORT")
    parts = ["# Every key, with unit, bounds and reason: `fairlead settings`.\n"]
    if answers.kafka:
        parts.append(f'[log]\nkind = "kafka"\n{_pair("bootstrap_servers", answers.kafka)}')
    parts.append(f"[listener]\n{_pair('host', host)}port = {port}\n")
    if urls:
        parts.append("[dispatch]\nreplicas = 1\n")
    parts += [_model(name, price) for name, price in zip(models, prices, strict=True)]
    parts += [_pool(name, url) for name, url in zip(models, urls or [], strict=bool(urls))]
    return "\n".join(parts)


def write(path: Path, text: str) -> None:
    """Keep the file, if it is valid. Raises SettingsInvalid and SettingsUnreadable."""
    if path.exists():
        raise SettingsUnreadable(str(path), "it exists already, and is left as it is")
    try:
        path.write_text(text)
    except OSError as error:
        raise SettingsUnreadable(str(path), error.strerror or str(error)) from error
    try:
        read_settings(path)
    except InfraError:
        path.unlink()
        raise


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _same_length(what: str, found: list[str], models: list[str]) -> None:
    if len(found) != len(models):
        problem = f"there are {len(found)} for {len(models)} models: give one each"
        raise SettingsUnreadable(f"the {what}", problem)


def _model(name: str, usd_per_call: str) -> str:
    return f"[[models]]\n{_pair('name', name)}usd_per_call = {usd_per_call}\n"


def _pool(model: str, url: str) -> str:
    pairs = {"name": model, "model": model, "backend": "openai"}
    return (
        "[[pools]]\n" + "".join(map(_pair, pairs, pairs.values())) + f"urls = [{json.dumps(url)}]\n"
    )


def _pair(key: str, value: str) -> str:
    return f"{key} = {json.dumps(value)}\n"  # a JSON text is a TOML text, too
