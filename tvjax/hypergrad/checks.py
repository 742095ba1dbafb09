"""Arguments that cannot be so, refused with their names and values."""


def check_positive(**values: float) -> None:
    """Raises ValueError unless all are above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_least(least: int, **values: int) -> None:
    """Raises ValueError unless all are at least `least`."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
