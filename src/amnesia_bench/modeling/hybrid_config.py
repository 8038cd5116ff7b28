"""The configs of the hybrid models of this package, whose modules share most of their code."""

from __future__ import annotations

from typing import TypeAlias

from .configuration_hypenet import HypeNetConfig
from .configuration_jet_nemotron import JetNemotronConfig

HybridConfig: TypeAlias = HypeNetConfig | JetNemotronConfig
