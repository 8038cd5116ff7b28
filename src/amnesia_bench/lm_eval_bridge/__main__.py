"""lm-eval's command line, with its own arguments and the additional model `amnesia`.

python -m amnesia_bench.lm_eval_bridge --model amnesia --model_args pretrained=DIR
    --tasks niah_single_2 --metadata '{"max_seq_lengths": [32768]}'
"""

from __future__ import annotations

import sys

from amnesia_bench.errors import AmnesiaError, ExitCode, UserError
from amnesia_bench.printable import message


def run_lm_eval() -> int:
    """Run lm-eval's command line on `sys.argv`, and return the exit code."""
    try:
        if any(argument.partition("=")[0] == "--cache_requests" for argument in sys.argv):
            raise UserError(
                "--cache_requests: lm-eval's cache key contains neither length nor tokenizer, so a "
                "task at another length would get the prompts of the first",
                hint="Remove the option; `amnesia niah build` stores prompts.",
            )
        from lm_eval.__main__ import cli_evaluate

        from amnesia_bench.lm_eval_bridge import model  # noqa: F401  registers the model
        from amnesia_bench.tokenizers.sentences import install_sentence_model

        install_sentence_model()  # otherwise, NIAH tasks try to download the sentence model
        cli_evaluate()
    except AmnesiaError as error:
        sys.stderr.write(message(f"{error}\n"))
        return int(error.exit_code)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(run_lm_eval())
