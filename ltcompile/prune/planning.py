"""A plan for a network without any search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from ltcompile.core.notice import notify
from ltcompile.core.plan import Branch, PruningPlan
from ltcompile.core.profile import Profile
from ltcompile.core.reached import Reached
from ltcompile.core.streams import generator, seeded, stream
from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph import Example, cut, disagreements, trace
from ltcompile.graph.baked import baked
from ltcompile.graph.proof import branch_id
from ltcompile.graph.trace import check_cuttable
from ltcompile.graph.wrappers import unwrap
from ltcompile.prune import criteria
from ltcompile.prune.budget import RelativeTimer, plan_for_latency
from ltcompile.prune.choose import Ranking, Scope
from ltcompile.prune.criteria import Evidence, Normalisation, Reduction
from ltcompile.prune.depth import DepthSearch, cost_of, ratio_left, without
from ltcompile.prune.evidence import first_batches, from_inputs
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import SizeCounter, Target, check_reachable, plan_for_size


@seeded(0)
def plan(
    model: nn.Module,
    example: Example,
    ratio: float | None = None,
    scope: Scope = "global",
    criterion: str = "l1",
    align: int = 1,
    seed: int = 0,
    *,
    evidence: Evidence | None = None,
    inputs: Iterable[Example] | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_time: float | None = None,
    target_energy: float | None = None,
    profile: Profile | None = None,
    measured: RelativeTimer | None = None,
    limits: Limits | None = None,
    group_reduction: Reduction = "default",
    on_target: Callable[[Reached], None] | None = None,
    check: bool = True,
    depth: bool = False,
    normalize: Normalisation = "default",
) -> PruningPlan:
    """A plan that drops the least important filters of `model`, which stays as it is.

    Args:
        example: an input of the network to trace it: a tensor (N, C, H, W), a tuple of positional or a dict of keyword arguments.
        ratio: the share of the filters to drop; 0.5 where there is no target.
        scope: "global" ranks all filters together, "local" takes the same share from every group, "isomorphic" ranks those
            of one structure together.
        criterion: how important filters are found; see `criteria.names()`.
        align: kept widths are multiples of it where the group is that wide.
        seed: for criterion "random".
        evidence: what the criterion uses besides weights; `ltcompile.search.evidence.gather` collects it.
        inputs: batches without labels, each as the network takes it: what the criterion uses comes from these where it takes no labels.
        target_macs, target_params: instead of a ratio, the share of the dense network's MACs or parameters that may stay. The plan is
            the smallest cut that meets it.
        target_time: the share of the dense network's time that may stay, by `profile`; the plan keeps to the ranking as far as that allows.
        target_energy: the same of its energy, which `measured` measures; the profile's times say how widths share it.
        measured: the share of the whole network's time that a cut takes on this machine, as `profiling.stopwatch` measures it, or of its
            energy, as `profiling.joulemeter` does: where the profile errs, the plan is made again for a corrected budget.
        limits: what may be cut, and how far; by default every layer keeps 5 % of its channels.
        group_reduction: which weights a channel is scored by; see `criteria.score`.
        on_target: gets how the plan stands to its target, where there is one; without it, a missed target is a warning.
        check: run the cut network against the masked one, in eval and in training mode, on random values in float64, and freeze the groups
            for which they differ; see `graph.disagreements`. It takes five runs of two images: False for the largest networks.
        depth: remove whole residual branches too, where the outputs on `inputs` then change less at the same target; see `prune.depth`.
        normalize: how the scores of groups are made comparable; see `criteria.score`.

    Raises:
        InvalidSetting: ratio or target outside (0, 1), more than one of them, a target out of reach (with what forbids it), a limit that
            fits no layer, or no evidence for the criterion. InvalidModel: the network cannot be traced or cut, or its
            weights have no values.
    """
    target, limits = Target.one_of(target_macs, target_params, target_time, target_energy), limits or Limits()
    if target is not None and ratio is not None:
        raise InvalidSetting("give a ratio of filters to drop or a target for what is left, not both")
    ratio = 0.5 if ratio is None else ratio
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise InvalidSetting(f"the ratio of filters to drop must be between 0 and 1, not {ratio!r}")
    if not isinstance(align, int) or align < 1:
        raise InvalidSetting(f"align={align!r}: widths must be multiples of a whole number of at least 1")
    if target is not None and target.profiled and (profile is None or align > 1):
        raise InvalidSetting(
            f"target_{target.measure} needs a profile, which `ltcompile profile` makes, and chooses widths by itself: leave align out"
        )
    if target_energy is not None and measured is None:
        raise InvalidSetting("target_energy needs `measured`, as `profiling.joulemeter` makes it")
    model = baked(unwrap(model))
    _check_values(model)
    groups = limits.freeze(trace(model, example))
    batches = [] if inputs is None else first_batches(inputs)
    search = DepthSearch.of(model, example, batches, limits) if depth else None
    if inputs is not None:
        if evidence is not None:
            raise InvalidSetting("give evidence= or the inputs= to collect it from, not both")
        evidence = from_inputs(criterion, model, batches, seed)
    evidence = evidence or Evidence(rng=generator(stream("random scores", seed)))
    draws = evidence.rng.get_state()
    counter = SizeCounter(model, example) if target is not None and not target.profiled else None
    whole = target.of(counter.dense) if target is not None and counter is not None else 0

    def attempt(removed: tuple[Branch, ...], timer: RelativeTimer | None) -> tuple[PruningPlan, Reached | None]:
        first, network, left = without(model, groups, removed)
        evidence.rng.set_state(draws)  # a second ranking draws the same scores
        scores = criteria.score(criterion, left, network, evidence, group_reduction, normalize)
        ranking = Ranking(left, scores, scope, floors=limits.floors(left), kept=limits.kept(left), align=align)
        share = ratio if not removed else ratio_left(ratio, first)
        here = SizeCounter(network, example) if removed and counter else counter
        found, reached = _found(network, example, ranking, share, target, profile, timer, limits, align, here, whole)
        return first.then(found) if removed else found, reached

    while True:
        removed: tuple[Branch, ...] = ()
        if search is not None:
            removed = search.best(lambda tried: attempt(tried, None)[0], cost_of(target, profile, counter, groups)).removed_branches
        found, reached = attempt(removed, measured)
        differing = disagreements(model, example, found) if check else {}
        if not differing:
            _report(reached, on_target)
            return found
        if search is not None:
            search.branches = [branch for branch in search.branches if branch_id(branch) not in differing]
        groups = tuple(replace(g, frozen=differing[g.name], tied="") if g.name in differing else g for g in groups)
        check_cuttable(groups)
        groups = limits.freeze(groups)


def _found(
    model: nn.Module,
    example: Example,
    ranking: Ranking,
    ratio: float,
    target: Target | None,
    profile: Profile | None,
    measured: RelativeTimer | None,
    limits: Limits,
    align: int,
    counter: SizeCounter | None,
    whole: int,
) -> tuple[PruningPlan, Reached | None]:
    """The cut by a share of the filters, or to a target, and how it stands to that; `whole` is what the target is a share of."""
    if target is None:
        found = ranking.plan(ranking.steps(ratio))
        if found.is_identity:
            raise InvalidSetting(_nothing_cut(ranking, ratio, limits, align))
        return found, None
    if profile is not None and target.profiled:
        found = plan_for_latency(model, ranking, profile, target.share, measured)
        # measured again: the first measurement is biased in favour of the plan it chose
        share = None if measured is None else measured(cut(model, found))
    else:
        assert counter is not None
        check_reachable(target, ranking, counter, limits, align, whole)
        found = plan_for_size(ranking, lambda tried: target.of(counter.left(tried)), target.share * whole)
        share = target.of(counter.left(found)) / whole
    return found, Reached(target.measure, target.share, share)


def _report(reached: Reached | None, on_target: Callable[[Reached], None] | None) -> None:
    if reached is not None and on_target is not None:
        on_target(reached)
    elif reached is not None and reached.missed_by:
        notify(str(reached))


def _check_values(model: nn.Module) -> None:
    """Raises InvalidModel where weights have no values."""
    without = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if without:
        raise InvalidModel(
            f"{without[0]} and {len(without) - 1} more weights have no values, being on the meta device; load them, for instance with "
            "model.to_empty(device='cpu') and model.load_state_dict(weights)"
        )


def _nothing_cut(ranking: Ranking, ratio: float, limits: Limits, align: int) -> str:
    """Why a share of the filters takes no channel, group by group."""
    floors = limits.floors(ranking.groups)
    refusals = []
    for tied, least, _ in ranking.bounds:
        widths = " and ".join(f"{g.name!r} ({g.width} wide)" for g in tied.groups[:3])
        if least >= tied.steps:
            refusals.append(f"{widths} keeps at least {max(floors[g.name] for g in tied.groups)} by the limits")
        elif align > 1 and tied.aligned_steps(align) >= tied.steps:
            refusals.append(f"{widths} has no smaller multiple of align={align}")
        else:
            refusals.append(f"{widths} loses {tied.channels(tied.groups[0], 1)} or more")
    return f"a ratio of {ratio} cuts nothing: {'; '.join(refusals[:8])}; give a larger ratio, a smaller align or wider limits"
