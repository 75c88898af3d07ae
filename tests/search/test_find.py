"""The search: cutting equals masking between rounds, resuming equals never stopping, and what rewinding means."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from searches import QUICK, Stop, StopAfter
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.notice import Notice, notify
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded, stream
from ltcompile.data import Dataset, Split
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch, TrainingFailed, UnknownName
from ltcompile.graph import cut, embed, trace
from ltcompile.search import rewind
from ltcompile.search.evidence import gather
from ltcompile.search.health import dead_channels, spikes
from ltcompile.search.rewind import Sources
from ltcompile.tasks import Classification
from ltcompile.training import Epoch, memory_format, to_memory_format, train
from ltcompile.training.loss import cross_entropy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=16)


def load(folder: Path, unit: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / f"{unit}.pt", weights_only=True)["weights"]
    return weights


class TestTraining:
    def test_the_same_seed_gives_the_same_bits(self, digits: Dataset) -> None:
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            model = lt.build_model("lenet5", 10, 1, 16)
            rows = train(model, Classification(digits), QUICK, 3, CPU).epochs
            runs.append((model.state_dict(), [dataclasses.replace(r, seconds=0, images_per_second=0) for r in rows]))
        assert runs[0][1] == runs[1][1]
        assert all(torch.equal(v, runs[1][0][k]) for k, v in runs[0][0].items())

    def test_a_network_learns_real_digits(self, digits: Dataset) -> None:
        torch.manual_seed(0)
        model = lt.build_model("lenet300", 10, 1, 16)
        rows = train(model, Classification(digits), dataclasses.replace(QUICK, epochs=6), 0, CPU).epochs
        assert rows[-1].val_score > 0.85 and rows[-1].train_loss < rows[0].train_loss
        assert Classification(digits).evaluate(model, "val", CPU).value == rows[-1].val_score

    @torch.no_grad()
    def test_what_was_trained_in_bf16_is_validated_in_fp32(self, digits: Dataset) -> None:
        model = lt.build_model("lenet300", 10, 1, 16)
        with torch.enable_grad():
            found = train(model, Classification(digits), dataclasses.replace(QUICK, epochs=1, precision="bf16"), 0, CPU).val.loss
        model.eval()
        losses = [F.cross_entropy(model(images), labels, reduction="sum").item() for images, labels in digits.val.batches(64, CPU, None, 0)]
        assert found == pytest.approx(sum(losses) / len(digits.val), rel=1e-6)

    def test_a_loss_that_is_not_finite_stops(self, digits: Dataset) -> None:
        where = r"the loss is (nan|inf) in epoch 1, batch \d+ of \d+, at learning rate \S+e\+08; try lr=1e\+08"
        with pytest.raises(TrainingFailed, match=where):
            train(lt.build_model("lenet5", 10, 1, 16), Classification(digits), dataclasses.replace(QUICK, lr=1e9), 0, CPU)

    def test_the_first_bad_batch_is_named(self, digits: Dataset) -> None:
        network = lt.build_model("lenet300", 10, 1, 16)
        steps = iter(range(1000))

        def spoil() -> None:
            if next(steps) == 40:  # 33 steps an epoch
                next(network.parameters()).data.fill_(float("nan"))

        with pytest.raises(TrainingFailed, match="the loss is nan in epoch 2, batch 9 of 33, at learning rate"):
            train(network, Classification(digits), dataclasses.replace(QUICK, batch=27), 0, CPU, after_step=spoil)

    def test_a_validation_loss_that_is_not_finite_stops(self, digits: Dataset) -> None:
        network = lt.build_model("lenet300", 10, 1, 16)
        steps = iter(range(1000))

        def spoil() -> None:
            if next(steps) == 32:
                next(network.parameters()).data.fill_(float("inf"))

        with pytest.raises(TrainingFailed, match="the validation loss is nan after epoch 1, at learning rate"):
            train(network, Classification(digits), dataclasses.replace(QUICK, batch=27), 0, CPU, after_step=spoil)

    def test_gradients_of_narrow_strided_shortcuts_are_right(self) -> None:
        """oneDNN corrupts memory for these in channels_last (its issue 6035); the loop must not take that layout."""
        model = lt.cut(lt.build_model("resnet20"), lt.plan(lt.build_model("resnet20"), torch.zeros(2, 3, 32, 32), 0.7, "local"))
        assert memory_format(model, CPU) == torch.contiguous_format
        assert memory_format(lt.build_model("vgg16"), CPU) == torch.channels_last
        was_channels_last = model.to(memory_format=torch.channels_last)
        to_memory_format(was_channels_last, CPU)
        filters = [m.weight for m in was_channels_last.modules() if isinstance(m, nn.Conv2d)]
        assert all(w.stride() == torch.empty(w.shape).stride() for w in filters), "strides alone can select the layout"

    def test_rates(self) -> None:
        step = Recipe(epochs=100, lr=1.0, milestones=(0.5, 0.75), warmup_epochs=10)
        assert [step.rate_at(e) for e in (5, 10, 49, 50, 75)] == pytest.approx([0.5, 1, 1, 0.1, 0.01])
        cosine = dataclasses.replace(step, schedule="cosine")
        assert [cosine.rate_at(e) for e in (10, 55, 100)] == pytest.approx([1, 0.5, 0])

    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": 0},
            {"batch": 1},
            {"lr": 0},
            {"momentum": 1},
            {"weight_decay": -1},
            {"schedule": "x"},
            {"precision": "int8"},
            {"warmup_epochs": 999},
        ],
    )
    def test_recipes_refuse_nonsense(self, wrong: dict[str, object]) -> None:
        with pytest.raises(InvalidSetting):
            dataclasses.replace(QUICK, **wrong)


class TestCuttingEqualsMasking:
    """Same plans and, to 1e-5, the same logits after each round. Momentum starts at zero in every round of both.

    In fp32 a network with batch norm is not a fair subject: on the flat background of these images whole regions share one
    activation, and where it lies within rounding of zero, a ReLU flips for all of them at once. In float64 none does.
    """

    @pytest.mark.parametrize(("rewinding", "criterion"), [("lr", "l1"), ("weight", "taylor"), ("finetune", "random"), ("reinit", "l2")])
    def test_without_batch_norm(self, tmp_path: Path, digits: Dataset, rewinding: str, criterion: str) -> None:
        self.compare("lenet5", _few(digits, 256), tmp_path, rewind=rewinding, criterion=criterion)

    @pytest.mark.slow
    @pytest.mark.parametrize(("rewinding", "criterion"), [("lr", "bn"), ("weight", "taylor")])
    def test_with_batch_norm_and_shortcuts(self, tmp_path: Path, double: None, rewinding: str, criterion: str) -> None:
        digits = _few(lt.load_data("digits", image_size=16), 96, 64)
        self.compare("golden_network:build", digits, tmp_path, rewind=rewinding, criterion=criterion)

    @staticmethod
    def compare(network: str, data: Dataset, folder: Path, **settings: str) -> None:
        config = lt.SearchConfig(rounds=2, rate=0.4, controls=False, **settings)  # type: ignore[arg-type]
        runs = {masked: folder / f"masked-{masked}" for masked in (False, True)}
        found = [lt.find(network, data, dataclasses.replace(config, masked=m), recipe=QUICK, folder=f) for m, f in runs.items()]
        for row, reference in zip(*(f.rows for f in found), strict=True):
            assert (row.params, row.macs, row.filters, row.val_correct) == (
                reference.params,
                reference.macs,
                reference.filters,
                reference.val_correct,
            )
        for level in (1, 2):
            plan, reference_plan = (PruningPlan.load(f / f"seed0/plan-{level}.json") for f in runs.values())
            assert plan == reference_plan
            small, whole = cut(lt.build_model(network, 10, 1, 16), plan), lt.build_model(network, 10, 1, 16)
            small.load_state_dict(load(runs[False] / "seed0", f"ticket-{level}"))
            whole.load_state_dict(load(runs[True] / "seed0", f"ticket-{level}"))
            torch.testing.assert_close(small.eval()(data.example), whole.eval()(data.example), rtol=1e-5, atol=1e-5)
            assert_pruned_stays_pruned(whole, plan)


class Tight(nn.Module):
    """A network on a GPU whose memory holds so many images."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        self.network, self.images, self.seen = network, images, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.images:
            raise torch.OutOfMemoryError(f"{len(x)} images")
        if self.training:
            self.seen.append(len(x))
        out: Tensor = self.network(x)
        return out


