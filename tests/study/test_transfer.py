"""From trained weights: what a file may hold, how its images were prepared, and a dense network that teaches its tickets."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from searches import QUICK
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.core.recipe import Recipe
from ltcompile.data import Dataset
from ltcompile.errors import InvalidData, InvalidFile, InvalidModel, InvalidSetting, UnknownName
from ltcompile.models import preprocessing
from ltcompile.search import data_for, recipe_for
from ltcompile.tasks import Classification
from ltcompile.training import Epoch, train
from ltcompile.training.loss import TEMPERATURE, cross_entropy

CPU = torch.device("cpu")
RESNET = "torchvision:resnet18"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> State:
    """The weights of a ResNet-18 with 7 classes, statistics of batch norm included."""
    torch.manual_seed(3)
    model = lt.build_model(RESNET, classes=7, image_size=32)
    model(torch.randn(4, 3, 32, 32))
    return model.state_dict()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=16)


def written(folder: Path, value: Any, name: str = "weights.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(value, path)
    else:
        torch.save(value, path)
    return path


class TestWeights:
    """A file fits, fits but for the head, or is refused with the reason."""

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_the_same_classes_take_everything(self, tmp_path: Path, trained: State, name: str) -> None:
        model = lt.build_model(RESNET, classes=7, weights=written(tmp_path, trained, name))
        assert all(torch.equal(v, trained[k]) for k, v in model.state_dict().items())

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_another_number_of_classes_swaps_the_head(self, tmp_path: Path, trained: State, name: str) -> None:
        path = written(tmp_path, trained, name)
        with pytest.warns(Notice, match="head swapped: 7 -> 10 classes"):
            torch.manual_seed(0)
            model = lt.build_model(RESNET, classes=10, weights=path)
        torch.manual_seed(0)
        fresh = lt.build_model(RESNET, classes=10)
        for key, value in model.state_dict().items():
            assert torch.equal(value, fresh.state_dict()[key] if key.startswith("fc.") else trained[key]), key

    @pytest.mark.slow
    @pytest.mark.parametrize("wrapper", ["state_dict", "model", "weights"])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
    def test_wrappers_and_prefixes(self, tmp_path: Path, trained: State, wrapper: str, prefix: str) -> None:
        file = {wrapper: {prefix + k: v for k, v in trained.items()}, "epoch": 3, "optimizer": {"lr": 0.1}}
        model = lt.build_model(RESNET, classes=7, weights=written(tmp_path, file))
        assert torch.equal(model.state_dict()["fc.weight"], trained["fc.weight"])

    def test_files_older_than_batch_counters(self, tmp_path: Path, trained: State) -> None:
        old = {k: v for k, v in trained.items() if not k.endswith("num_batches_tracked")}
        assert lt.build_model(RESNET, classes=7, weights=written(tmp_path, old)) is not None

    def test_layers_that_distinguish_versions(self, tmp_path: Path) -> None:
        """MNASNet refuses a state dict that does not say its version, as safetensors cannot."""
        state = lt.build_model("torchvision:mnasnet0_5", classes=3).state_dict()
        assert lt.build_model("torchvision:mnasnet0_5", classes=3, weights=written(tmp_path, state, "w.safetensors")) is not None

    def test_old_names_in_densenets(self, tmp_path: Path) -> None:
        state = lt.build_model("torchvision:densenet121", classes=3).state_dict()
        old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", k): v for k, v in state.items()}
        assert set(old) != set(state)
        model = lt.build_model("torchvision:densenet121", classes=3, weights=written(tmp_path, old))
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    @pytest.mark.slow
    def test_auxiliary_heads_are_left_out(self, tmp_path: Path) -> None:
        import torchvision

        whole = torchvision.models.googlenet(weights=None, num_classes=9, aux_logits=True, init_weights=False)
        with pytest.warns(Notice, match="head swapped: 9 -> 4"):
            model = lt.build_model("torchvision:googlenet", classes=4, weights=written(tmp_path, whole.state_dict()))
        plan = lt.plan(model, torch.zeros(2, 3, 32, 32), 0.3)
        assert lt.cut(model, plan).train()(torch.randn(2, 3, 64, 64)).shape == (2, 4)

    @pytest.mark.slow
    def test_heads_of_timm(self, tmp_path: Path) -> None:
        state = lt.build_model("timm:mobilenetv3_small_050", classes=5).state_dict()
        with pytest.warns(Notice, match=r"head swapped: 5 -> 3 classes \(classifier.bias, classifier.weight fresh"):
            lt.build_model("timm:mobilenetv3_small_050", classes=3, weights=written(tmp_path, state))

    @pytest.mark.parametrize("classes", [7, 10])
    def test_a_mismatch_anywhere_else_is_reported(self, tmp_path: Path, trained: State, classes: int) -> None:
        changed = {k: v for k, v in trained.items() if not k.startswith("layer4.1.")}
        changed |= {f"extra{i}": torch.zeros(1) for i in range(3)}
        changed["layer1.0.conv1.weight"] = torch.zeros(32, 64, 3, 3)
        gone = sum(k.startswith("layer4.1.") and not k.endswith("num_batches_tracked") for k in trained)
        with pytest.raises(InvalidFile) as refused:
            lt.build_model(RESNET, classes=classes, weights=written(tmp_path, changed))
        reported = str(refused.value)
        assert f"missing {gone} (layer4.1.conv1.weight, " in reported and reported.count("layer4.1.") == 5
        assert "unexpected 3 (extra0, extra1, extra2)" in reported
        assert "wrong shape 1 (layer1.0.conv1.weight (32, 64, 3, 3) instead of (64, 64, 3, 3))" in reported

    def test_a_hidden_layer_is_no_head(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten classes and ten hidden units: the layer behind gives it away."""
        state = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)).state_dict()
        module = types.ModuleType("hidden_ten")
        module.make = lambda: nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "hidden_ten", module)
        with pytest.raises(InvalidFile, match=r"wrong shape 1 \(2.weight"):
            lt.build_model("hidden_ten:make", classes=10, weights=written(tmp_path, state))

    def test_other_channels(self, tmp_path: Path) -> None:
        colour = lt.build_model("resnet20", classes=10, in_channels=3).state_dict()
        with pytest.raises(InvalidFile, match="for images of 3 channels, these have 1"):
            lt.build_model("resnet20", classes=10, in_channels=1, weights=written(tmp_path, colour))

    @pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {}, {"state_dict": {"a": "b"}}, torch.zeros(3)])
    def test_no_state_dict(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(InvalidFile, match="no state dict"):
            lt.build_model("lenet5", weights=written(tmp_path, value))

    def test_broken_files(self, tmp_path: Path, trained: State) -> None:
        with pytest.raises(InvalidFile, match="no file of weights at"):
            lt.build_model("lenet5", weights=tmp_path / "none.pth")
        with pytest.raises(InvalidFile, match=r"torch\.save\(model\.state_dict"):
            lt.build_model("lenet5", weights=written(tmp_path, nn.Linear(2, 2)))
        for name in ("cut.pth", "cut.safetensors"):
            path = written(tmp_path, trained, name)
            path.write_bytes(path.read_bytes()[:1000])
            with pytest.raises(InvalidFile, match=r"cannot be read|is damaged"):
                lt.build_model("lenet5", weights=path)


class TestPreprocessing:
    """Images as the published weights want them."""

    def test_from_torchvision(self) -> None:
        assert preprocessing(RESNET) == Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
        large = preprocessing("torchvision:efficientnet_v2_l")
        assert large is not None and (large.image_size, large.interpolation) == (480, "bicubic")

    @pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
    def test_what_torchvision_does_inside_the_network(self, name: str) -> None:
        import torchvision

        inside = torchvision.models.get_model(name, weights=None, transform_input=True, init_weights=False)
        reported = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        pixels, ours = torch.rand(2, 3, 8, 8), preprocessing(f"torchvision:{name}")
        assert ours is not None
        mean, std, own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (reported.mean, reported.std, ours.mean, ours.std))
        torch.testing.assert_close((pixels - own_mean) / own_std, inside._transform_input((pixels - mean) / std))

    def test_from_timm(self) -> None:
        assert preprocessing("timm:resnet18") == Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")

    def test_timm_is_optional(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(InvalidModel, match=r"pip install 'ltcompile\[timm\]'"):
            preprocessing("timm:resnet18")

    def test_others_have_none(self) -> None:
        assert preprocessing("vgg16") is None and preprocessing("mynets:make") is None
        with pytest.raises(UnknownName, match="resnet18"):
            preprocessing("torchvision:resnet81")

    @pytest.mark.parametrize("wrong", [{"image_size": 0}, {"mean": (0.5,)}, {"std": (1.0, 1.0, 0.0)}, {"interpolation": "lanczos"}])
    def test_nonsense_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidSetting):
            dataclasses.replace(Preprocessing(8, (0.5,) * 3, (0.5,) * 3), **wrong)

    def test_the_data_takes_it_with_weights_alone(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for c in range(2):
            (tmp_path / f"class{c}").mkdir()
            for i in range(20):
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"class{c}" / f"{i}.png")
        name = f"imagefolder:{tmp_path}"
        plain = data_for("torchvision:vit_b_16", name).description
        assert plain.shape == (3, 32, 32) and plain.mean != pytest.approx((0.485, 0.456, 0.406), abs=1e-3)
        data = data_for("torchvision:efficientnet_b0", name, weights="w.pth")
        there = data.description
        assert there.shape == (3, 224, 224) and there.interpolation == "bicubic"
        assert there.mean == pytest.approx((0.485, 0.456, 0.406)) and there.std == pytest.approx((0.229, 0.224, 0.225))
        assert data.example.shape == (2, 3, 224, 224)
        small = data_for("torchvision:efficientnet_b0", name, image_size=24, weights="w.pth").description
        assert small.shape == (3, 24, 24) and small.mean == there.mean

    def test_other_channels(self) -> None:
        with pytest.raises(InvalidData, match="3 channels, digits has 1"):
            data_for(RESNET, "digits", weights="w.pth", image_size=32)

    def test_a_size_that_would_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ltcompile.data._dataset.IN_MEMORY_BYTES", 1797 * 40 * 40)
        grey = Preprocessing(224, (0.5,), (0.5,))
        with pytest.raises(InvalidData, match=r"224 pixels of the weights.*image_size= \(up to 40"):
            lt.load_data("digits", preprocessing=grey)
        assert lt.load_data("digits", image_size=48, preprocessing=grey).description.shape == (1, 48, 48)


