"""Small files of questions in the formats of SQuAD 2.0 and HotpotQA, with made-up texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.niah_texts import made_up_essay


def write_squad(path: Path, articles: int = 12, seed: int = 0) -> Path:
    """Write questions as in SQuAD 2.0: some impossible, some with a space at the end."""
    rng = random.Random(seed)
    data = []
    for article in range(articles):
        paragraphs = []
        for _ in range(rng.randint(1, 4)):
            context = made_up_essay(rng.randint(2, 8), seed=rng.randrange(10**6)).strip()
            paragraphs.append({"context": context, "qas": _squad_questions(context, rng)})
        data.append({"title": f"Article {article}", "paragraphs": paragraphs})
    # Every file has questions with and without an answer.
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def _squad_questions(context: str, rng: random.Random) -> list[dict[str, object]]:
    words = context.split()
    questions = []
    for number in range(rng.randint(2, 4)):
        impossible = number == 1
        answers = [] if impossible else [
            {"text": " ".join(words[i : i + 2]), "answer_start": 0}
            for i in rng.choices(range(len(words) - 1), k=rng.randint(1, 5))
        ]  # fmt: skip
        end = rng.choice(["?", "? "])
        questions.append(
            {
                "question": f"What comes after {rng.choice(words)}{end}",
                "id": f"{rng.random()}",
                "is_impossible": impossible,
                "answers": answers,
            }
        )
    return questions


def write_hotpot(path: Path, questions: int = 30, texts: int = 40, seed: int = 0) -> Path:
    """Write questions as in HotpotQA's distractor setting, with 10 texts each."""
    rng = random.Random(seed)
    known = []
    for i in range(texts):
        sentence = made_up_essay(1, seed=rng.randrange(10**6)).strip()
        known.append([f"Title {i}", [f"{sentence} "] * rng.randint(1, 3)])
    rows = [
        {
            "_id": str(number),
            "question": f"Which of the titles is number {number}?",
            "answer": rng.choice(["yes", "no", f"Title {number}"]),
            "context": rng.sample(known, 10),
            "supporting_facts": [],
        }
        for number in range(questions)
    ]
    path.write_text(json.dumps(rows))
    return path
