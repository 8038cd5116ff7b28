"""An engine without a model, for tests and dry runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.records.evaluation import FinishReason, Generation


class FakeEngine:
    """Answers with whatever a function says; a token is a byte of UTF-8.

    Stop strings and the limit of new tokens hold as for a model.

    Args:
        answer: the text that a model would say to a request, then its end token.
    """

    def __init__(self, answer: Callable[[PromptRequest], str]) -> None:
        self._answer = answer

    @property
    def settings(self) -> Mapping[str, str]:
        """The name of the engine; nothing else may change an answer."""
        return {"engine": "fake"}

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request, in order."""
        for i in range(len(requests)):
            yield self._generation(requests[i])

    def _generation(self, request: PromptRequest) -> Generation:
        text, reason = self._answer(request), FinishReason.EOS
        ends = [text.find(stop) for stop in request.sampling.stop if stop in text]
        if ends:
            text, reason = text[: min(ends)], FinishReason.STOP
        tokens = text.encode()
        if len(tokens) > request.sampling.max_new_tokens:
            tokens, reason = tokens[: request.sampling.max_new_tokens], FinishReason.LENGTH
            text = tokens.decode(errors="ignore")
        return Generation(
            key=request.key,
            text=text,
            tokens=tuple(tokens),
            prompt_tokens=len(request.tokens),
            finish_reason=reason,
            seed=request.seed,
        )
