"""The text-handling rules, each under tokenizers that tempt one to break it."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_TOFU_TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sga.batching.encoding import Encoded, Encoder
from sga.batching.templates import ChatTemplate, PlainTemplate, Template
from sga.errors import UserError
from sga.models.small import train_tokenizer

QUESTION = "Where was Ada Brook born?"
ANSWER = "Ada Brook was born in Oslo."
TEXTS = [
    QUESTION,
    ANSWER,
    "Question: Where was Ben Carrow born?\nAnswer: Ben Carrow was born in Porto.",
    "2024 July user",
]

LLAMA_2 = "[INST] {question} [/INST]{answer}"

# A turn that ends in the end-of-sequence token, in it and a newline, and in a token of its own.
CHAT_EOS = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
CHAT_EOS_NEWLINE = CHAT_EOS.replace("'</s>'", "'</s>\n'")
CHAT_OWN_END = CHAT_EOS.replace("'</s>'", "'<end>\n'")
CHAT_DATE = "{{ 'Today is ' + strftime_now('%d %b %Y') + '\n' }}" + CHAT_EOS
CHAT_DATE_STRING = "{{ 'Today is ' + date_string + '\n' }}" + CHAT_EOS
# A finished turn differs from the generation prompt: a reasoning block that only the prompt has.
CHAT_REASONING = CHAT_EOS.replace("'<s>assistant\n'", "'<s>assistant\n<think></think>'")


def bpe(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Our own: byte-level BPE, <s> in front."""
    tokenizer = train_tokenizer(TEXTS, 400, 256)
    tokenizer.chat_template = chat_template
    return tokenizer


