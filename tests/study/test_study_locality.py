"""Laws of the study of locality: pairs are counted as one would by hand; chance is not local, patches are; changes are what they say."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import HOSTILE, Page

import ltcompile as lt
from ltcompile.core.mask import WeightMask
from ltcompile.core.records import Trained
from ltcompile.core.study import Maps, Picture, Study
from ltcompile.data import Dataset, load_data
from ltcompile.errors import InvalidFile, TicketMismatch
from ltcompile.graph import trace
from ltcompile.reporting.study import draw_maps, render
from ltcompile.search import recipe_for
from ltcompile.study import locality, run
from ltcompile.study._images import pixel_order, shuffled_labels, shuffled_pixels
from ltcompile.study._pairs import distances, pairs
from ltcompile.study._statistics import estimate

CPU = torch.device("cpu")
Place = tuple[int, int, int, int]  # node, channel, y, x


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", image_size=8)


def masks(share: float, nodes: int = 4, shape: tuple[int, int, int] = (3, 5, 7), seed: int = 0) -> torch.Tensor:
    """Connections anywhere (nodes, C, H, W)."""
    return torch.rand(nodes, *shape, generator=torch.Generator().manual_seed(seed)) < share


def patches(nodes: int = 300, side: int = 12, seed: int = 0) -> torch.Tensor:
    """Each node reads two thirds of a 3x3 patch somewhere (nodes, 2, side, side)."""
    rng = torch.Generator().manual_seed(seed)
    kept = torch.zeros(nodes, 2, side, side, dtype=torch.bool)
    for node in kept:
        y, x = torch.randint(0, side - 2, (2,), generator=rng).tolist()
        node[:, y : y + 3, x : x + 3] = torch.rand(2, 3, 3, generator=rng) < 2 / 3
    return kept


def shuffled(kept: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Every node keeps its number of connections, and has them anywhere."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(len(kept), kept[0].numel(), generator=rng).argsort(1)
    return kept.flatten(1).gather(1, order).view_as(kept)


def by_hand(kept: torch.Tensor) -> dict[tuple[bool, bool], torch.Tensor]:
    """(of one channel, of one node) -> pairs of connections by displacement, without those of an input and itself."""
    height, width = kept.shape[-2:]
    found = {key: torch.zeros(2 * height - 1, 2 * width - 1).double() for key in itertools.product((True, False), repeat=2)}
    places: list[Place] = [tuple(place) for place in kept.nonzero().tolist()]
    for a, b in itertools.product(places, repeat=2):
        if a[1:] != b[1:]:
            found[a[1] == b[1], a[0] == b[0]][a[2] - b[2] + height - 1, a[3] - b[3] + width - 1] += 1
    return found


class TestPairs:
    @pytest.mark.slow
    @settings(deadline=None, max_examples=15)
    @given(share=st.floats(0.05, 0.9), seed=st.integers(0, 99), channels=st.integers(1, 3))
    def test_they_are_counted_as_by_hand(self, share: float, seed: int, channels: int) -> None:
        kept = masks(share, shape=(channels, 5, 4), seed=seed)
        same, different = pairs(kept)
        expected = by_hand(kept)
        assert same.own.equal(expected[True, True]) and same.others.equal(expected[True, False])
        assert (different is None) == (channels == 1)
        if different is not None:
            assert different.own.equal(expected[False, True]) and different.others.equal(expected[False, False])

    @pytest.mark.slow
    @settings(deadline=None, max_examples=15)
    @given(share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
    def test_a_shuffled_mask_is_the_mean_over_all_shuffled_ones(self, share: float, seed: int) -> None:
        """Over many nodes with the counts of a few; and in total to the pair, for it is exact."""
        kept = masks(share, seed=seed)
        many = shuffled(kept.repeat(1500, 1, 1, 1), seed)
        kinds = [(found, reported) for found, reported in zip(pairs(many), pairs(kept), strict=True) if found and reported]
        for found, reported in kinds:
            torch.testing.assert_close(found.own / 1500, reported.shuffled, rtol=0.25, atol=0.3)
        total = sum(reported.own.sum().item() for _, reported in kinds)
        assert sum(reported.shuffled.sum().item() for _, reported in kinds) == pytest.approx(total)

    def test_what_all_nodes_like_is_distinguished(self) -> None:
        """Nodes that draw from one corner look local relative to a shuffled mask, and not relative to each other."""
        corner = torch.zeros(2, 12, 12)
        corner[:, :6, :6] = 0.5
        kept = torch.rand(600, 2, 12, 12, generator=torch.Generator().manual_seed(3)) < corner
        same, _ = pairs(kept)
        assert same.locality > 1.5 and same.beyond == pytest.approx(1.0, abs=0.03)

    def test_distances_are_euclids(self) -> None:
        same, _ = pairs(torch.ones(1, 1, 4, 6, dtype=torch.bool))
        far = distances(same.own)
        assert far[3, 5] == 0 and far[3, 6] == 1 and far[0, 1] == 5 and far.max() == (9 + 25) ** 0.5
        assert same.excess(far <= 2) == pytest.approx(1.0)  # all are kept: nothing can be shuffled


class TestLocality:
    def test_patches_are_local_and_shuffled_masks_are_not(self) -> None:
        kept = [patches(seed=seed) for seed in range(4)]
        for kind in (0, 1):
            planted = estimate([found.locality for each in kept if (found := pairs(each)[kind])])
            random = estimate([found.locality for seed, each in enumerate(kept) if (found := pairs(shuffled(each, seed))[kind])])
            assert planted.lies("above", 5.0) == "holds" and abs(random.mean - 1) < 0.1
            assert random.lies("above", 1.2) == "does not hold"
        assert pairs(kept[0])[0].beyond > 5

    def test_a_profile_falls_with_the_patch_and_a_contrast_is_bounded(self) -> None:
        same, _ = pairs(patches())
        profile = same.profile()
        assert min(profile) == 1 and max(profile) == 6
        assert profile[1] > 5 > profile[4] == 0
        contrast = same.contrast(4)
        assert (
            contrast.shape == (9, 9) and contrast.abs().max() <= 1 and contrast[4, 4] == 0 and contrast[4, 5] > 0.5 and contrast[0, 0] == -1
        )

    def test_moved_pixels_are_put_back(self) -> None:
        """What is local is not where pixels are shuffled, and is again where they were: the study's own control."""
        kept = patches()
        moved = torch.zeros_like(kept)
        moved.flatten(2)[:] = kept.flatten(2)[:, :, pixel_order(144)]
        assert pairs(moved)[0].locality < 1.5 and pairs(locality.put_back(moved))[0].locality > 5
        assert locality.put_back(moved).equal(kept)


