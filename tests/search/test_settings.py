"""Recipe files: every key is checked, errors name the key and the file, the command line wins, and the committed ones are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.models import default_recipe
from ltcompile.search.settings import SearchSettings

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
FIND = {
    None: "model task recipe set",
    "Run": "name resume device tensorboard json checkpoint-minutes",
    "Data": "data data-root download skip-damaged image-size weights",
    "Several processes": "jobs executor executor-option retries nproc-per-node",
    "Pruning": "prune rewind criterion rounds rate target-macs target-speedup target-latency on profile",
    "Limits": "keep",
    "Your own training script": "train metric lower-is-better example",
    "Training": "epochs batch lr",
    "Judging": "seeds seed controls margin",
}


def test_the_command_line_of_find_is_frozen() -> None:
    """A new setting goes into a config dataclass, and so into recipe files and `--set`; the command line keeps its few options."""
    command = typer.main.get_command(app).commands["find"]  # type: ignore[attr-defined]
    found: dict[str | None, str] = {}
    for option in command.params:
        if option.opts[0] != "--help":
            panel = getattr(option, "rich_help_panel", None)
            found[panel] = f"{found.get(panel, '')} {option.opts[0].removeprefix('--')}".strip()
    assert found == FIND


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_committed_recipes_are_whole(path: Path) -> None:
    settings = SearchSettings.load(path)
    assert settings.config().all_seeds and settings.recipe(default_recipe(settings.section("")["model"])).epochs
    assert len(RECIPES) >= 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nepoch = 3", r"r.toml: unknown key 'train.epoch'. Did you mean epochs\?"),
        ("modle = 'vgg16'", r"r.toml: unknown key 'modle'. Did you mean model\?"),
        ("[prunning]\nrounds = 3", "r.toml: unknown section 'prunning'"),
        ("[prune]\nrounds = 'many'", "r.toml: prune.rounds is 'many', not a whole number"),
        ("[limits]\nkeep = 'conv1'", "r.toml: limits.keep is 'conv1', not a list"),
        ("[search]\ncontrols = 1", "r.toml: search.controls is 1, not true or false"),
        ("[prune]\nprune = 'layers'", "r.toml: prune.prune is 'layers', not one of filters, weights, hybrid"),
    ],
)
def test_wrong_keys_and_values_are_named_with_the_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InvalidSetting, match=says):
        SearchSettings.load(tmp_path / "r.toml")


def test_values_out_of_range_are_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nepochs = 0\n[prune]\nrounds = 0")
    settings = SearchSettings.load(tmp_path / "r.toml")
    with pytest.raises(InvalidSetting, match=r"r\.toml: .*rounds"):
        settings.config()
    with pytest.raises(InvalidSetting, match=r"r\.toml: .*epochs"):
        settings.recipe(lt.Recipe())


@pytest.mark.parametrize("text", [b"rounds =", b"\xff\xfe", b"a = 1\na = 2"])
def test_no_toml(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r.toml").write_bytes(text)
    with pytest.raises(InvalidFile, match=r"r.toml cannot be read as a recipe"):
        SearchSettings.load(tmp_path / "r.toml")
    with pytest.raises(InvalidFile, match="cannot be read"):
        SearchSettings.load(tmp_path / "nowhere.toml")


def test_words_are_settings_too() -> None:
    found = SearchSettings.parse(
        ["train.distill=0.5", "prune.scope=local", "prune.path=[0.5, 0.25]", "strict=true", "limits.only=['a', 'b']"]
    )
    assert found.section("train") == {"distill": 0.5} and found.section("") == {"strict": True}
    assert found.section("prune") == {"scope": "local", "path": (0.5, 0.25)} and found.section("limits") == {"only": ("a", "b")}
    for word, says in (
        ("distill", "KEY=VALUE"),
        ("train.distill", "KEY=VALUE"),
        ("train.taught=1", "unknown key"),
        ("x.y=1", "unknown section"),
    ):
        with pytest.raises(InvalidSetting, match=says):
            SearchSettings.parse([word])


def test_the_command_line_wins() -> None:
    file = SearchSettings.parse(
        ["train.epochs=9", "train.lr=0.5", "prune.target_speedup=3", "prune.on=cpu:eager:b1:fp32", "prune.rounds=3"]
    )
    both = file.overridden_by(SearchSettings.parse(["train.epochs=2", "prune.target_macs=0.3"]))
    assert both.section("train") == {"epochs": 2, "lr": 0.5}
    assert both.section("prune") == {"rounds": 3, "target_macs": 0.3}, "one target replaces another, and where that was measured"
    assert both.config().target_macs == 0.3 and both.config().rounds == 3
    assert file.overridden_by(SearchSettings.parse(["prune.rate=0.4"])).config().rate == 0.4


def test_a_warm_up_that_is_not_set_never_outlasts_the_epochs() -> None:
    usual = lt.Recipe(epochs=20, warmup_epochs=5)
    assert SearchSettings.parse(["train.epochs=2"]).recipe(usual).warmup_epochs == 1
    assert SearchSettings.parse(["train.lr=0.3"]).recipe(usual) == lt.Recipe(epochs=20, warmup_epochs=5, lr=0.3)
