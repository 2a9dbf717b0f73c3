"""Summary of measurability over the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Numbers of private images that are tested.
PRIVATE_IMAGES = (4, 8, 16, 32, 64)
_SHOWN_CLASSES = 3


def summary_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each data set and number of private images: extremes over the classes that are measurable."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        nearest = min(PRIVATE_IMAGES, key=lambda count: abs(count - row["private_images"]))
        groups.setdefault((row["data"], nearest), []).append(row)
    summary = []
    for (name, count), group in groups.items():
        measured = [row for row in group if row["not_measurable"] is None]
        lost = [row["class"] for row in group if row["not_measurable"] is not None]
        more = f" and {len(lost) - _SHOWN_CLASSES} more" if len(lost) > _SHOWN_CLASSES else ""
        summary.append(
            {
                "name": f"{name}, {count} images",
                "measurable": f"{len(measured)} of {len(group)}",
                **{
                    key: choose((row[key] for row in measured), default=None)
                    for key, choose in (("copies", min), ("held_out", min), ("highest_control", max))
                },
                "not_measurable": ", ".join(lost[:_SHOWN_CLASSES]) + more or "none",
            }
        )
    return summary
