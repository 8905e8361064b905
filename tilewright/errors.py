"""The errors a user can cause. Everything else that goes wrong is a bug in Tilewright and surfaces as AssertionError.

Each message is one sentence or two that say what, what was expected, what was found, where, and what to do.
"""
from __future__ import annotations


class TilewrightError(Exception):
    """Base class of every error that a caller can cause and may want to catch."""


class ModelError(TilewrightError):
    """The model file or object is damaged, inconsistent or unsafe to load."""


class UnsupportedError(TilewrightError):
    """The model is valid, but uses something that Tilewright does not compile."""


class ShapeError(ModelError):
    """Types or shapes inside a graph do not fit an operator's definition."""


class InputError(TilewrightError):
    """A call's arguments do not match the executable's inputs (name, shape, dtype, value)."""


class ScheduleError(TilewrightError):
    """A schedule step is illegal for the program; search treats it as infeasible."""


class TargetError(TilewrightError):
    """A target that cannot be parsed, or that this machine cannot run."""


class VerifyError(TilewrightError):
    """A graph broke an invariant of the IR; the message names the pass that did it."""
