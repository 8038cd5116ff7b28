"""An engine that is watched answers as before, and says how far it is."""

from amnesia_bench.inference.protocol import ProgressEngine
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_models import needle_prompts, requests_of


def test_every_answer_is_counted_and_handed_on() -> None:
    requests = requests_of(needle_prompts(3, 64, depths=3))
    counted: list[tuple[int, int]] = []
    engine = FakeEngine(lambda request: f"{request.key.doc}")
    watched = ProgressEngine(engine, lambda done, total: counted.append((done, total)))
    assert list(watched.generate(requests)) == list(engine.generate(requests))
    assert counted == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert watched.settings == engine.settings
