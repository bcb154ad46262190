"""All settings: one TOML file, every key with its unit, bounds and reason.

    fairlead.toml ─┐
                   ├──▶ Settings (checked) ──▶ options of each part
    FAIRLEAD__… ───┘    environment variables win, as in FAIRLEAD__LISTENER__PORT=9000

Models and pools are read again while running; everything else counts from the next start.

The one rule: no other file of the project reads configuration files or environment variables.
"""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import SettingsInvalid, SettingsUnreadable
from learners import policy as policies
from learners.estimator import BlendOptions
from learners.history import HistoryOptions
from learners.learned import MemoryOptions
from learners.ridge import RidgeOptions
from serve.batcher import BatcherOptions
from serve.catalogue import Catalogue, Model, Pool
from serve.deployment import DeploymentOptions
from serve.encoders import KINDS, EncoderOptions
from serve.listener import ListenerOptions
from serve.live import LiveOptions
from serve.replica import ReplicaOptions
from serve.request import WEIGHT_MAX, PreferenceDefaults
from serve.servicer import ServicerOptions
from streams.feedback import FeedbackOptions
from streams.outbox import OutboxOptions
from streams.trainer import TrainerOptions
