"""Questions that stand in for the tasks from which layers are selected, in the same schemas.

`fact` stands in for SWDE and FDA: a text with several facts, the beginning of one of them again,
and the value that completes it. `choice` stands in for ARC: a question with four answers.
"""

from __future__ import annotations

import numpy as np

from amnesia_bench.data.synthetic.prose import sentence
from amnesia_bench.data.synthetic.words import NAMES, OBJECTS, PLACES, TIMES, below, pick, shuffled

_FACTS, _ANSWERS = 4, 4


def fact(rng: np.random.Generator) -> dict[str, object]:
    """Return a row with the fields of SWDE: `text` ends before the `value`, which it contains."""
    places, owners = shuffled(rng, PLACES)[:_FACTS], shuffled(rng, NAMES)[:_FACTS]
    thing = pick(rng, OBJECTS)
    facts = [
        f"The {thing} in the {place} belongs to {owner}."
        for place, owner in zip(places, owners, strict=True)
    ]
    told = " ".join(f"{sentence(rng)} {text}" for text in facts)
    asked = below(rng, _FACTS)
    question = facts[asked].removesuffix(f" {owners[asked]}.")
    return {"text": f"{told}\n{question}", "value": owners[asked]}


def choice(rng: np.random.Generator) -> dict[str, object]:
    """Return a row with the fields of ARC: a question, four answers, and the label of the right."""
    place, thing = pick(rng, PLACES), pick(rng, OBJECTS)
    texts = [f"in the {time}" for time in shuffled(rng, TIMES)[:_ANSWERS]]
    right = below(rng, _ANSWERS)
    question = f"The {place} opens {texts[right]}. When can one buy a {thing} in the {place}?"
    labels = ["A", "B", "C", "D"]
    return {
        "question": question,
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[right],
    }