class TestDistillation:
    """A share of the loss is the teacher's, and only the student learns."""

    def test_the_loss_by_hand(self) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
        labels = torch.tensor([0, 3, 1, 1, 2])
        expected = 0.0
        for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
            p, q, hard = (np.exp(np.array(v) / k) / np.exp(np.array(v) / k).sum() for v, k in ((s, 4), (t, 4), (s, 1)))
            expected += (0.3 * -np.log(hard[y]) + 0.7 * 16 * (q * np.log(q / p)).sum()) / 5
        assert TEMPERATURE == 4
        recipe = Recipe(distill=0.7)
        assert cross_entropy(student, labels, recipe, teacher).item() == pytest.approx(expected)
        assert cross_entropy(student, labels, recipe).item() == pytest.approx(nn.functional.cross_entropy(student, labels).item())

    def test_a_student_that_agrees_has_nothing_to_learn(self) -> None:
        logits = torch.randn(3, 4, requires_grad=True)
        cross_entropy(logits, torch.zeros(3, dtype=torch.long), Recipe(distill=1.0), logits.detach()).backward()
        assert logits.grad is not None and logits.grad.abs().max() < 1e-6

    def test_the_teacher_stays_as_it_is(self, digits: Dataset) -> None:
        torch.manual_seed(0)
        teacher, student = lt.build_model("resnet20", 10, 1, 16), lt.build_model("lenet5", 10, 1, 16)
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        first = {k: v.clone() for k, v in student.state_dict().items()}
        train(student, Classification(digits), dataclasses.replace(QUICK, epochs=1, distill=1.0), 0, CPU, teacher=teacher.train())
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
        assert not all(torch.equal(v, first[k]) for k, v in student.state_dict().items())

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_shares(self, share: float) -> None:
        with pytest.raises(InvalidSetting, match="distill="):
            Recipe(distill=share)

    def test_recipes_from_before(self) -> None:
        """They load, and are written as they were: checksums of old tickets hold."""
        newer = (
            "distill",
            "distill_layers",
            "distill_weight",
            "optimizer",
            "clip_norm",
            "ema",
            "mixup",
            "frozen",
            "lookahead",
            "norm_bias_rate",
        )
        newer += ("regulariser", "regulariser_strength", "regulariser_ratio", "virtual_ranks", "sync_bn", "alternate_flip", "frozen_after")
        old = {name: value for name, value in dataclasses.asdict(QUICK).items() if name not in newer}
        assert Recipe.from_json(old) == QUICK and QUICK.to_json() == old
        taught = dataclasses.replace(QUICK, distill=0.5)
        assert Recipe.from_json(json.loads(json.dumps(taught.to_json()))) == taught


