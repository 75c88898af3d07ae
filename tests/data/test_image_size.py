"""Images that are not square, from the option to the file; and crops that are padded with black."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile import cli, models
from ltcompile.core.image_size import parse, to_text
from ltcompile.data._epochs import Moves, black_pixel
from ltcompile.errors import InvalidSetting
from ltcompile.graph.outputs import outputs_of
from ltcompile.lower.lower import lower
from ltcompile.pruned import dense_network
from ltcompile.verification import verify
from ltcompile.verification.network import open_network

CPU = torch.device("cpu")
HEIGHT, WIDTH = 16, 21


@pytest.mark.parametrize(("text", "size"), [("32", 32), ("48x64", [48, 64]), ("48X48", 48)])
def test_sizes_are_read_as_they_are_written(text: str, size: int | list[int]) -> None:
    assert parse(text) == size and parse(to_text(size)) == size


@pytest.mark.parametrize("text", ["", "0", "3x", "x3", "3x4x5", "-3", "3.5", "99999", "12 x 13"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidSetting):
        parse(text)


@pytest.mark.parametrize("name", models.names())
def test_every_network_takes_images_that_are_not_square(name: str) -> None:
    least = models.least_size(name)
    for height, width in ((least, least + 13), (least + 13, least)):
        network = lt.build_model(name, 4, 1, (height, width)).eval()
        found = next(iter(outputs_of(network(torch.zeros(2, 1, height, width))).values()))
        assert found.shape[:2] == (2, 4)


def test_a_factory_of_ones_own_gets_a_number_or_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sized.py").write_text(
        "from torch import nn\ndef make(image_size):\n    return nn.Sequential(nn.Flatten()).append(Sized(image_size))\n"
        "class Sized(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n        self.size = size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [lt.build_model("sized:make", image_size=size)[1].size for size in (8, [8, 8], [8, 9])] == [8, 8, (8, 9)]


def test_images_from_files_are_cut_to_the_shape_and_not_stretched(tmp_path: Path) -> None:
    from PIL import Image

    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        for at in range(12):
            picture = Image.new("RGB", (40, 40))
            picture.paste((255, 255, 255), (10, 10, 30, 30))  # a square in the middle
            picture.save(tmp_path / part / f"{at}.png")
    data = lt.load_data(f"imagefolder:{tmp_path}", image_size=(20, 40), val_share=0.25)
    assert data.description.shape == (3, 20, 40) and data.description.arguments["image_size"] == [20, 40]
    picture = data.example[0, 0]
    white = picture > picture.mean()
    assert int(white.any(0).sum()) == 20 and int(white.any(1).sum()) == 20, "as wide as before, the rows above and below cut off"


def test_out_of_range() -> None:
    with pytest.raises(InvalidSetting, match="image size of 3x20 pixels is outside"):
        lt.load_data("digits", image_size=(3, 20))


def test_crops_are_padded_with_black_of_each_channel() -> None:
    mean, std = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.1, 0.2, 0.3])
    white = ((1 - mean) / std).view(1, 3, 1, 1).expand(64, 3, 4, 6)
    moves = Moves.draw(len(white), lt.Recipe(crop_pixels=2, flip=False), torch.Generator().manual_seed(0))
    shifted = moves.of_images(white, black_pixel(mean, std))
    pixels: Tensor = shifted * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)
    assert shifted.shape == white.shape and 0 < float((pixels.abs() < 1e-6).float().mean()) < 0.9
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-6, rtol=0), "what is not white is black, in every channel"
    assert torch.equal(pixels.round()[:, 0], pixels.round()[:, 2])


@pytest.mark.slow
def test_a_search_of_such_images_ends_in_a_file_that_is_verified(tmp_path: Path) -> None:
    recipe = lt.Recipe(epochs=1, batch=32, lr=0.02, flip=False, crop_pixels=2, precision="fp32")
    config = lt.SearchConfig(rounds=1, rate=0.5, controls=False)
    found = lt.find("lenet5", "digits", config, recipe=recipe, image_size=(HEIGHT, WIDTH), folder=tmp_path / "run")
    ticket = lt.Ticket.load(tmp_path / "run" / "ticket.pt")
    assert ticket.model["arguments"] == found.ticket.model["arguments"] == {"classes": 10, "in_channels": 1, "image_size": [HEIGHT, WIDTH]}
    lt.shrink(ticket, tmp_path / "run" / "small.onnx")
    assert open_network(tmp_path / "run" / "small.onnx").shape == (1, HEIGHT, WIDTH)
    result = lt.bench(tmp_path / "run" / "small.onnx", runtimes=["onnxruntime"], batches=[2], seconds_per_row=0.05)
    assert {row.subject for row in result.rows} == {"dense", "small"} and result.rows[0].max_error < 1e-3
    checks = verify(tmp_path / "run" / "small.onnx", seconds=0.05).checks
    assert {check.verdict for check in checks if check.what == "size"} == {"confirmed"}
    lower(dense_network(ticket), torch.randn(1, 1, HEIGHT, WIDTH))
    lt.report(tmp_path / "run", tmp_path / "report.html")


def test_plans_and_what_is_printed_next() -> None:
    done = CliRunner().invoke(cli.app, ["plan", "--model", "lenet5", "--image-size", "20x16", "--json"])
    square = CliRunner().invoke(cli.app, ["plan", "--model", "lenet5", "--image-size", "20", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) != json.loads(square.stdout)
    from ltcompile.cli.profile import _next

    assert _next("vgg16", {"classes": 10, "in_channels": 3, "image_size": [48, 32]}, None)[-2:] == ["--image-size", "48x32"]
