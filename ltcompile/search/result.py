"""What a search leaves: the ticket, and search.json, from which the report is made."""

from __future__ import annotations

from pathlib import Path

from ltcompile.core.plan import PruningPlan
from ltcompile.core.reached import Reached
from ltcompile.core.records import Trained, Verdict, provenance
from ltcompile.core.ticket import Ticket
from ltcompile.graph import Size, cut
from ltcompile.paths import write_json
from ltcompile.search.asked import Asked
from ltcompile.search.conditions import arm
from ltcompile.search.units import Unit, Units
from ltcompile.search.verdict import typical_seed


def ticket_of(asked: Asked, units: Units, rows: list[Trained], verdict: Verdict, level: int) -> Ticket:
    """The chosen level's ticket of the seed that `typical_seed` names."""
    seed = typical_seed(arm(rows, "ticket", level))
    unit = Unit(seed, "ticket", level)
    kept, model = units.kept(unit), units.trained(unit)
    mask = kept.as_mask(model)
    small = cut(model, kept.plan) if asked.config.masked else model
    return Ticket(
        model={"name": asked.name, "arguments": asked.arguments},
        plan=kept.plan if mask is None else PruningPlan(asked.traced),
        weights=small.state_dict(),
        initial_seed=seed,
        recipe=asked.recipe,
        data=asked.data.description.to_json(),
        config=asked.config.to_json(),
        history=tuple(rows),
        verdict=verdict,
        level=level,
        seed=seed,
        provenance=provenance(),
        mask=mask,
    )


def reached_by(asked: Asked, units: Units, ticket: Ticket) -> Reached | None:
    """How the ticket stands to the target of the search, where it had one; time and energy are measured now."""
    target, row = asked.config.target, ticket.row
    if target is None:
        return None
    if not target.profiled:
        return Reached(target.measure, target.share, target.of(Size(row.params, row.macs)) / target.of(asked.dense_size))
    if asked.measured is None:
        return Reached(target.measure, target.share, None)
    unit = Unit(ticket.seed, "ticket", ticket.level)
    model = units.trained(unit)
    return Reached(target.measure, target.share, asked.measured(cut(model, units.kept(unit).plan) if asked.config.masked else model))


def write_search(path: Path, asked: Asked, units: Units, ticket: Ticket, reached: Reached | None, seconds: float) -> None:
    """Write PATH/search.json. Raises BadFile."""
    widths = [
        {"layer": name, "before": before, "after": after, "frozen": ticket.plan.frozen.get(name, "")}
        for name, (before, after) in ticket.plan.widths.items()
    ]
    sizes = {"train": len(asked.data.train), "val": len(asked.data.val), "test": len(asked.data.test)}
    write_json(
        path / "search.json",
        {
            "kind": "search",
            "format": 1,
            "name": path.name,
            "model": dict(ticket.model),
            "data": {**ticket.data, "sizes": sizes},
            "config": asked.config.to_json(),
            "recipe": asked.recipe.to_json(),
            "seeds": list(asked.config.all_seeds),
            "rows": [r.to_json() for r in ticket.history],
            "health": units.ailing,
            "execution": units.execution.to_json(),
            "widths": widths,
            "verdict": ticket.verdict.to_json(),
            "ticket": {
                "seed": ticket.seed,
                "level": ticket.level,
                "won": ticket.verdict.won,
                "checksum": ticket.checksum,
            },
            "target": reached.to_json() if reached else None,
            "seconds": seconds,
            "provenance": dict(ticket.provenance),
        },
    )