class TestChanges:
    def test_pixels_move_by_one_permutation(self, digits: Dataset) -> None:
        """Of all splits and channels; labels stay, and the images are all there is of before."""
        changed = shuffled_pixels(digits)
        assert changed.description.name == "digits, pixels shuffled" and changed.description.shape == digits.description.shape
        order = pixel_order(digits.description.shape[1] * digits.description.shape[2])
        assert order.sort().values.equal(torch.arange(len(order))) and not order.equal(torch.arange(len(order)))
        for name in ("train", "val", "test"):
            before, after = getattr(digits, name), getattr(changed, name)
            assert len(after) == len(before) and after.labels.equal(before.labels)
            for recipe in (None, recipe_for("mlp256", digits)):
                pairs_ = zip(before.batches(16, CPU, recipe, 3), after.batches(16, CPU, recipe, 3), strict=True)
                for (images, labels), (moved, same) in itertools.islice(pairs_, 3):
                    assert same.equal(labels) and moved.flatten(2).equal(images.flatten(2)[:, :, order])

    def test_labels_of_training_images_alone_are_shuffled(self, digits: Dataset) -> None:
        changed = shuffled_labels(digits)
        assert changed.description.name == "digits, labels shuffled" and changed.val is digits.val and changed.test is digits.test
        assert changed.train.labels.bincount().equal(digits.train.labels.bincount())
        assert (changed.train.labels == digits.train.labels).double().mean() < 0.25
        everything = zip(digits.train.batches(50, CPU, None, 0), changed.train.batches(50, CPU, None, 0), strict=True)
        reported = [labels for (images, _), (same, labels) in everything if same.equal(images)]
        assert torch.cat(reported).equal(changed.train.labels)

    def test_labels_travel_with_images_that_move(self, digits: Dataset) -> None:
        both = shuffled_labels(shuffled_pixels(digits))
        assert both.description.name == "digits, pixels shuffled, labels shuffled"
        images, labels = next(both.train.batches(8, CPU, None, 0))
        assert labels.equal(shuffled_labels(digits).train.labels[:8]) and images.equal(
            next(shuffled_pixels(digits).train.batches(8, CPU, None, 0))[0]
        )


@pytest.mark.parametrize("name", ["mlp256", "mlp1024"])
def test_the_network_is_theirs(name: str) -> None:
    """What is read is normalised first; hidden layers are cut, pixels and logits are not."""
    model = lt.build_model(name, 10, 3, 8)
    kinds = [type(layer).__name__ for layer in model]  # type: ignore[attr-defined]
    assert kinds == ["Flatten", *["BatchNorm1d", "Linear", "ReLU"] * 3, "BatchNorm1d", "Linear"]
    groups = trace(model, torch.zeros(2, 3, 8, 8))
    assert sorted(group.width for group in groups if not group.frozen) == [int(name[3:])] * 3


