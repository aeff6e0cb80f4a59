"""The model card of a run, read back by the hub's library, and its upload to a stand-in of it."""

import pytest
import yaml
from hub_stand_in import hub
from huggingface_hub import ModelCard, constants
from verbs import freezetrain, results

from freezetrain.compare.recipe import CompareRecipe
from freezetrain.errors import UserError
from freezetrain.models import meta_model
from freezetrain.recipe import yaml12
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Region
from freezetrain.training.model_card import model_card
from freezetrain.training.recipe import TrainRecipe, Watch

DATA = {
    "zh": {"documents": 24, "tokens": 1579, "share": 0.9, "epochs": 1.5, "replayed": False},
    "a|b": {"documents": 1, "tokens": 2, "share": 0.1, "epochs": 1.0, "replayed": True},
}


def card_of(recipe, base, **more):
    given = {"region": None, "forgetting": None} | more
    return model_card(recipe, yaml12.dump({"a": "b\n---\n```"}), DATA, base=base, **given)


def command(model, folder, *more):
    return [
        "train", "--model", model, "--languages", "[zh]", "--watch.languages", "[zh,en]",
        "--watch.documents", 2, "--watch.max_length", 64, "--optimization.max_steps", 1,
        "--optimization.sequence_length", 16, "--optimization.micro_batch", 1,
        "--optimization.warmup_steps", 1, "--workers", 1, "--out", folder, *more,
    ]  # fmt: skip


@pytest.fixture
def online(monkeypatch):
    """The stand-in is the hub, and a token is there."""
    with hub() as stand_in:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield stand_in


def test_metadata_is_what_the_hub_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: gemma\nlicense_link: x\ntags: [a]\n---\nBase.")
    texts = TextSource(hub="some/texts", streaming=True, documents=5)
    recipe = TrainRecipe(ModelSource("owner/model"), texts=texts, watch=Watch(off=True))
    card_of(recipe, folder).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets, data.language) == (
        "owner/model",
        ["some/texts"],
        ["zh"],
    )
    assert (data.license, data.license_link, data.library_name) == ("gemma", "x", "transformers")
    scratch = TrainRecipe(ModelSource(str(folder)), from_scratch=True)
    data = card_of(scratch, folder).data
    assert (data.base_model, data.datasets, data.license) == (None, None, None)


def test_names_are_data_and_the_recipe_stays_in_its_block(tmp_path):
    text = card_of(TrainRecipe(ModelSource("owner/model")), tmp_path).text
    assert "a\\|b" in text
    assert all(
        line.startswith("    ") for line in text.split("## Recipe\n\n")[1].splitlines() if line
    )


def test_a_run_leaves_a_card_and_pushes_its_folder(model_folder, tmp_path, online, capsys):
    region = tmp_path / "region.safetensors"
    Region.random(meta_model(ModelSource(str(model_folder))), 0.05, seed=0).save(region)
    out = tmp_path / "run"
    words = command(model_folder, out, "--region", region, "--push", "me/zh")
    assert freezetrain(*words) == 0
    assert results(out)["pushed"] == {"to": "me/zh", "failure": None}
    (created,) = online.created
    assert (created["name"], created["organization"]) == ("zh", "me")
    assert created.get("visibility") == "private" or created.get("private") is True
    assert "Bearer hf_secret" in online.tokens
    here = {file.name: file.read_bytes() for file in (out / "model").iterdir()}
    pushed = online.files["me/zh"]
    pushed.pop(".gitattributes", None)
    assert pushed == here
    card = ModelCard(here["README.md"].decode())
    assert Region.load(region).digest in card.text
    assert "| zh (target) |" in card.text
    assert "base_model" not in card.content.split("---")[1]
    recipe = card.text.split("## Recipe")[1]
    assert yaml.safe_load("\n".join(line[4:] for line in recipe.splitlines()))["push"] == "me/zh"
    # Uploading may fail, and then the command that does it is named.
    online.refuses_commits = True
    assert freezetrain(*command(model_folder, tmp_path / "other", "--push", "me/zh")) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "could not push to me/zh" in printed
    assert "hf upload me/zh" in printed
    assert results(tmp_path / "other")["passed"] is False


def test_push_is_refused_before_anything_is_made(
    model_folder, tmp_path, online, monkeypatch, capsys
):
    monkeypatch.setattr("freezetrain.training.push.get_token", lambda: None)
    assert freezetrain(*command(model_folder, tmp_path / "a", "--push", "me/zh")) == 2
    assert "there is no token" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    assert freezetrain(*command(model_folder, tmp_path / "b", "--push", "me/zh")) == 2
    assert "HF_HUB_OFFLINE is set" in " ".join(capsys.readouterr().err.split())
    assert online.created == []


def test_a_comparison_pushes_nothing():
    train = TrainRecipe(ModelSource("x"), languages=["zh"], push="me/zh")
    with pytest.raises(UserError, match=r"train\.push must be left out"):
        CompareRecipe(train)
