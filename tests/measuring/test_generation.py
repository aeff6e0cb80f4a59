"""The generation probe against a plain loop, py3langid by itself, and texts that are known."""

import csv
import json
from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest
import torch
from plain_greedy import goes_on
from py3langid import langid

from freezetrain.cli import main
from freezetrain.data.texts import read_languages
from freezetrain.errors import UserError
from freezetrain.measuring import forgetting as job
from freezetrain.measuring.generation import Probe
from freezetrain.measuring.identify import LanguageIdentifier
from freezetrain.measuring.recipe import ForgettingRecipe, GenerationProbe
from freezetrain.models import load_model, load_tokenizer
from freezetrain.recipe.sources import EvaluationTexts, ModelSource, TextSource

WATCHED = ["en", "es", "zh"]
PROMPT, NEW, NUMBER = 6, 10, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, tokenizer):
    """base; model and later, their weights shifted."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "model", "later")):
        model = make_model()
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * seed * torch.randn_like(weight))
            model.lm_head.weight.mul_(40)
        for part in (model, tokenizer):
            part.save_pretrained(root / name)
    return root


def recipe(folders, *names, **generation):
    settings = {"documents": NUMBER, "prompt_tokens": PROMPT, "new_tokens": NEW, **generation}
    return ForgettingRecipe(
        base=ModelSource(str(folders / "base")),
        models=[ModelSource(str(folders / name)) for name in names],
        target="zh",
        evaluation=EvaluationTexts(languages=WATCHED),
        generation=GenerationProbe(**settings),
    )


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return job.run(recipe(folders, "model"), out), out


def said(folder, prompt):
    model, tokenizer = (of(ModelSource(str(folder))) for of in (load_model, load_tokenizer))
    return goes_on(model, tokenizer, prompt, NEW)


def chosen(name, tokenizer):
    """Ids of the documents with the smallest hashes, of those that are long enough."""
    texts = read_languages(TextSource(), WATCHED)[name].test
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def digest(ids):
        with_bos = np.asarray([tokenizer.bos_token_id, *ids], "<i8")
        return blake2b(with_bos.tobytes(), digest_size=8).hexdigest()

    return sorted((ids for ids in documents if len(ids) >= PROMPT + NEW), key=digest)[:NUMBER]


def test_texts_are_those_of_a_plain_loop(compared, folders, tokenizer):
    (run,) = compared[0].results["runs"]
    assert list(run["generation"]["languages"]) == WATCHED
    for name, found in run["generation"]["languages"].items():
        expected = chosen(name, tokenizer)
        assert len(found["texts"]) == len(expected) == NUMBER
        for one, ids in zip(found["texts"], expected, strict=True):
            assert one["prompt"] == tokenizer.decode(ids[:PROMPT]).strip("\ufffd")
            rest = tokenizer.decode(ids[PROMPT : PROMPT + NEW]).strip("\ufffd")
            assert one["document"]["text"] == rest
            assert one["base"]["text"] == said(folders / "base", one["prompt"])
            assert one["model"]["text"] == said(folders / "model", one["prompt"])
            assert one["base"]["text"] != one["model"]["text"]


def test_shares_are_those_of_py3langid_by_itself(compared):
    (run,) = compared[0].results["runs"]
    for name, found in run["generation"]["languages"].items():
        for of in ("document", "base", "model"):
            texts = [one[of]["text"] for one in found["texts"]]
            codes = Counter(langid.classify(text)[0].replace("zxx", "none") for text in texts)
            assert all(any(map(str.isalpha, text)) for text in texts)
            assert found["in_language"][of] == codes.pop(name, 0) / NUMBER
            assert found["instead"][of] == codes
    shares = [run["generation"]["languages"][name]["in_language"]["base"] for name in ("en", "es")]
    assert run["generation"]["mean_in_language"]["base"] == sum(shares) / 2  # zh is the target


def test_files_tables_and_page(compared):
    outcome, out = compared
    (run,) = outcome.results["runs"]
    with (out / "generation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUMBER * len(WATCHED)
    first = run["generation"]["languages"]["en"]["texts"][0]
    assert [rows[0][key] for key in ("model", "language", "code")] == ["model", "en", "en"]
    assert rows[0]["document"].replace("\\n", "\n") == first["document"]["text"]
    assert rows[0]["base_code"] == (first["base"]["code"] or "")
    title = "Share of the texts that are in the language of their prompt"
    (table,) = [part for part in outcome.display if getattr(part, "title", "") == title]
    assert [cells[0].text for cells in table.cells()] == [
        "English (en)", "Spanish (es)", "Chinese (zh)"
    ]  # fmt: skip
    shares = run["generation"]["languages"]["es"]["in_language"]
    assert [cell.key for cell in table.cells()[1][1:]] == [NUMBER, *shares.values()]
    means = run["generation"]["mean_in_language"].values()
    assert [cell.key for cell in table.foot_cells()[2:]] == [*means]
    assert title in (out / "forgetting.md").read_text()
    page = (out / "report.html").read_text()
    assert "In which language do they go on?" in page
    assert "Examples: what model says" in page


def test_a_model_that_came_to_speak_another_language_is_seen(folders, tokenizer):
    """What it says is given here: the next words of the documents, or those of Spanish ones."""
    documents = job.held_out_documents(EvaluationTexts(languages=WATCHED), tokenizer)
    settings = GenerationProbe(documents=4, prompt_tokens=16, new_tokens=60)
    probe = Probe(settings, documents, tokenizer)
    own = {name: [one.document for one in prompts] for name, prompts in probe.prompts.items()}
    spanish = dict.fromkeys(own, own["es"])
    silent = {name: ["", "…", "12.", "\n"] for name in own}
    found = probe.compare(own, spanish, "es")
    for name, language in found.languages.items():
        assert language.in_language("document") == language.in_language("base") == 1
        assert language.in_language("model") == (name == "es")
        assert language.instead("model") == ({} if name == "es" else {"es": 4})
    assert (found.mean("base"), found.mean("model")) == (1, 0)  # without the target
    nothing = probe.compare(own, silent, None)
    assert nothing.languages["en"].instead("model") == {"none": 4}
    assert nothing.mean("model") == 0


def test_models_added_later_stand_beside_the_earlier_ones(compared, folders, monkeypatch, tmp_path):
    before, out = compared
    asked = []
    texts = Probe.texts

    def noted(self, model, tokenizer, what):
        asked.append(what)
        return texts(self, model, tokenizer, what)

    monkeypatch.setattr(Probe, "texts", noted)
    after = job.run(recipe(folders, "model", "later"), out)
    assert asked == ["later: continuations"]
    assert after.results["runs"][0] == before.results["runs"][0]
    (table,) = [
        part for part in after.display if str(getattr(part, "title", "")).startswith("Share")
    ]
    titles = [column.title for column in table.columns]
    assert titles == ["language", "prompts", "the document", "base", "model", "later"]


def test_another_tokenizer_is_given_the_same_text(folders, tokenizer, make_model, tmp_path):
    """The base's prompts, in its own tokens."""
    documents = job.held_out_documents(EvaluationTexts(languages=["en"]), tokenizer)
    probe = Probe(GenerationProbe(documents=2, prompt_tokens=4), documents, tokenizer)
    ids = []
    words = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="<s>"
    )
    model = make_model()
    forward = model.forward

    def noted(input_ids, **more):
        ids.extend(input_ids[:, :2].tolist())
        return forward(input_ids=input_ids, **more)

    model.forward = noted
    said = probe.texts(model, words, "other")
    prompts = [prompt.text for prompt in probe.prompts["en"]]
    assert len(said["en"]) == 2
    firsts = [[1, words(text, add_special_tokens=False)["input_ids"][0]] for text in prompts]
    assert all(first in ids for first in firsts)