class TestMemory:
    """What does not fit is computed in parts, and said to be."""

    @pytest.mark.parametrize("images", [2, 5, 16, 29])
    def test_parts_add_up_to_the_whole_batch(self, digits: Dataset, images: int) -> None:
        """One step without momentum at rate 1 moves the weights by the gradient."""
        data = _few(digits, 30)
        recipe = Recipe(epochs=1, batch=30, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", flip=False, precision="fp32")
        moved = []
        for held in (30, images):
            torch.manual_seed(0)
            network = Tight(lt.build_model("lenet300", 10, 1, 16), held)
            with contextlib.nullcontext() if held == 30 else pytest.warns(Notice, match="a batch of 30 items does not fit"):
                assert (train(network, Classification(data), recipe, 0, CPU).parts > 1) == (held < 30)
            moved.append(network.state_dict())
            assert sum(network.seen) == 30 and max(network.seen) <= held
            notify.cache_clear()
        for name, value in moved[0].items():
            torch.testing.assert_close(moved[1][name], value, rtol=0, atol=1e-6)

    def test_batch_norm_is_said_to_see_fewer(self, digits: Dataset) -> None:
        network = Tight(lt.build_model("resnet20", 10, 1, 16), 20)
        notify.cache_clear()
        with pytest.warns(Notice, match="a batch of 28 items .* in 2 parts of 14; .* but batch norm sees 14 at a time"):
            train(network, Classification(_few(digits, 28)), dataclasses.replace(QUICK, epochs=1, batch=28), 0, CPU)

    def test_two_images_must_fit(self, digits: Dataset) -> None:
        with pytest.raises(TrainingFailed, match="out of memory with 2 images at a time"):
            train(Tight(lt.build_model("lenet300", 10, 1, 16), 1), Classification(_few(digits, 30)), QUICK, 0, CPU)

    def test_validation_and_evidence_come_in_parts_too(self, digits: Dataset) -> None:
        network = Tight(lt.build_model("lenet300", 10, 1, 16), 11)
        task = Classification(digits)
        found = [task.evaluate(model, "val", CPU) for model in (network, network.network)]
        assert found[0].loss == pytest.approx(found[1].loss) and found[0].items == found[1].items
        tight, roomy = (gather("taylor", model, task, QUICK, 0, CPU).gradients for model in (network, network.network))
        for one, other in zip(tight, roomy, strict=True):
            for name, gradient in other.items():
                torch.testing.assert_close(one[f"network.{name}"], gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
    def test_resuming_keeps_the_parts(self, digits: Dataset) -> None:
        states: list[dict[str, object]] = []
        first, second = (Tight(lt.build_model("lenet300", 10, 1, 16), 17) for _ in range(2))
        train(first, Classification(_few(digits, 64)), QUICK, 0, CPU, progress=lambda epoch, state: states.append(copy.deepcopy(state)))
        assert train(second, Classification(_few(digits, 64)), QUICK, 0, CPU, state=states[0]).parts == 2
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


class TestHealth:
    """What a training that came to its end has to report."""

    @pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20"])
    def test_dead_channels_are_counted_where_they_are_read(self, digits: Dataset, name: str) -> None:
        torch.manual_seed(0)
        network = lt.build_model(name, 10, 1, 16)
        groups = trace(network, digits.example)
        group = next(g for g in groups if not g.frozen and len(g.producers) == 1)
        layer = network.get_submodule(next((m.layer for m in group.members if m.axis == "each"), group.name))  # the norm, if there is one
        assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(1.0)
        assert all(reported["layer"] != group.name for reported in dead_channels(network, groups, Classification(digits), CPU))
        with torch.no_grad():
            layer.bias[2:] = -1.0
        assert {"layer": group.name, "channels": group.width - 2, "of": group.width} in dead_channels(
            network, groups, Classification(digits), CPU
        )

    def test_spikes(self) -> None:
        def epochs(*losses: float) -> list[Epoch]:
            return [Epoch(i, 0.1, loss, 0.5, 1.0, 0.5, 1.0, 1.0) for i, loss in enumerate(losses)]

        assert spikes(epochs(2.0, 1.0, 2.5, 0.5, 1.1)) == [
            {"epoch": 3, "loss": 2.5, "lowest": 1.0},
            {"epoch": 5, "loss": 1.1, "lowest": 0.5},
        ]
        assert spikes(epochs(2.0, 1.9, 1.8, 2.2)) == spikes(epochs(2.0, 0.01, 0.001, 0.1)) == []

    @pytest.mark.slow
    def test_a_search_reports_of_it(self, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is odd survives an interruption, and reaches the report."""
        monkeypatch.setattr("ltcompile.search.arm_runner.health", lambda *_: {"dead": [{"layer": "1", "channels": 9, "of": 9}], **ODD})
        config, recipe = lt.SearchConfig(rounds=1, rate=0.3, controls=False), dataclasses.replace(QUICK, epochs=1)
        with pytest.raises(Stop):
            lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path / "run", listener=StopAfter(2))
        lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path / "run", resume=True)
        reported = json.loads((tmp_path / "run/search.json").read_text())["health"]
        assert [(row["arm"], row["level"], row["spikes"], row["parts"]) for row in reported] == [
            ("dense", 0, *ODD.values()),
            ("ticket", 1, *ODD.values()),
        ]
        page = lt.report(tmp_path / "run").read_text()
        assert "the training loss jumped from 0.1 to 3 in epoch 2; a batch did not fit into memory" in page
        assert "1 is dead in dense 0 of seed 0: all of its 9 channels are zero on validation images" in page

    @pytest.mark.slow
    def test_a_failed_training_says_what_is_kept(self, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        config, recipe = lt.SearchConfig(rounds=1, rate=0.3, controls=False), dataclasses.replace(QUICK, epochs=3, lr=1e30)
        with pytest.raises(TrainingFailed, match=r"dense-0 of seed 0: the loss is .*lr=.* it had no good epoch yet"):
            lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path / "wild")
        recipe, run, batches = dataclasses.replace(recipe, lr=0.01), tmp_path / "run", iter(range(1000))
        with monkeypatch.context() as patch:
            patch.setattr(
                "ltcompile.tasks.classification.cross_entropy",
                lambda *of: cross_entropy(*of) * (1.0 if next(batches) < 40 else float("nan")),
            )
            with pytest.raises(TrainingFailed, match=r"in epoch 2, .* the state after its last good epoch is in .*dense-0.partial.pt"):
                lt.find("lenet300", digits, config, recipe=recipe, folder=run)
        assert len(lt.find("lenet300", digits, config, recipe=recipe, folder=run, resume=True).rows) == 2


ODD: dict[str, object] = {"spikes": [{"epoch": 2, "loss": 3.0, "lowest": 0.1}], "parts": 2}


def assert_pruned_stays_pruned(whole: nn.Module, plan: PruningPlan) -> None:
    from ltcompile.graph import dropped_weights

    parameters = dict(whole.named_parameters())
    assert all(bool((parameters[name][gone] == 0).all()) for name, gone in dropped_weights(whole, plan).items())


def _few(digits: Dataset, training: int, others: int | None = None) -> Dataset:
    """With so many training images, and so many for validation and test."""

    def part(of: Split, images: int | None) -> Split:
        return of if images is None else of.part(torch.linspace(0, len(of) - 1, images).long())

    return dataclasses.replace(digits, train=part(digits.train, training), val=part(digits.val, others), test=part(digits.test, others))


@pytest.mark.slow
def test_resuming_equals_never_stopping(tmp_path: Path, digits: Dataset) -> None:
    """A search that stops behind its epochs 1, 2, 3, 6, 7 and 11: within trainings and between them."""
    config = lt.SearchConfig(rewind="weight", rewind_epoch=1, rounds=2, rate=0.3, margin_points=50)
    digits, recipe = _few(digits, 200), dataclasses.replace(QUICK, epochs=3)
    whole = lt.find("lenet5", digits, config, recipe=recipe, folder=tmp_path / "whole")
    cut = tmp_path / "cut"
    for more in (1, 1, 1, 3, 1, 4):
        with pytest.raises(Stop):
            lt.find("lenet5", digits, config, recipe=recipe, folder=cut, resume=cut.exists(), listener=StopAfter(more))
    resumed = lt.find("lenet5", digits, config, recipe=recipe, folder=cut, resume=True)
    assert resumed.ticket.plan == whole.ticket.plan and resumed.verdict == whole.verdict
    assert all(torch.equal(v, resumed.ticket.weights[k]) for k, v in whole.ticket.weights.items())
    timeless = [[dataclasses.replace(r, seconds=0) for r in f.rows] for f in (whole, resumed)]
    assert timeless[0] == timeless[1]
    lines = [
        [(r["seed"], r["unit"], r["epoch"]) for r in map(json.loads, (tmp_path / n / "history.jsonl").read_text().splitlines())]
        for n in ("whole", "cut")
    ]
    assert sorted(lines[0]) == sorted(lines[1]), "every epoch is logged once"


class TestRun:
    """What one whole search leaves behind."""

    def test_rows(self, run: Path) -> None:
        rows = json.loads((run / "search.json").read_text())["rows"]
        arms = {(r["arm"], r["level"]) for r in rows}
        ticket = lt.Ticket.load(run / "ticket.pt")
        assert {("dense", 0), ("ticket", 1), ("ticket", 2), ("random", ticket.level), ("dense_budget", ticket.level)} == arms
        by_level = {r["level"]: r["macs"] for r in rows if r["arm"] in ("dense", "ticket")}
        assert by_level[0] > by_level[1] > by_level[2], "every round trains a smaller network"

    def test_only_what_the_verdict_needs_has_seen_the_test_set(self, run: Path) -> None:
        rows = json.loads((run / "search.json").read_text())["rows"]
        level = lt.Ticket.load(run / "ticket.pt").level
        assert all((r["test_score"] is not None) == (r["arm"] == "dense" or r["level"] == level) for r in rows)

    def test_controls_have_the_whole_budget(self, run: Path) -> None:
        ticket = lt.Ticket.load(run / "ticket.pt")
        for seed in (0, 1):
            lineage = [r for r in ticket.history if r.seed == seed and r.arm in ("dense", "ticket") and r.level <= ticket.level]
            arms = {r.arm: r for r in ticket.history if r.seed == seed and r.arm in ("random", "dense_budget")}
            assert arms["random"].epochs == sum(r.epochs for r in lineage)
            assert arms["random"].macs == lineage[-1].macs
            assert arms["dense_budget"].epochs * arms["dense_budget"].macs >= sum(r.epochs * r.macs for r in lineage)

    def test_the_ticket_is_of_the_median_seed(self, run: Path) -> None:
        ticket = lt.Ticket.load(run / "ticket.pt")
        at_level = sorted(r.val_score for r in ticket.history if r.arm == "ticket" and r.level == ticket.level)
        assert ticket.row.val_score == at_level[(len(at_level) - 1) // 2]
        assert f"seed {ticket.seed}" in ticket.verdict.seed_rule and ticket.verdict.decided == (len(at_level) >= 3)

    def test_a_run_is_not_overwritten(self, run: Path, digits: Dataset) -> None:
        with pytest.raises(InvalidFile, match="resume=True"):
            lt.find("lenet5", digits, folder=run, recipe=QUICK, config=lt.SearchConfig(rounds=2))
        with pytest.raises(TicketMismatch, match=r"other settings.*rounds"):
            lt.find("lenet5", digits, folder=run, recipe=QUICK, config=lt.SearchConfig(rounds=1), resume=True)

    def test_nothing_to_resume(self, tmp_path: Path, digits: Dataset) -> None:
        with pytest.raises(InvalidFile, match="no run to resume"):
            lt.find("lenet5", digits, folder=tmp_path / "none", recipe=QUICK, config=lt.SearchConfig(rounds=1), resume=True)


class TestRewind:
    """Where weights come from."""

    @staticmethod
    def sources() -> tuple[Sources, PruningPlan]:
        nets = []
        for seed in range(3):
            torch.manual_seed(seed)
            nets.append(lt.build_model("lenet5", 4, 3, 16))
        plan = lt.plan(nets[0], torch.zeros(2, 3, 16, 16))
        return Sources(nets[0], lambda: nets[1], lambda: nets[2]), plan

    @pytest.mark.parametrize(("name", "source"), [("lr", 0), ("finetune", 0), ("weight", 1), ("reinit", 2)])
    def test_each_takes_its_source(self, name: str, source: int) -> None:
        sources, plan = self.sources()
        origin = [sources.trained, sources.early(), sources.fresh()][source]
        found = rewind.load(name).restart(sources, plan, plan)
        assert all(torch.equal(v, cut(origin, plan).state_dict()[k]) for k, v in found.state_dict().items())

    def test_registry(self) -> None:
        assert set(rewind.names()) == {"lr", "weight", "finetune", "reinit"}

    def test_fine_tuning_is_slow_and_constant(self) -> None:
        recipe = rewind.load("finetune").recipe(QUICK)
        assert recipe.schedule == "constant" and recipe.rate_at(0) == 0.001
        usual = dataclasses.replace(QUICK, lr=0.2)
        assert rewind.load("finetune").recipe(usual).lr == pytest.approx(0.002)
        assert usual.fine_tuning().lr == 0.01 and rewind.load("finetune").recipe(usual.fine_tuning()).lr == 0.001

    def test_weight_rewinding_starts_from_the_initial_values(self, tmp_path: Path, digits: Dataset) -> None:
        config = lt.SearchConfig(rewind="weight", rounds=1, rate=0.3, controls=False)
        tiny = dataclasses.replace(QUICK, lr=1e-12, weight_decay=0.0, epochs=1)
        found = lt.find("lenet5", digits, config, recipe=tiny, folder=tmp_path / "run")
        with seeded(stream("first weights", 0)):
            initial = lt.build_model("lenet5", 10, 1, 16)
        for name, value in cut(initial, found.ticket.plan).state_dict().items():
            torch.testing.assert_close(found.ticket.weights[name], value, rtol=0, atol=1e-6)


class TestSettings:
    """What cannot work is refused before any training."""

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"rate": 0.0}, "between 0 and 1"),
            ({"rate": 1.0}, "between 0 and 1"),
            ({"rounds": 0}, "rounds"),
            ({"seeds": 0}, "seeds"),
            ({"align": 0}, "multiples"),
            ({"confidence": 1.0}, "confidence"),
            ({"scope": "x"}, "scope"),
            ({"schedule": "x"}, "schedule"),
            ({"rewind_epoch": 2}, "rewind=weight"),
            ({"max_layer_ratio": 0.0}, "largest ratio"),
            ({"margin_points": -1}, "margin"),
        ],
    )
    def test_out_of_range(self, wrong: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidSetting, match=message):
            lt.SearchConfig(**wrong)  # type: ignore[arg-type]

    def test_unknown_names(self) -> None:
        with pytest.raises(UnknownName, match="finetune"):
            lt.SearchConfig(rewind="rewind")
        with pytest.raises(UnknownName, match="taylor"):
            lt.SearchConfig(criterion="magnitude")

    @pytest.mark.parametrize("scope", ["local", "global"])
    def test_rounds_that_would_empty_a_layer(self, tmp_path: Path, digits: Dataset, scope: str) -> None:
        config = lt.SearchConfig(rounds=20, rate=0.5, scope=scope)  # type: ignore[arg-type]
        with pytest.raises(InvalidSetting, match=r"empty.*at most \d+ rounds"):
            lt.find("lenet5", digits, config, folder=tmp_path / "run", recipe=QUICK)
        assert not (tmp_path / "run").exists()

    def test_rewind_epoch_beyond_the_schedule(self, digits: Dataset, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="must lie before"):
            lt.find("lenet5", digits, lt.SearchConfig(rewind="weight", rewind_epoch=2, rounds=1), folder=tmp_path / "r", recipe=QUICK)


def test_oneshot_cuts_once_what_the_rounds_would(tmp_path: Path, digits: Dataset) -> None:
    config = lt.SearchConfig(schedule="oneshot", rounds=3, rate=0.3, controls=False, max_layer_ratio=1.0)
    found = lt.find("lenet300", digits, config, recipe=dataclasses.replace(QUICK, epochs=1), folder=tmp_path / "run")
    assert [r.level for r in found.rows] == [0, 1]
    free = [g for g in found.ticket.plan.groups if not g.frozen]
    left = sum(len(found.ticket.plan.kept[g.name]) for g in free) / sum(g.width for g in free)
    assert left == pytest.approx(0.7**3, abs=0.01)


@pytest.mark.slow
def test_own_factories_and_weights(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\ndef make(classes):\n    return nn.Sequential(nn.Conv2d(1, 6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(216, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(7)
    trained = lt.build_model("mynets:make", classes=10)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    found = lt.find(
        "mynets:make",
        digits,
        lt.SearchConfig(rewind="finetune", rounds=1, rate=0.3, controls=False),
        folder=tmp_path / "run",
        recipe=dataclasses.replace(QUICK, epochs=1, lr=1e-12),
        weights=tmp_path / "weights.pth",
    )
    for name, value in cut(trained, found.ticket.plan).state_dict().items():
        torch.testing.assert_close(found.ticket.weights[name], value, rtol=0, atol=1e-6)
    with pytest.raises(TicketMismatch, match="your own code"):
        lt.shrink(found.ticket, tmp_path / "small.onnx")
    assert lt.shrink(found.ticket, tmp_path / "small.onnx", model="mynets:make").path.exists()
    with pytest.raises(InvalidFile, match="no weights that fit"):
        lt.build_model("lenet5", weights=tmp_path / "weights.pth")


def test_embedding_a_ticket_gives_the_masked_network(run: Path) -> None:
    ticket = lt.Ticket.load(run / "ticket.pt")
    dense = lt.build_model("lenet5", **{k: v for k, v in ticket.model["arguments"].items()})
    small = cut(dense, ticket.plan)
    small.load_state_dict(dict(ticket.weights))
    x = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(small.eval()(x), embed(small, ticket.plan, dense).eval()(x), rtol=1e-5, atol=1e-5)
    assert trace(small, x) == ticket.plan.remaining()
