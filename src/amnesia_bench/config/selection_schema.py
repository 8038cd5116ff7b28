"""Schema of the selection of a hybrid's softmax layers, in the distillation of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from amnesia_bench.config.data_schema import Unsized
from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import Frozen, unique
from amnesia_bench.records.ids import (
    COMMONSENSE_TASKS,
    RETRIEVAL_TASKS,
    CommonsenseTask,
    RetrievalTask,
)

# The generator of documents for a task; other tasks have none.
GENERATED_DOCUMENTS: Mapping[str, Unsized] = {
    "fda": "facts",
    "swde": "facts",
    "arc_challenge": "choices",
    "arc_easy": "choices",
}


class LayerSelectionPlan(Frozen):
    """How the softmax layers of a HypeNet are selected, if nobody published them.

    Attributes:
        count: number of softmax layers.
        retrieval, commonsense: the tasks on which the teacher is evaluated with each layer
            replaced, with lm-eval's names.
        generated_rows: number of generated documents per task instead of those on the hub; null
            uses the hub's.
    """

    count: PositiveInt
    retrieval: Annotated[tuple[RetrievalTask, ...], Field(min_length=1), AfterValidator(unique)] = (
        RETRIEVAL_TASKS
    )
    commonsense: Annotated[
        tuple[CommonsenseTask, ...], Field(min_length=1), AfterValidator(unique)
    ] = COMMONSENSE_TASKS
    generated_rows: PositiveInt | None = None

    @model_validator(mode="after")
    def _documents_can_be_generated(self) -> Self:
        if self.generated_rows is not None:
            for task in self.tasks:
                check_known("generated_rows", task, list(GENERATED_DOCUMENTS))
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, those of retrieval first."""
        return (*self.retrieval, *self.commonsense)
