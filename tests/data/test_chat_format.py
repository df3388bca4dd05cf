"""Chat templates of several manners: what ends each answer, and what stands before the last one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_language import TEMPLATE, tiny_tokenizer
from tokenizers import AddedToken

from mmlab.data.conversation import ChatFormat, Encoding, Turn

LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|start|>[' + message['content'] + ']' }}"
    "{% else %}{{ ' ' + message['content'] + ' <|end|>' }}{% endif %}{% endfor %}"
)
"""No prompt of its own for an answer, and a space before the end of one."""
QWEN_3 = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
"""An empty thought before the last answer, but not where it is yet to be given."""
GLM_4 = (
    "{% for message in messages %}{{ '<|start|>' if message['role'] == 'user' else '<|mid|>' }}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '<|mid|>' }}{% endif %}"
)
"""The next question ends an answer; nothing stands behind the last."""
TURNS = [Turn((f"q{number}",), f"a{number}") for number in range(3)]


ASKS_OR_LAST = "loop.last or message['role'] == 'user'"


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], ChatFormat]:
    def build(template: str) -> ChatFormat:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([AddedToken("<|mid|>", special=True)])
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path)
        return ChatFormat(str(tmp_path))

    return build


def texts(encoding: Encoding) -> tuple[str, list[str]]:
    """All of a conversation, and each answer as it is to be said."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|mid|>", special=True)])
    words = [tokenizer.decode([one]) for one in encoding.ids]
    answers, before = [], False
    for word, said in zip(words, encoding.target, strict=True):
        if said and not before:
            answers.append("")
        if said:
            answers[-1] += word
        before = said
    return "".join(words), answers


def test_a_space_before_the_end_is_no_end(make: Callable[[str], ChatFormat]) -> None:
    chat = make(LLAMA_2)
    whole, said = texts(chat.encode(TURNS[:2]))
    assert whole == "<|start|>[q0] a0 <|end|><|start|>[q1] a1 <|end|>"
    assert said == ["a0 <|end|>", "a1 <|end|>"]
    assert chat.ends(turns=2) == (tiny_tokenizer().eos_token_id,)


def test_each_answer_keeps_its_own_end(make: Callable[[str], ChatFormat]) -> None:
    template = TEMPLATE.replace("'<|end|>\n'", f"('<|end|>' if {ASKS_OR_LAST} else '.<|mid|>') + '\n'")
    chat = make(template)
    for _ in range(2):  # the second time frames of other lengths are known
        whole, said = texts(chat.encode(TURNS))
        assert said == ["a0.<|mid|>", "a1.<|mid|>", "a2<|end|>"]
        assert whole.startswith("<|start|>user\nq0<|end|>\n<|start|>assistant\na0.<|mid|>\n<|start|>user\n")
        assert texts(chat.encode(TURNS[:1]))[1] == ["a0<|end|>"]
    end, mid = tiny_tokenizer().eos_token_id, len(tiny_tokenizer())
    assert (chat.ends(), set(chat.ends(turns=2))) == ((end,), {end, mid})


def test_where_nothing_stands_behind_an_answer_the_end_of_text_ends_it(
    make: Callable[[str], ChatFormat],
) -> None:
    whole, said = texts(make(GLM_4).encode(TURNS[:2]))
    assert whole == "<|start|>q0<|mid|>a0<|start|>q1<|mid|>a1<|end|>"
    assert said == ["a0<|start|>", "a1<|end|>"]


def test_a_template_that_refuses_a_conversation_is_named(tmp_path: Path) -> None:
    """Gemma's knows no system."""
    tokenizer = tiny_tokenizer()
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = no_system + TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert ChatFormat(str(tmp_path)).encode(TURNS).ids
    with pytest.raises(ValueError, match=r"refuses .* \(no system\): leave data\.text\.system out"):
        ChatFormat(str(tmp_path), system="Be brief.").encode(TURNS)


def test_a_template_that_ends_no_answer_is_refused(make: Callable[[str], ChatFormat]) -> None:
    with pytest.raises(ValueError, match=r"puts '\.\\n' behind an answer, .* whose template has <\|end\|>"):
        make(TEMPLATE.replace("<|end|>\n", ".\n"))
    chat = make(
        TEMPLATE.replace("'<|end|>\n'", f"('<|end|>' if {ASKS_OR_LAST} else '. ')").replace("<|start|>", "@")
    )
    assert texts(chat.encode(TURNS[:1])) == ("@user\nq0<|end|>@assistant\na0<|end|>", ["a0<|end|>"])
    for call in (lambda: chat.encode(TURNS), lambda: chat.ends(turns=2)):
        with pytest.raises(ValueError, match=r"puts '\. @user\\n' behind an answer, and no special token"):
            call()


@pytest.mark.parametrize("template", [TEMPLATE, LLAMA_2, QWEN_3, GLM_4])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_same_stands_before_an_answer_that_is_yet_to_be_given(
    make: Callable[[str], ChatFormat], template: str, turns: int
) -> None:
    chat = make(template)
    answered = chat.encode(TURNS[:turns])
    *before, last = TURNS[:turns]
    asked = chat.encode([*before, last._replace(assistant=None)])
    assert answered.ids[: len(asked.ids)] == asked.ids
    assert answered.target[: len(asked.ids)] == asked.target
    assert all(answered.target[len(asked.ids) :])
    assert texts(answered)[1][-1].startswith(f"a{turns - 1}")


def test_what_a_template_puts_before_an_answered_question_alone_is_left_out(
    make: Callable[[str], ChatFormat],
) -> None:
    whole, said = texts(make(QWEN_3).encode(TURNS[:1]))
    assert whole == "<|start|>user\nq0<|end|>\n<|start|>assistant\na0<|end|>"
    assert said == ["a0<|end|>"]