@pytest.mark.parametrize(
    ("name", "code"),
    {
        "zh": "zh", "zh-Hant": "zh", "eng_Latn": "en", "zho_Hans": "zh", "arb_Arab": "ar",
        "pes_Arab": "fa", "swh_Latn": "sw", "zsm_Latn": "ms", "pt_BR": "pt", "deu": "de",
        "nno_Latn": "nn", "npi_Deva": "ne",
    }.items(),
)  # fmt: skip
def test_codes_of_languages(name, code):
    assert LanguageIdentifier([name], {}).codes == {name: code}


def test_languages_of_known_texts():
    """Of documents of all 30 languages; the other script of a language has the same code."""
    texts = read_languages(TextSource())
    identify = LanguageIdentifier([*texts], {})
    right = [
        identify(document[:200]) == name for name, language in texts.items() for document in
        language.test if len(document) > 60
    ]  # fmt: skip
    assert len(right) > 150
    assert sum(right) / len(right) > 0.95  # Malay and Indonesian are hard to tell apart
    assert identify("12, 30; 4!") is None
    assert identify("") is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"languages": ["eng"]}, r"languages names 'eng'.*did you mean 'en'.*they are en es zh"),
        ({"codes": {"fr": "fr"}}, r"generation.codes names a language 'fr' in which nothing is"),
        ({"codes": {"zh": "zzh"}}, r"gives zh the code 'zzh', of which .*no language.*'zh'"),
        ({"new_tokens": 5000}, r"language 'en': expected a held-out document of 5006 tokens"),
        ({"prompt_tokens": 120}, r"do not fit into the model's 128 tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_a_model_is_run(
    settings, complaint, folders, tmp_path, monkeypatch
):
    monkeypatch.setattr(job, "load_model", None)
    with pytest.raises(UserError, match=complaint):
        job.run(recipe(folders, "model", **settings), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_language_that_py3langid_does_not_know(folders, tmp_path, udhr, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "klingon.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in udhr["en"].test), encoding="utf-8"
    )
    base = str(folders / "base")
    words = ["forgetting", base, str(folders / "model"), "--evaluation.texts.folder", str(texts)]
    words += ["--evaluation.texts.test_one_in", "1", "--generation.documents", "1"]
    with pytest.raises(SystemExit):
        main([*words, "--out", "out"])
    assert "knows none by the name 'klingon'; give the code" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--generation.codes", "{klingon: en}", "--out", "out"])
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"documents": -1}, "generation.documents"),
        ({"documents": 0, "languages": ["en"]}, "generation.languages.*left out where"),
        ({"new_tokens": 0}, "generation.new_tokens.*1 or more"),
        ({"batch": 0}, "generation.batch.*1 or more"),
        ({"languages": ["en", "en"]}, "generation.languages.*each language once"),
    ],
)
def test_recipes_that_are_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        GenerationProbe(**{"documents": 1, **settings})


def test_conversations_give_no_prompts():
    texts = TextSource(folder="chats", messages_field="messages")
    with pytest.raises(UserError, match=r"messages_field.*left out where generation.documents"):
        ForgettingRecipe(
            ModelSource("base"), [ModelSource("model")],
            evaluation=EvaluationTexts(texts=texts), generation=GenerationProbe(documents=1),
        )  # fmt: skip