class TestMaps:
    def test_pictures_are_of_one_size_and_scale(self) -> None:
        picture = Picture("one", [[0, 100], [-100, 5]])
        assert Maps.from_json(json.loads(json.dumps(Maps("maps", "a", "b", "c", [picture]).to_json()))).pictures == [picture]
        for rows in ([], [[]], [[1, 2], [3]], [[101]]):
            with pytest.raises(InvalidFile):
                Picture("bad", rows)
        with pytest.raises(InvalidFile, match="different sizes"):
            Maps("maps", "a", "b", "c", [picture, Picture("two", [[1]])])
        with pytest.raises(InvalidFile, match="not a name"):
            Maps("Two Maps", "a", "b", "c", [picture])

    @pytest.mark.parametrize("count", [1, 6, 13])
    def test_every_number_is_drawn_below_its_name(self, count: int) -> None:
        pictures = [Picture(f"node {i}", [[i, -i, 1], [0, i + 1, 2]]) for i in range(count)]
        drawn = draw_maps(Maps("maps", "a", "b", "c", pictures))
        sheet = drawn.data[0].z
        assert len(drawn.layout.annotations) == count and len({len(row) for row in sheet}) == 1
        for picture, name in zip(pictures, drawn.layout.annotations, strict=True):
            top, left = round(name.y + 0.5), round(name.x + 0.5)
            assert name.text == picture.name and [list(row[left : left + 3]) for row in sheet[top : top + 2]] == picture.rows
        assert sum(value is not None for row in sheet for value in row) == 6 * count


RECIPE = {"flip": False, "crop_pixels": 0, "schedule": "constant", "warmup_epochs": 0, "epochs": 2, "batch": 64, "lr": 0.05}
SHRUNK = {"image_size": 6, "recipe": RECIPE, "rounds": 2, "seeds": 2, "rate": 0.5}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """The study on tiny digits."""
    folder = tmp_path_factory.mktemp("locality") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(locality.SCALES, "smoke", dataclasses.replace(locality.SCALES["smoke"], **SHRUNK))
        return run("locality", "smoke", folder=folder, device="cpu"), folder


@pytest.mark.slow
class TestStudy:
    def test_it_reports_all_searches(self, reported: tuple[Study, Path]) -> None:
        found, folder = reported
        assert [arm.data for arm in found.arms] == ["digits", "digits, pixels shuffled", "digits, labels shuffled"]
        assert Study.load(folder / "study.json") == found
        assert len(found.tables[0].rows) == 6 and {figure.name for figure in found.figures} == {
            "locality",
            "distance",
            "distance-levels",
            "accuracy",
        }
        assert [len(maps.pictures) for maps in found.maps] == [4, 24]  # grey images: no pairs of two channels
        assert len(found.claims) == 10 and all(claim.found.seeds == 2 for claim in found.claims)

    def test_its_numbers_are_those_of_its_masks(self, reported: tuple[Study, Path]) -> None:
        found, folder = reported
        values = []
        for seed in (0, 1):
            kept = WeightMask.load(folder / "images" / f"seed{seed}" / "mask-2.pt").kept
            assert list(kept) == ["hidden1.weight", "hidden2.weight", "hidden3.weight"]
            values.append(pairs(kept["hidden1.weight"].view(256, 1, 6, 6))[0].locality)
        assert found.claims[0].found.mean == pytest.approx(estimate(values).mean)

    def test_its_page_shows_maps_and_obeys_nothing(self, reported: tuple[Study, Path]) -> None:
        found, _ = reported
        hostile = dataclasses.replace(found.maps[0], title=HOSTILE, caption=HOSTILE, unit=HOSTILE, pictures=[Picture(HOSTILE, [[1]])])
        text = render(dataclasses.replace(found, maps=[hostile, found.maps[1]]))
        page, plain = Page(text), Page(render(found))
        assert HOSTILE in page.text and "</script><script>alert" not in text
        assert page.count("script") == plain.count("script") and page.count("img") == 0
        shown = [attributes["data-figure"] for _, attributes in page.tags if "data-figure" in attributes]
        assert shown == [*(figure.name for figure in found.figures), "displacements", "features"]

    def test_another_change_is_not_resumed(self, reported: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        _, folder = reported
        monkeypatch.setitem(locality.SCALES, "smoke", dataclasses.replace(locality.SCALES["smoke"], **SHRUNK))
        monkeypatch.setitem(locality.CHANGES, locality.PIXELS, shuffled_labels)
        with pytest.raises(TicketMismatch, match="pixels shuffled"):
            run("locality", "smoke", folder=folder, device="cpu", resume=True)


def test_levels_with_hardly_a_node_are_not_looked_at(tmp_path: Path, digits: Dataset) -> None:
    """The paper's rule: from the first level on at which a hidden layer has too few connected nodes."""
    rows, sides = [], digits.description.shape
    for level, nodes in ((1, 10), (2, 3), (3, 2), (4, 10)):
        kept = torch.zeros(10, digits.description.shape[0] * sides[1] * sides[2], dtype=torch.bool)
        kept[:nodes, :5] = True
        (tmp_path / "seed0").mkdir(exist_ok=True)
        WeightMask({"hidden1.weight": kept, "hidden2.weight": torch.ones(4, 10, dtype=torch.bool)}).save(
            tmp_path / "seed0" / f"mask-{level}.pt"
        )
        rows.append(Trained(0, "ticket", level, 1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, "f", 1))
    arm = locality.arms(dataclasses.replace(locality.SCALES["smoke"], seeds=1))[0]
    seen = locality.look(locality.Done(arm, rows, None, tmp_path, digits))  # type: ignore[arg-type]  # no verdict is read
    assert list(seen) == [1, 2] and seen[2].connected == pytest.approx(0.3)
