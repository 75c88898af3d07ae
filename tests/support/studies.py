"""A study as data."""

from __future__ import annotations

from ltcompile.core.study import ArmNote, Claim, Figure, Series, Study, Table
from ltcompile.study._statistics import estimate


def some_study(text: str = "text") -> Study:
    """A study whose every text is `text`."""
    series = [
        Series(text, "band", 0, [], [90.0], [89.0], [91.0]),
        Series(text, "line", 1, [1.0, 2.0], [88.0, 70.0], [87.0, None], [89.0, None], [0.5, 1.5], [1.5, 2.5]),
        Series(text, "control", 1, [1.0], [60.0], [50.0], [70.0]),
    ]
    arm = study_arm(text)
    return Study(
        name=text,
        title=text,
        source=text,
        scale=text,
        about=[text, text],
        seeds=[0, 1, 2],
        arms=[arm],
        claims=[
            Claim.judged(text, text, text, estimate(values), "above", unit=text)
            for values in ([1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [1.0, -1.0, 0.0], [4.0])
        ],
        tables=[Table(text, [text, text], [[text, text]], text)],
        figures=[Figure("one", text, f"{text} (%)", f"{text} (points)", text, series, log_x=True)],
        provenance={"command": text, "versions": {text: text}, "commit": None},
    )


def study_arm(text: str) -> ArmNote:
    return ArmNote(text, text, text, {"train": 1}, {text: text}, {text: [text]}, [text], {"1": True, "2": False, text: None}, text, 61.0)
