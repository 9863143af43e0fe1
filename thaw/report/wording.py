"""How a report says figures: shares, losses, durations, long names."""

import math

_PERCENT = "\u00a0%"


def say_percent(share: float, unit: str = _PERCENT) -> str:
    return f"{100 * share:.1f}{unit}" if math.isfinite(share) else "not finite"


def say_interval(low: float, high: float, unit: str = _PERCENT) -> str:
    return f"{say_percent(low, '')}–{say_percent(high, unit)}"


def say_number(value: float | None, unit: str = "") -> str:
    """Four decimals, which is more than a test of some thousand images can tell apart."""
    if value is None:
        return "–"
    return f"{value:.4f}{unit}" if math.isfinite(value) else "not finite"


def say_nats(value: float | None) -> str:
    return say_number(value, "\u00a0nats")


def say_duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    if seconds < 59.5:
        return f"{seconds:.0f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def shorten(text: str, limit: int = 160) -> str:
    """The text, with its middle left out where it is too long."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
