"""Task files of lm-evaluation-harness that show whether a model still learns in its context.

    python docs/study/recall.py tasks en fr
    freezetrain forgetting BASE ADAPTED --benchmarks.folder tasks --benchmarks.tasks '[recall_en]'

Eight pairs of a word and a letter stand before each question, `word: letter` a line, and one of the
words is asked for: what its letter is stands in the context alone, so that neither knowledge of the
language nor its loss tells it. 1 in 8 is chance. Words are from the Declaration of Human Rights in
the language, so that no network and no other file is needed; the questions are always the same
ones. A letter is one token in most vocabularies, so that the harness runs each question once.
"""

import json
import random
import re
import sys
from pathlib import Path

from freezetrain.data.texts import read_languages
from freezetrain.recipe.sources import TextSource

QUESTIONS, LETTERS = 200, "ABCDEFGH"

TASK = """\
task: recall_{language}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def main(folder: Path, languages: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for language, texts in read_languages(TextSource(), languages).items():
        found = re.findall(r"\b[^\W\d_]{4,8}\b", " ".join([*texts.train, *texts.test]).lower())
        words, drawn, lines = sorted(set(found)), random.Random(language), []
        for _ in range(QUESTIONS):
            keys = drawn.sample(words, len(LETTERS))
            values = drawn.sample(LETTERS, len(LETTERS))
            answer = drawn.randrange(len(LETTERS))
            shown = [f"{key}: {value}" for key, value in zip(keys, values, strict=True)]
            question = "\n".join([*shown, f"{keys[answer]}:"])
            lines.append({"question": question, "choices": values, "answer": answer})
        data = folder / f"recall_{language}.jsonl"
        data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        task = TASK.format(language=language, data=data.resolve())
        (folder / f"recall_{language}.yaml").write_text(task)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
