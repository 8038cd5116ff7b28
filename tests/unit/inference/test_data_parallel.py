"""One process per device: the same answers, and failures that reach the caller."""

import os
import signal

import pytest

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.data_parallel import DataParallelEngine
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from tests.support.tiny_models import needle_prompts, requests_of, tiny_model, tiny_tokenizer

OPTIONS = EngineOptions(
    dtype="float32", device="cpu", prefill_chunk_tokens=64, max_rows=1, verify_prefix=2
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("hypenet").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


class Counted(list):
    """Requests built on demand; must not be copied to the processes as a whole."""

    def __reduce__(self):
        raise AssertionError("the sequence itself was sent")


def test_two_processes_answer_as_one_and_tell_their_mistakes(checkpoint):
    requests = Counted(requests_of(needle_prompts(12, 400, depths=6), new=4))
    alone = TransformersEngine.load(checkpoint, OPTIONS)
    expected = {each.key: each for each in alone.generate(requests)}
    with DataParallelEngine(TransformersEngine.load, checkpoint, OPTIONS, ["", ""]) as engine:
        assert engine.settings == alone.settings
        for _ in range(2):
            found = list(engine.generate(requests))
            assert len(found) == len(requests)
            assert {each.key: each for each in found} == expected
        # One request leaves a process without work.
        assert [each.key for each in engine.generate(requests[:1])] == [requests[0].key]
        with pytest.raises(UserError, match="do not fit the model's context"):
            list(engine.generate(requests_of(needle_prompts(2, 400, depths=2), new=10**6)))


@pytest.mark.slow
def test_a_killed_process_is_an_error_and_not_a_wait(checkpoint):
    with DataParallelEngine(TransformersEngine.load, checkpoint, OPTIONS, [""]) as engine:
        answers = engine.generate(requests_of(needle_prompts(4, 400, depths=2), new=200))
        next(answers)
        os.kill(engine._workers[0][0].pid, signal.SIGKILL)
        with pytest.raises(StageFailedError, match="worker process of the engine died"):
            list(answers)


def test_a_folder_without_a_model_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        DataParallelEngine(TransformersEngine.load, tmp_path / "absent", OPTIONS, [""])


class Settings:
    def __init__(self):
        names = ("CUDA_VISIBLE_DEVICES", "VLLM_ENABLE_V1_MULTIPROCESSING")
        self.settings = {name: os.environ[name] for name in names}


def settings_engine(checkpoint, options):
    return Settings()


def test_a_process_sees_its_gpu_only(checkpoint, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with DataParallelEngine(settings_engine, checkpoint, OPTIONS, ["5"]) as engine:
        # With 0, vLLM runs the model in the worker, which as a daemon may start no process.
        assert engine.settings == {
            "CUDA_VISIBLE_DEVICES": "5",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
