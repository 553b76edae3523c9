"""Writers of text: any OpenAI-compatible endpoint, or a Hugging Face model on this machine."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from sga.errors import UserError, check_numbers

Message = Mapping[str, str]
_LONGEST_WAIT = 120.0
_PASSING = {408, 409, 425, 429}
"""Status codes after which the request is sent again, as after all codes of 500 and above."""
_FINAL = {401, 403, 404}
"""Status codes that every other prompt would get as well; any other code concerns one prompt."""
_SAID_EVERY = 10.0


@dataclass(frozen=True)
class Reply:
    """Answer of a writer.

    Attributes:
        text: Text of the reply, without the prompt.
        prompt_tokens: Number of tokens read; None if the writer does not report it.
        completion_tokens: Number of tokens written; None if the writer does not report it.
        cut_off: True if the limit on tokens ended the text.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut_off: bool = False


class GaveUp(Exception):
    """Failure of one request after all its tries; other requests may succeed."""


class Refused(GaveUp):
    """Refusal of this prompt by a server that works, because it is too long, for example."""


class Writer(ABC):
    """Author of answers to a chat.

    Implementations are frozen dataclasses; their text depends on the fields without a leading underscore.
    """

    concurrency: int

    @abstractmethod
    async def write(self, messages: Sequence[Message], seed: int) -> Reply:
        """Returns one reply.

        Raises:
            GaveUp: This request failed, others may succeed; `Refused` if the server rejected its prompt.
            UserError: No request will succeed, because of a wrong address or key, for example.
        """

    async def close(self) -> None:
        """Closes connections."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Settings that the text depends on, for the hash under which an answer is cached."""


@dataclass
class _Pace:
    """Earliest moment of the next request, moment of the last message, and True once the server has been reached.

    All requests in flight share it.
    """

    not_before: float = 0.0
    said: float = -math.inf
    reached: bool = False

    async def wait(self, interval: float) -> None:
        now = time.monotonic()
        start = max(now, self.not_before)
        self.not_before = start + interval
        if start > now:
            await asyncio.sleep(start - now)

    def left(self) -> float:
        """Seconds until the next request may begin."""
        return max(0.0, self.not_before - time.monotonic())

    def pause(self, seconds: float) -> None:
        self.not_before = max(self.not_before, time.monotonic() + seconds)


