"""How the processes of a run train one model together: one module per topology, behind one small interface."""

from headrace.training.strategy.base import Strategy
from headrace.training.strategy.choose import strategy

__all__ = ["Strategy", "strategy"]
