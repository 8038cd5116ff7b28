"""The request for measurements of why recall is lost: gradients, attention, texts, divergence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.cache_key import ORDERED
from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, StageRequest

# A label becomes part of the names of files.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Folders = Annotated[Mapping[Label, Location], Field(min_length=1), ORDERED]
# Defaults: tokens per text, the largest distance, texts or prompts, rows and columns of a map.
TOKENS, MAX_DISTANCE, SAMPLES, MAP_SIZE = 1024, 512, 64, 256


class Autocorrelations(Frozen):
    """How soon the tokens of a text are repeated (Figure 3, left).

    Attributes:
        data: folders of prepared data by name.
        max_distance: the largest distance, in tokens.
    """

    kind: Literal["autocorrelation"] = "autocorrelation"
    data: Folders
    max_distance: PositiveInt = MAX_DISTANCE


class Gradients(Frozen):
    """How far gradients reach back through attention (Figures 3, right, and 7).

    Attributes:
        checkpoint: folder of the checkpoint.
        role: the checkpoint's role: pre, post or restored.
        data: folders of prepared data by name. The trained tokens of the first source decide at
            which positions the loss is taken, in all sources, so that these can be compared.
        tokens: the length to which every text is truncated; shorter texts are skipped.
        max_distance: the largest distance, in tokens; None selects half of `tokens`, at most 512.
        samples: the maximum number of texts per source.
    """

    kind: Literal["gradients"] = "gradients"
    checkpoint: Location
    role: Label = "checkpoint"
    data: Folders
    tokens: PositiveInt = TOKENS
    max_distance: PositiveInt | None = None
    samples: PositiveInt = SAMPLES

    @property
    def largest_distance(self) -> int:
        """The largest distance, in tokens."""
        return self.max_distance or min(MAX_DISTANCE, self.tokens // 2)


class NeedlePrompts(Frozen):
    """NIAH prompts of one length.

    Attributes:
        folder: folder that `build_prompts` wrote.
        tasks: only these tasks; None takes all.
        length: only this length, in tokens; None if the prompts have one length.
        samples: the maximum number of prompts per task.
    """

    folder: Location
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    length: PositiveInt | None = None
    samples: PositiveInt = SAMPLES


class Distances(Frozen):
    """The attention distance of each head (Eq. 17), and its change from the first checkpoint.

    It is measured on `prompts` or on texts of `data`, which are truncated to `tokens` tokens.

    Attributes:
        checkpoints: checkpoint folders by role.
        prompts: prompts with needles.
        data: folder of prepared data, by name.
        tokens: the length of a text of `data`.
        samples: the maximum number of texts of `data`.
    """

    kind: Literal["distance"] = "distance"
    checkpoints: Folders
    prompts: NeedlePrompts | None = None
    data: Annotated[Mapping[Label, Location], Field(max_length=1)] = {}
    tokens: PositiveInt = TOKENS
    samples: PositiveInt = SAMPLES

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompts is None) == (not self.data):
            raise ValueError("distances are measured on either prompts or one source of data")
        return self


class AttentionMaps(Frozen):
    """Attention maps of single heads on one prompt, in each checkpoint (Figure 4).

    Attributes:
        checkpoints: checkpoint folders by role.
        prompts: prompts with needles; the first one is drawn.
        heads: the heads to draw, as pairs of layer and head. None measures the attention distances
            of all heads, as `Distances` does, and draws the head whose distance fell most from the
            first checkpoint to the second, in the layer with the most such heads.
        size: the number of rows and columns of a map.
    """

    kind: Literal["maps"] = "maps"
    checkpoints: Folders
    prompts: NeedlePrompts
    heads: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1)] | (
        None
    ) = None
    size: PositiveInt = MAP_SIZE

    @model_validator(mode="after")
    def _heads_are_given_or_chosen(self) -> Self:
        if self.heads is None and len(self.checkpoints) < 2:
            raise ValueError(
                "--heads is missing: choosing the head whose distance fell most needs two "
                "checkpoints. Give --heads 33.8 or a second --checkpoint"
            )
        return self


class Divergence(Frozen):
    """How far a fine-tune moved: KL(pre || post) on data, and the norms of the changes of weights.

    Attributes:
        pre, post: folders of the checkpoints before and after the fine-tune.
        data: folder of prepared data, by name.
        tokens: the maximum number of tokens per text.
        samples: the maximum number of texts.
    """

    kind: Literal["divergence"] = "divergence"
    pre: Location
    post: Location
    data: Annotated[Mapping[Label, Location], Field(min_length=1, max_length=1)]
    tokens: PositiveInt = TOKENS
    samples: PositiveInt = SAMPLES


AttentionAnalysis = Annotated[
    Autocorrelations | Gradients | Distances | AttentionMaps | Divergence,
    Field(discriminator="kind"),
]


class AnalyzeRequest(StageRequest):
    """`analyze`: measure why recall is lost, and draw it.

    Attributes:
        analysis: what to measure, on which checkpoints and texts.
        seed: seed of the resampling for confidence intervals.
    """

    front_door: ClassVar[str] = "analyze"
    analysis: AttentionAnalysis
    seed: NonNegativeInt = 0
