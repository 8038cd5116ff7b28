"""Chat templates of thirteen model families, and tokenizers that have them.

Written anew from what the published templates do with texts, chains and tools; long fixed texts
are shortened. Loops that find the last question of a user stand for rules that published
templates write in several ways.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoTokenizer

from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.small_data import save_tokenizer


@dataclass(frozen=True)
class Template:
    """A template, its tokens that are not text, and the one that ends a conversation."""

    source: str
    specials: tuple[str, ...] = ()
    bos: str = "<s>"
    eos: str = "<|im_end|>"


# Chains only after the last question; a result of a tool in a user's turn is not a question.
_LAST_QUESTION = """
{%- set last = namespace(i=messages|length - 1, found=false) -%}
{%- for m in messages[::-1] -%}
  {%- if not last.found and m.role == 'user' and not (m.content.startswith('<tool_response>')
      and m.content.endswith('</tool_response>')) -%}
    {%- set last.found = true -%}{%- set last.i = messages|length - 1 - loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
"""
_SPLIT_CHAIN = """
{%- set chain = '' -%}{%- set text = m.content -%}
{%- if m.reasoning_content is string -%}{%- set chain = m.reasoning_content -%}
{%- elif '</think>' in text -%}
  {%- set chain = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
  {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
"""
_HERMES_TOOLS = """
{%- if tools -%}
  {{- '# Tools\\n<tools>' -}}
  {%- for tool in tools %}{{- '\\n' + tool | tojson -}}{%- endfor -%}
  {{- '\\n</tools>' -}}
{%- endif -%}
"""
_HERMES_CALLS = """
{%- for call in m.tool_calls or [] -%}
  {%- if not loop.first or text -%}{{- '\\n' -}}{%- endif -%}
  {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
  {{- call.function.arguments if call.function.arguments is string
      else call.function.arguments | tojson -}}
  {{- '}\\n</tool_call>' -}}
{%- endfor -%}
"""
_HERMES_RESULTS = """
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
  {{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
"""

_QWEN3 = (
    _LAST_QUESTION
    + """
{%- if tools or messages[0].role == 'system' -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}
"""
    + _HERMES_TOOLS
    + """
  {{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
  {%- elif m.role == 'assistant' -%}
"""
    + _SPLIT_CHAIN
    + """
    {{- '<|im_start|>assistant\\n' -}}
    {%- if loop.index0 > last.i and (loop.last or chain) -%}
      {{- '<think>\\n' + chain.strip('\\n') + '\\n</think>\\n\\n' + text.lstrip('\\n') -}}
    {%- else -%}
      {{- text -}}
    {%- endif -%}
"""
    + _HERMES_CALLS
    + """
    {{- '<|im_end|>\\n' -}}
  {%- elif m.role == 'tool' -%}
"""
    + _HERMES_RESULTS
    + """
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}
    {{- '<think>\\n\\n</think>\\n\\n' -}}
  {%- endif -%}
{%- endif -%}
"""
)

# No think block of its own (Qwen3-*-Instruct-2507, Qwen3-Next-Instruct, Coder).
_QWEN3_2507 = (
    """
{%- if messages[0].role == 'system' -%}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- set text = m.content -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' + text -}}
"""
    + _HERMES_CALLS
    + """
    {{- '<|im_end|>\\n' -}}
  {%- elif m.role == 'tool' -%}
"""
    + _HERMES_RESULTS
    + """
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_QWEN2_5 = (
    """
{%- if messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\n"""
    + QWEN_SYSTEM
    + """<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role in ['system', 'user', 'assistant'] and not m.tool_calls -%}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)

# The prompt opens a think block; calls are tags.
_QWEN3_5 = (
    _LAST_QUESTION
    + """
{%- if messages[0].role == 'system' -%}
  {{- '<|im_start|>system\\n' + messages[0].content | trim + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}
    {{- '<|im_start|>user\\n' + m.content | trim + '<|im_end|>\\n' -}}
  {%- elif m.role == 'assistant' -%}
"""
    + _SPLIT_CHAIN
    + """
    {{- '<|im_start|>assistant\\n' -}}
    {%- if loop.index0 > last.i -%}
      {{- '<think>\\n' + chain | trim + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- text | trim -}}
    {%- for call in m.tool_calls or [] -%}
      {{- '<tool_call>\\n<function=' + call.function.name + '>' -}}
      {%- for name, value in call.function.arguments | items -%}
        {{- '\\n<parameter=' + name + '>' + value | string + '</parameter>' -}}
      {%- endfor -%}
      {{- '\\n</function>\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- elif m.role == 'tool' -%}
    {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n<think>\\n' -}}
  {{- '\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '' -}}
{%- endif -%}
"""
)

_LLAMA3 = """
{%- for m in messages -%}
  {{- bos_token if loop.first else '' -}}
  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' -}}
  {{- m.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# Always a system message, with today's date.
_LLAMA3_2 = """
{{- bos_token -}}
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}
{%- set system, rest = '', messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set system, rest = messages[0].content | trim, messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date + '\\n\\n' -}}
{{- system + '<|eot_id|>' -}}
{%- for m in rest -%}
  {%- if 'tool_calls' in m -%}
    {{- raise_exception('only one call at once') if m.tool_calls | length != 1 else '' -}}
    {%- set call = m.tool_calls[0].function -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name -}}
    {{- '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' -}}
  {%- elif m.role == 'tool' -%}
    {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' -}}
  {%- else -%}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' -}}
    {{- m.content | trim + '<|eot_id|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# No generation prompt; the system message stands before the last question.
_MISTRAL = """
{{- bos_token -}}
{%- set rest = messages[1:] if messages[0].role == 'system' else messages -%}
{%- for m in rest -%}
  {%- if m.role == 'user' -%}
    {%- set system = messages[0].content + '\\n\\n' if loop.last and rest != messages else '' -%}
    {{- '[INST] ' + system + m.content + '[/INST]' -}}
  {%- elif m.role == 'assistant' and not m.tool_calls -%}
    {{- ' ' + m.content | trim + eos_token -}}
  {%- elif m.role == 'assistant' -%}
    {%- for call in m.tool_calls -%}
      {%- if call.id is not defined -%}
        {{- raise_exception('calls need ids of nine characters') -}}
      {%- endif -%}
      {{- '[TOOL_CALLS]{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- call.function.arguments | tojson + ', "id": "' + call.id + '"}' -}}
    {%- endfor -%}
    {{- eos_token -}}
  {%- elif m.role == 'tool' and m.tool_call_id is defined -%}
    {{- '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}' -}}
  {%- else -%}
    {{- raise_exception('only user and assistant after the system message') -}}
  {%- endif -%}
{%- endfor -%}
"""

# The role is named model; the system message opens the first question.
_GEMMA3 = """
{{- bos_token -}}
{%- set first, rest = '', messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set first, rest = messages[0].content + '\\n\\n', messages[1:] -%}
{%- endif -%}
{%- for m in rest -%}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate') -}}
  {%- endif -%}
  {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}
  {{- (first if loop.first else '') + m.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

# Metadata with today's date; what it marks as generated begins with the header.
_SMOLLM3 = """
{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' -%}
{%- set own = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() -%}
  {%- if '/no_think' in messages[0].content -%}{%- set mode = '/no_think' -%}{%- endif -%}
{%- endif -%}
{{- '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nMode: ' + mode -}}
{{- '\\n\\n' + own + '<|im_end|>\\n' -}}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- generation -%}
      {{- '<|im_start|>assistant\\n' -}}
      {%- if mode == '/no_think' -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}
      {{- m.content.lstrip('\\n') + '<|im_end|>\\n' -}}
    {%- endgeneration -%}
  {%- elif m.role != 'system' -%}
    {{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') -}}
{%- endif -%}
"""

# Leaves out the chain of every answer; the prompt opens one.
_R1_DISTILL = """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- m.content -}}
  {%- elif m.role == 'user' -%}{{- '<|User|>' + m.content -}}
  {%- elif m.role == 'assistant' -%}
    {{- '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|><think>\\n' -}}{%- endif -%}
"""

# A chain and an answer are two messages of a turn, and the last one ends otherwise.
_GPT_OSS = (
    _LAST_QUESTION
    + """
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- if m.thinking and loop.index0 > last.i -%}
      {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}
    {%- endif -%}
    {{- '<|start|>assistant<|channel|>final<|message|>' + m.content -}}
    {{- '<|return|>' if loop.last else '<|end|>' -}}
  {%- else -%}
    {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""
)

# An answer is closed, and then the turn, by a token each.
_COHERE2 = """
{{- bos_token -}}
{%- for m in messages -%}
  {{- '<|START_OF_TURN_TOKEN|>' -}}
  {%- if m.role == 'assistant' -%}
    {{- '<|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' -}}
  {%- else -%}
    {{- '<|USER_TOKEN|>' + m.content -}}
  {%- endif -%}
  {{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' -}}
{%- endif -%}
"""

# Ends no answer with a token.
ALPACA = Template(
    "{%- for m in messages -%}{{- '### ' + m.role + ':\\n' + m.content + '\\n\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### assistant:\\n' -}}{%- endif -%}"
)

_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATES = {
    "qwen3": Template(_QWEN3),
    "qwen3_2507": Template(_QWEN3_2507),
    "qwen2_5": Template(_QWEN2_5),
    "qwen3_5": Template(_QWEN3_5),
    # The small ones think only if they are asked to.
    "qwen3_5_small": Template(
        _QWEN3_5.replace(
            "if enable_thinking is defined and not enable_thinking",
            "if enable_thinking is not defined or not enable_thinking",
        )
    ),
    "cohere2": Template(
        _COHERE2,
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "llama3": Template(_LLAMA3, _HEADERS, _HEADERS[0], _HEADERS[3]),
    "llama3_2": Template(_LLAMA3_2, _HEADERS, _HEADERS[0], _HEADERS[3]),
    "mistral": Template(_MISTRAL, eos="</s>"),
    "gemma3": Template(_GEMMA3, ("<start_of_turn>", "<end_of_turn>")),
    "smollm3": Template(_SMOLLM3),
    "r1_distill": Template(_R1_DISTILL, eos="</s>"),
    "gpt_oss": Template(
        _GPT_OSS, ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")
    ),
}


def tokenizer_with(folder: Path, template: Template) -> DataTokenizer:
    """Save a small tokenizer with a template and its tokens, and load it."""
    whole = AutoTokenizer.from_pretrained(str(save_tokenizer(folder, template=template.source)))
    # R1's marks of who speaks are tokens, and not special ones.
    plain = [AddedToken(mark, normalized=False) for mark in ("<|User|>", "<|Assistant|>")]
    whole.add_tokens(plain if "<|User|>" in template.source else [])
    whole.add_tokens(
        [AddedToken(mark, normalized=False, special=True) for mark in template.specials]
    )
    whole.bos_token, whole.eos_token = template.bos, template.eos
    whole.save_pretrained(folder)
    return DataTokenizer(load_tokenizer(folder))