class TestSearch:
    """A search from weights, and one in which the dense network teaches."""

    CONFIG = lt.SearchConfig(rounds=1, rate=0.3)
    TAUGHT = dataclasses.replace(QUICK, distill=0.5)

    @pytest.fixture(scope="class")
    @classmethod
    def weights(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        torch.manual_seed(5)
        return written(tmp_path_factory.mktemp("weights"), lt.build_model("lenet5", 12, 1, 16).state_dict())

    @pytest.fixture(scope="class")
    @classmethod
    def taught(cls, tmp_path_factory: pytest.TempPathFactory, digits: Dataset, weights: Path) -> Path:
        folder = tmp_path_factory.mktemp("taught") / "run"
        with pytest.warns(Notice, match="head swapped: 12 -> 10"):
            lt.find("lenet5", digits, cls.CONFIG, recipe=cls.TAUGHT, weights=weights, folder=folder)
        return folder

    @pytest.mark.slow
    def test_tickets_and_the_random_control_are_taught_the_dense_arms_not(
        self, tmp_path: Path, taught: Path, digits: Dataset, weights: Path
    ) -> None:
        lt.find("lenet5", digits, self.CONFIG, recipe=QUICK, weights=weights, folder=tmp_path / "plain")
        for unit, same in (("dense-0", True), ("ticket-1", False), ("random-1", False)):
            a, b = (torch.load(f / "seed0" / f"{unit}.pt", weights_only=True)["weights"] for f in (taught, tmp_path / "plain"))
            assert all(torch.equal(a[k], b[k]) for k in a) == same, unit
        assert lt.Ticket.load(taught / "ticket.pt").recipe.distill == 0.5

    @pytest.mark.slow
    def test_resuming_gives_the_same_bits(self, tmp_path: Path, taught: Path, digits: Dataset, weights: Path) -> None:
        class Stop:
            def started(self, *_: object) -> None: ...
            def finished(self, *_: object) -> None: ...
            def epoch(self, seed: int, arm: str, level: int, row: Epoch) -> None:
                if arm == "ticket":
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            lt.find("lenet5", digits, self.CONFIG, recipe=self.TAUGHT, weights=weights, folder=tmp_path / "run", listener=Stop())
        found = lt.find("lenet5", digits, self.CONFIG, recipe=self.TAUGHT, weights=weights, folder=tmp_path / "run", resume=True)
        whole = lt.Ticket.load(taught / "ticket.pt")
        assert all(torch.equal(v, whole.weights[k]) for k, v in found.ticket.weights.items())

    def test_masked(self, tmp_path: Path, taught: Path, digits: Dataset, weights: Path) -> None:
        masked = dataclasses.replace(self.CONFIG, masked=True, controls=False)
        found = lt.find("lenet5", digits, masked, recipe=self.TAUGHT, weights=weights, folder=tmp_path / "run")
        whole = lt.Ticket.load(taught / "ticket.pt")
        for name, value in found.ticket.weights.items():
            torch.testing.assert_close(value, whole.weights[name], rtol=1e-4, atol=1e-5)

    def test_weights_are_trained_on_gently(self, digits: Dataset) -> None:
        large = dataclasses.replace(digits, small=False)
        recipe = recipe_for(RESNET, large, "weights.pth")
        assert (recipe.lr, recipe.warmup_epochs) == (0.01, 1)
        assert recipe_for(RESNET, large).lr == 0.1
        small = recipe_for(RESNET, digits, "weights.pth")
        assert small.lr == pytest.approx(0.01 * small.batch / 128) and small.lr < recipe_for(RESNET, digits).lr

    @pytest.mark.slow
    def test_the_command_line(self, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from typer.testing import CliRunner

        from ltcompile.cli import app

        monkeypatch.chdir(tmp_path)
        options = (
            "--model lenet5 --image-size 16 --rounds 1 --epochs 2 --rewind finetune --name r --no-controls --json "
            "--set train.distill=0.5 --set strict=true"
        )
        done = CliRunner().invoke(app, ["find", *options.split(), "--weights", str(weights)])
        assert done.exit_code == 0, done.output
        ticket = lt.Ticket.load(tmp_path / "runs/r/ticket.pt")
        usual = recipe_for("lenet5", lt.load_data("digits", image_size=16), weights)
        assert (ticket.recipe.distill, ticket.recipe.lr, ticket.recipe.warmup_epochs) == (0.5, usual.lr, 1)