def without_bos() -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2: no special token is added, and padding is the end-of-sequence token."""
    tokenizer = bpe()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def appends_eos() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts <s> in front and </s> at the end itself."""
    tokenizer = bpe()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def words(eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """Whole words, cut at white space: a prompt is no token prefix where nothing stands between it and the answer."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "Q", "up", "on", "upon", "a", "time", "left"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token=eos)


@pytest.fixture(scope="module")
def tiny_tofu(tiny_models: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "full")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


TOKENIZERS = [bpe, without_bos, appends_eos]
TEMPLATES = [PlainTemplate(), TINY_TOFU_TEMPLATE, PlainTemplate(LLAMA_2)]
CHATS = [CHAT_EOS, CHAT_EOS_NEWLINE, CHAT_OWN_END, CHAT_DATE, CHAT_DATE_STRING, CHAT_REASONING]


def check(tokenizer: PreTrainedTokenizerBase, template: Template, question: str, answer: str) -> Encoded:
    """What holds under every tokenizer and template."""
    encoder = Encoder(tokenizer, template, 256)
    found = encoder.encode(question, answer)
    eos = tokenizer.eos_token_id
    answer_ids = found.ids[found.prompt_length :]
    assert answer_ids[-1] == eos and answer_ids.count(eos) == 1, "once, at the end, as an answer token"
    assert found.ids[: found.prompt_length] == encoder.encode_prompt(question), "generation starts where scoring does"
    assert found.answer_length == len(answer_ids)
    return found


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.text)
@pytest.mark.parametrize("make", TOKENIZERS)
def test_the_prompt_is_a_prefix_and_there_is_one_end_token(
    make: Callable[[], PreTrainedTokenizerFast], template: PlainTemplate
) -> None:
    tokenizer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no prompt and answer had to be tokenised apart
        found = check(tokenizer, template, QUESTION, ANSWER)
    text = template.text.format(question=QUESTION, answer=ANSWER)
    start = 0 if make is without_bos else 1
    assert found.ids[:start] == (1,) * start
    assert found.ids[start:-1] == tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), "the text as a whole"
    assert Encoder(tokenizer, template, 256).decode(found.ids[found.prompt_length :]) == ANSWER


def test_tiny_tofu_s_tokenizer(tiny_tofu: PreTrainedTokenizerBase) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for template in TEMPLATES:
            check(tiny_tofu, template, QUESTION, ANSWER)


def test_negative_control_a_prompt_with_a_trailing_space_is_no_token_prefix() -> None:
    """What the template's own rule avoids: the space before the answer belongs to the answer's first token."""
    tokenizer = bpe()
    naive = tokenizer(f"Question: {QUESTION}\nAnswer: ")["input_ids"]
    whole = tokenizer(f"Question: {QUESTION}\nAnswer: {ANSWER}")["input_ids"]
    assert whole[: len(naive)] != naive
    found = Encoder(tokenizer, PlainTemplate(), 256).encode(QUESTION, ANSWER)
    assert list(found.ids[:-1]) == whole
    assert tokenizer.decode(found.ids[found.prompt_length]).startswith(" ")


def test_a_prompt_that_is_no_prefix_is_tokenised_apart_and_that_is_said_once() -> None:
    """`Q up` + `on a time` in one word each: whole `Q upon a time`, joined `Q up on a time </s>`."""
    tokenizer = words()
    assert tokenizer("Q upon a time")["input_ids"] == [4, 7, 8, 9]
    encoder = Encoder(tokenizer, PlainTemplate("Q {question}{answer}"), 16)
    with pytest.warns(UserWarning, match="not a token prefix"):
        found = encoder.encode("up", "on a time")
    assert found == Encoded((4, 5, 6, 8, 9, 2), 2)
    assert encoder.encode_prompt("up") == (4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode("up", "on a time left")


# ---- the end-of-sequence token --------------------------------------------------------------------------------------


def test_a_tokenizer_without_end_of_sequence_token_is_refused() -> None:
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Encoder(words(eos=None), PlainTemplate(), 16)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_an_answer_that_ends_in_the_end_of_sequence_text_gets_no_second_one(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    encoder = Encoder(make(), PlainTemplate(), 256)
    assert encoder.encode(QUESTION, ANSWER + "</s>") == encoder.encode(QUESTION, ANSWER)
    assert encoder.encode("", ANSWER + "</s>") == encoder.encode("", ANSWER)


def test_negative_control_the_appending_tokenizer_does_end_a_prompt_by_itself() -> None:
    tokenizer = appends_eos()
    assert tokenizer("Question")["input_ids"][-1] == tokenizer.eos_token_id
    assert Encoder(tokenizer, PlainTemplate(), 256).encode_prompt(QUESTION)[-1] != tokenizer.eos_token_id


# ---- chat templates -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*not a token prefix")
@pytest.mark.parametrize("chat", CHATS, ids=["eos", "eos-newline", "own-end", "date", "date-string", "reasoning"])
@pytest.mark.parametrize("make", TOKENIZERS)
def test_chat_templates_keep_the_rules(make: Callable[[], PreTrainedTokenizerFast], chat: str) -> None:
    tokenizer = make()
    tokenizer.chat_template = chat
    for template in (ChatTemplate(), ChatTemplate(system="Be brief.")):
        found = check(tokenizer, template, QUESTION, ANSWER)
        shown = tokenizer.decode(found.ids)
        assert shown.count(QUESTION) == 1 and shown.count(ANSWER) == 1
        assert shown.count("Be brief.") == (template.system is not None)
        assert shown.count("<s>user") == 1 and "<s><s>" not in shown, "the template's special tokens, and no others"
        assert tokenizer.decode(found.ids[: found.prompt_length]).rstrip().endswith(("<s>assistant", "</think>"))


def test_a_chat_turn_that_ends_in_eos_and_a_newline_is_the_one_that_ends_in_eos() -> None:
    """The newline is dropped after the end; the one after the user's turn stays."""
    encoders = [Encoder(bpe(chat), ChatTemplate(), 256) for chat in (CHAT_EOS, CHAT_EOS_NEWLINE)]
    first, second = (encoder.encode(QUESTION, ANSWER) for encoder in encoders)
    assert first.ids[first.prompt_length :] == second.ids[second.prompt_length :]


def test_a_turn_s_own_end_is_part_of_the_answer() -> None:
    tokenizer = bpe(CHAT_OWN_END)
    found = Encoder(tokenizer, ChatTemplate(), 256).encode(QUESTION, ANSWER)
    assert tokenizer.decode(found.ids[found.prompt_length :]) == ANSWER + "<end></s>"


@pytest.mark.parametrize("chat", [CHAT_DATE, CHAT_DATE_STRING])
def test_the_date_is_pinned(chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bpe(chat)
    shown = tokenizer.decode(Encoder(tokenizer, ChatTemplate(), 256).encode_prompt(QUESTION))
    assert shown.startswith("Today is 26 Jul 2024\n")
    other = Encoder(tokenizer, ChatTemplate(date="2031-12-24"), 256).encode_prompt(QUESTION)
    assert tokenizer.decode(other).startswith("Today is 24 Dec 2031\n")


def test_negative_control_left_alone_the_template_prints_today() -> None:
    messages = [{"role": "user", "content": QUESTION}]
    before = datetime.date.today()
    shown = bpe(CHAT_DATE).apply_chat_template(messages, tokenize=False)
    assert any(day.strftime("Today is %d %b %Y\n") in shown for day in (before, datetime.date.today()))


def test_chat_errors_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no chat template; use --data\.template=PlainTemplate"):
        Encoder(bpe(), ChatTemplate(), 256).encode(QUESTION, ANSWER)
    with pytest.raises(UserError, match="ISO date such as 2024-07-26, got 'today'"):
        ChatTemplate(date="today")


# ---- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "{question}", "{answer}", "{answer} {question}", "{question} {answer}.", "{question}{question}{answer}"],
)
def test_a_template_without_its_two_places_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must contain \{question\} once and end with \{answer\}"):
        PlainTemplate(text)


def test_braces_in_questions_and_answers_are_text() -> None:
    tokenizer = bpe()
    found = Encoder(tokenizer, PlainTemplate(), 256).encode("What is {answer} {0}?", "A {question} {")
    assert tokenizer.decode(found.ids) == "<s>Question: What is {answer} {0}?\nAnswer: A {question} {</s>"


# ---- length and plain text ------------------------------------------------------------------------------------------


def test_a_sequence_is_as_long_as_allowed_or_an_error_and_never_cut() -> None:
    tokenizer = bpe()
    length = len(Encoder(tokenizer, PlainTemplate(), 256).encode(QUESTION, ANSWER).ids)
    assert len(Encoder(tokenizer, PlainTemplate(), length).encode(QUESTION, ANSWER).ids) == length
    with pytest.raises(UserError, match=rf"{length} tokens, more than max_length = {length - 1}.*Where was Ada"):
        Encoder(tokenizer, PlainTemplate(), length - 1).encode(QUESTION, ANSWER)
    prompt = len(Encoder(tokenizer, PlainTemplate(), 256).encode_prompt(QUESTION))
    assert len(Encoder(tokenizer, PlainTemplate(), prompt + 1).encode_prompt(QUESTION)) == prompt
    with pytest.raises(UserError, match="leaves no room for an answer"):
        Encoder(tokenizer, PlainTemplate(), prompt).encode_prompt(QUESTION)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_plain_text_is_scored_from_its_second_token_on(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    found = Encoder(tokenizer, PlainTemplate(), 256).encode("", ANSWER)
    bos = () if make is without_bos else (1,)
    text = tuple(tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    assert found == Encoded((*bos, *text, 2), 1), "the template is not applied"


def test_text_of_no_token_at_all_is_an_error_that_can_be_read() -> None:
    encoder = Encoder(words(), PlainTemplate(), 16)
    with pytest.raises(UserError):
        encoder.encode("", " ")


def test_decoding_drops_special_tokens_and_outer_white_space() -> None:
    tokenizer = bpe()
    encoder = Encoder(tokenizer, PlainTemplate(), 256)
    assert encoder.decode(tokenizer(f"  {ANSWER}\n", add_special_tokens=True)["input_ids"] + [2]) == ANSWER
    assert encoder.decode([]) == ""