@dataclass(frozen=True)
class Endpoint(Writer):
    """A server that speaks OpenAI's chat completions.

    Args:
        url: Address without ``/chat/completions``, such as ``https://api.openai.com/v1``.
        model: Name of the model at the endpoint.
        key_variable: Environment variable that holds the key; an unset one sends none. The key itself is never part of
            anything that is written or shown.
        temperature: Temperature of sampling, as the endpoint defines it; higher values give more varied text.
        max_tokens: Largest number of tokens of a reply.
        concurrency: Largest number of requests in flight.
        requests_per_minute: Largest number of requests begun in a minute; None for no limit.
        timeout: Seconds for a whole request, slow answers included.
        tries: Largest number of times that a request is sent before it counts as failed.
        backoff: Seconds before the second try, doubled for each further one, times a random number from 0.5 to 1. A
            server's Retry-After counts instead where it is longer, and holds up all requests.
        say: Function that is given a line with the reason for a wait of a second or more, once in ten seconds.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    max_tokens: int = 512
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 60.0
    tries: int = 8
    backoff: float = 1.0
    say: Callable[[str], object] = field(default=lambda words: None, repr=False, compare=False)
    _pace: _Pace = field(default_factory=_Pace, init=False, repr=False, compare=False)
    _clients: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"the endpoint's url must begin with https:// or http://, got {self._shown(self.url)!r}")
        check_numbers(above=0, concurrency=self.concurrency, timeout=self.timeout, tries=self.tries)
        check_numbers(above=0, max_tokens=self.max_tokens, requests_per_minute=self.requests_per_minute)

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}

    async def write(self, messages: Sequence[Message], seed: int) -> Reply:
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                seconds = self.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                self._say(f"{reason}; another try", max(seconds, self._pace.left()))
                await asyncio.sleep(seconds)
            elif self.requests_per_minute and self._pace.said < 0:
                self._say(f"at most {self.requests_per_minute:g} requests a minute", self._pace.left())
            await self._pace.wait(60 / self.requests_per_minute if self.requests_per_minute else 0.0)
            reply = await self._try(body)
            if isinstance(reply, Reply):
                return reply
            reason = reply
        raise GaveUp(f"{self.tries} tries, the last one: {reason}")

    async def _try(self, body: Mapping[str, Any]) -> Reply | str:
        """A reply, or the reason why there was none this time."""
        try:
            import openai
        except ImportError:
            raise UserError("--url needs the package openai: pip install 'sga-unlearning[generate]'") from None

        if not self._clients:
            self._clients.append(self._client())
        try:
            # The library's timeouts are of single reads and writes; this one is of the whole.
            headers = None if self._key else {"Authorization": openai.Omit()}
            asked = self._clients[0].chat.completions.with_raw_response.create(**body, extra_headers=headers)
            response = await asyncio.wait_for(asked, self.timeout)
        except (TimeoutError, openai.APITimeoutError):
            return f"no answer within {self.timeout:g} s"
        except openai.APIStatusError as error:
            return self._refusal(error.response)
        except openai.APIConnectionError as error:
            kind, said = type(error.__cause__).__name__, self._shown(error.__cause__)
            if kind in ("ConnectError", "UnsupportedProtocol") and not self._pace.reached:
                raise UserError(
                    f"{self._shown(self.url)} cannot be reached ({kind} {said}); check the address"
                ) from None
            return f"{kind} {said}"
        self._pace.reached = True
        try:
            value = response.parse()
            choice, usage = value.choices[0], value.usage
            if not isinstance(choice.message.content, str) or not choice.message.content.strip():
                return "an empty answer"
            return Reply(
                self._shown(choice.message.content),  # a server that echoes its input does not get the key into a file
                usage and usage.prompt_tokens,
                usage and usage.completion_tokens,
                choice.finish_reason == "length",
            )
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return f"an answer that is no chat completion{self._page(response)}"

    def _client(self) -> Any:
        """Client of the endpoint, without retries (`write` does them) and without redirects.

        A redirect would send the forget data to an address that nobody named.
        """
        import openai

        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=self.timeout,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    def _refusal(self, response: Any) -> str:
        """The reason of a status code that asks for another try.

        Raises:
            Refused: The server does not accept this prompt.
            UserError: The server will not accept any prompt.
        """
        self._pace.reached = True
        status = f"status {response.status_code}"
        if response.status_code in _PASSING or response.status_code >= 500:
            after = _retry_after(response.headers.get("retry-after"))
            self._pace.pause(after)
            asked = f", which asks for {after:g} s (Retry-After)" if after else ""
            return f"{status}{asked}{self._page(response)}"
        said = status + (self._page(response) or f": {self._shown(response.text)[:300]!r}")
        if response.status_code not in _FINAL:
            raise Refused(f"refused with {said}")
        raise UserError(
            f"{self._shown(self.url)} refuses with {said}; check url, model and the key in ${self.key_variable}"
        )

    def _page(self, response: Any) -> str:
        """Beginning of a web page that came in place of an answer, as from a proxy or an address without /v1."""
        text = self._shown(response.text).lstrip()
        return f" (a web page: {' '.join(text.split())[:80]!r})" if text.startswith("<") else ""

    def _say(self, reason: str, seconds: float) -> None:
        now = time.monotonic()
        if seconds >= 1 and now >= self._pace.said + _SAID_EVERY:
            self._pace.said = now
            self.say(f"waiting {seconds:.0f} s: {reason}")

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _shown(self, words: object) -> str:
        """Words with the key replaced by ``[key]``."""
        return str(words).replace(self._key, "[key]") if self._key else str(words)

    async def close(self) -> None:
        while self._clients:
            await self._clients.pop().close()


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, at most two minutes; it is a number or a date."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else 0.0


@dataclass(frozen=True)
class LocalModel(Writer):
    """A Hugging Face causal language model on this machine, one reply after the other.

    Args:
        model: Name of a model on the Hub, its local folder, or a run folder.
        temperature: Temperature of sampling; 0 always takes the likeliest token.
        max_tokens: Largest number of tokens of a reply.
        device: Torch device that the model runs on, such as ``cuda``.
    """

    model: str
    temperature: float = 1.0
    max_tokens: int = 512
    device: str = "cpu"
    concurrency = 1
    _loaded: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}

    async def write(self, messages: Sequence[Message], seed: int) -> Reply:
        return await asyncio.to_thread(self._write, messages, seed)

    def _write(self, messages: Sequence[Message], seed: int) -> Reply:
        import torch

        from sga.models.causality import check_causal
        from sga.models.pretrained import Pretrained

        if not self._loaded:
            described = Pretrained(self.model)
            tokenizer = described.tokenizer(())
            network = described.network(tokenizer).to(self.device).eval()  # type: ignore[arg-type]
            check_causal(network, tokenizer("a")["input_ids"] or [0])
            self._loaded.extend([tokenizer, network, described.context()])
        tokenizer, network, context = self._loaded
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")["input_ids"]
        room = min(self.max_tokens, context - ids.shape[1] if context else self.max_tokens)
        if room < 1:
            raise GaveUp(f"the prompt has {ids.shape[1]} tokens, the model takes {context}")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            written = network.generate(
                ids.to(self.device),
                attention_mask=torch.ones_like(ids).to(self.device),
                do_sample=self.temperature > 0,
                **({"temperature": self.temperature} if self.temperature > 0 else {}),
                max_new_tokens=room,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )[0, ids.shape[1] :]
        # An empty reply is a reply: the same seed would give it again, another attempt has another seed.
        said = str(tokenizer.decode(written, skip_special_tokens=True))
        return Reply(said, int(ids.shape[1]), len(written), len(written) == room)
