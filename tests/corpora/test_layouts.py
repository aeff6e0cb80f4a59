"""Well-known multilingual sets, in miniature but laid out as they are, are read by recipe alone."""

import gzip
import json
import zlib

import datasets
import pytest
import yaml
import zstandard

from freezetrain.data.texts import languages_in, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

SENTENCES = {
    "eng_Latn": [f"The {n}th sentence." for n in range(1, 41)],
    "zho_Hans": [f"第{n}句。" for n in range(1, 41)],
    "deu_Latn": [f"Der {n}. Satz." for n in range(1, 41)],
}
NAMES = {"en": "eng_Latn", "zh": "zho_Hans"}


@pytest.fixture
def flores200(tmp_path):
    """The release of 2022: flores200_dataset/devtest/eng_Latn.devtest, a sentence a line."""
    root = tmp_path / "flores200_dataset"
    for split in ("dev", "devtest"):
        (root / split).mkdir(parents=True)
        for code, sentences in SENTENCES.items():
            lines = "".join(f"{sentence}\n" for sentence in sentences)
            (root / split / f"{code}.{split}").write_text(lines, encoding="utf-8")
    (root / "metadata_devtest.tsv").write_text("URL\tdomain\n")
    (root / "README").write_text("FLORES-200")
    return root


@pytest.mark.parametrize("split", ["dev", "devtest"])
def test_flores_200_is_a_sentence_a_line(flores200, split):
    source = TextSource(folder=str(flores200 / split), names=NAMES, key_field="line", test_one_in=1)
    languages = read_languages(source, ["en", "zh"])
    for name, code in NAMES.items():
        assert list(languages[name].test) == SENTENCES[code]
        assert not languages[name].train
    assert languages_in(source) == ["deu_Latn", "en", "zh"]


def test_flores_200_is_split_by_line_alike_in_all_languages(flores200):
    source = TextSource(folder=str(flores200 / "dev"), names=NAMES, key_field="line")
    held_out = [n for n in range(1, 41) if zlib.crc32(str(n).encode()) % 4 == 0]
    for name, code in NAMES.items():
        test = read_languages(source, [name])[name].test
        assert list(test) == [SENTENCES[code][n - 1] for n in held_out]


def test_the_parent_folder_of_flores_200_holds_splits_and_no_languages(flores200):
    with pytest.raises(UserError, match="holds no texts"):
        languages_in(TextSource(folder=str(flores200)))


def hub_folder(folder, configs, splits, name):
    """``configs``: config → rows; ``name(config, split)`` is the file's place."""
    header = []
    for config, rows in configs.items():
        files = [{"split": split, "path": name(config, split)} for split in splits]
        header.append({"config_name": config, "data_files": files})
        for file in files:
            path = folder / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows(config, file["split"])).to_parquet(path)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': header})}---\n")
    return folder


def test_flores_plus_is_a_configuration_a_language(tmp_path):
    def rows(code, split):
        language, script = code.split("_")
        return [
            {"id": n, "iso_639_3": language, "iso_15924": script, "text": f"{split} {sentence}"}
            for n, sentence in enumerate(SENTENCES[code])
        ]

    folder = hub_folder(
        tmp_path / "flores_plus",
        dict.fromkeys(SENTENCES, rows),
        ("dev", "devtest"),
        lambda code, split: f"{split}/{code}.parquet",
    )
    source = TextSource(
        hub=str(folder), hub_split="devtest", names=NAMES, key_field="id", test_one_in=1
    )
    languages = read_languages(source, ["en", "zh"])
    for name, code in NAMES.items():
        assert list(languages[name].test) == [f"devtest {one}" for one in SENTENCES[code]]


def test_culturax_is_a_configuration_a_language_of_several_files(tmp_path):
    def rows(language, part):
        return [
            {
                "text": f"{language} {part} {n}",
                "timestamp": "2023",
                "url": f"u/{n}",
                "source": "mC4",
            }
            for n in range(30)
        ]

    folder = tmp_path / "CulturaX"
    header = []
    for language in ("en", "vi"):
        header.append({"config_name": language, "data_files": f"{language}/*.parquet"})
        for part in range(2):
            path = folder / language / f"{language}_part_{part:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows(language, part)).to_parquet(path)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': header})}---\n")
    every = [f"vi {part} {n}" for part in range(2) for n in range(30)]
    # As a data set, and as the plain folder that it is on disk.
    for place in ({"hub": str(folder)}, {"folder": str(folder)}):
        source = TextSource(**place, key_field="url", test_one_in=2)
        assert languages_in(source) == ["en", "vi"]
        vi = read_languages(source, ["vi"])["vi"]
        held_out = [text for text in every if zlib.crc32(f"u/{text.split()[2]}".encode()) % 2 == 0]
        assert list(vi.test) == held_out
        assert sorted([*vi.train, *vi.test]) == sorted(every)


@pytest.mark.parametrize(
    ("place", "ending", "compress"),
    [
        ("{}_meta", ".jsonl.zst", zstandard.ZstdCompressor().compress),  # OSCAR 23.01
        ("{}", ".jsonl.gz", gzip.compress),  # OSCAR 22.01
    ],
)
def test_oscar_is_a_folder_a_language_of_compressed_lines(tmp_path, place, ending, compress):
    for language in ("en", "zh"):
        folder = tmp_path / "OSCAR" / place.format(language)
        folder.mkdir(parents=True)
        for part in (1, 2):
            rows = [
                {
                    "content": f"{language} {part} {n}\nnext line",
                    "warc_headers": {"warc-record-id": f"<urn:uuid:{n}>", "content-length": 9},
                    "metadata": {"identification": {"label": language, "prob": 0.9}},
                }
                for n in range(20)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            path = folder / f"{place.format(language)}_part_{part}{ending}"
            path.write_bytes(compress(lines.encode()))
    names = {name: place.format(name) for name in ("en", "zh") if place != "{}"}
    source = TextSource(
        folder=str(tmp_path / "OSCAR"), names=names, text_field="content", test_one_in=0
    )
    languages = read_languages(source)
    assert list(languages) == ["en", "zh"]
    assert list(languages["zh"].train) == [
        f"zh {part} {n}\nnext line" for part in (1, 2) for n in range(20)
    ]
