"""Asks a model that somebody serves over the OpenAI chat completions interface. Standard library only.

Every answer is noted in a file as it comes, so that a run that stops half-way goes on without asking anything twice. The file holds hashes of
requests and the answers, neither prompts nor the key. Redirects are refused: they would carry the key to another server.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.client
import itertools
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tunescope.errors import ModelError
from tunescope.models.noted import NotedAnswers

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_KNOCK_SECONDS = 10.0
_NOT_THERE_YET = (
    408,
    429,
    502,
    503,
    504,
)  # with any other bad status it is there: not every server can list its models
_MOST_BYTES = 16 << 20  # of one answer
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer of a server.

    Attributes:
        text: what it wrote.
        cut_off: it ended because ``max_tokens`` were reached.
    """

    text: str
    cut_off: bool


class ChatEndpoint:
    """A client for ``POST {url}/chat/completions``.

    Timeouts, lost connections, and the statuses 408, 429 and 5xx are tried again, with a doubled wait each time, or after as long as the
    server asks for (at most a minute). Anything else is an error at once that names the address.

    Args:
        url: base address up to the version, for example ``http://127.0.0.1:8000/v1``.
        model: name of the model as the server knows it.
        api_key_variable: environment variable that holds the key; where it is unset or empty no key is sent.
        max_tokens: most tokens of an answer; more of them, by the server's own count, are an error.
        temperature: 0 asks for the likeliest answer.
        timeout_seconds: without anything heard from the server, per attempt.
        max_attempts: per request, the first included.
        wait_seconds: before the second attempt.
        concurrency: requests under way at once.
        more: further fields of every request, such as ``stop``.
        resume_file: JSON Lines file of the answers of `complete`; made where it does not exist, its folder must. None: nothing is noted.

    Raises:
        ModelError: the address is not http or https, holds a password, or a setting is out of range.

    Example:
        >>> endpoint = ChatEndpoint("http://127.0.0.1:8000/v1/", "qwen3")
        >>> endpoint.address
        'http://127.0.0.1:8000/v1/chat/completions'
        >>> endpoint.complete([])
        []
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str = "TUNESCOPE_API_KEY",
        max_tokens: int = 512,
        temperature: float = 0.0,
        timeout_seconds: float = 60.0,
        max_attempts: int = 5,
        wait_seconds: float = 1.0,
        concurrency: int = 4,
        more: Mapping[str, Any] | None = None,
        resume_file: Path | None = None,
    ) -> None:
        self._url = _checked_address(url)
        self.address = self._url + "/chat/completions"
        self.model = model
        self.n_asked = 0
        self._variable = api_key_variable
        self._fixed = {"model": model, "max_tokens": max_tokens, "temperature": temperature, **(more or {})}
        self._timeout = timeout_seconds
        self._attempts = max_attempts
        self._wait = wait_seconds
        self._concurrency = concurrency
        self._resume_file = resume_file
        self._stopping = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirect)
        small = min(max_tokens, max_attempts, concurrency) < 1
        if small or temperature < 0 or timeout_seconds <= 0 or wait_seconds < 0 or not model:
            raise ModelError(
                f"endpoint {self.address}: model {model!r}, max_tokens {max_tokens}, temperature {temperature}, timeout {timeout_seconds}, "
                f"attempts {max_attempts}, wait {wait_seconds}, concurrency {concurrency}: a model is needed, counts of at least 1, a timeout "
                "above 0, and no negative number"
            )

    def complete(
        self,
        prompts: Sequence[str],
        *,
        system: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Returns the answers in the order of the prompts; equal prompts are asked once, noted ones not at all.

        An answer that is cut off at ``max_tokens`` is an error.

        Args:
            prompts: one user message each.
            system: system message for all of them.
            progress: called with (done, all different) from the calling thread.

        Raises:
            ModelError: the server cannot be reached, refuses, or answers something else; answers that came before are noted.
            IntegrityError: the file of answers is damaged.
        """
        requests = [self._fixed | {"messages": _messages(prompt, system)} for prompt in prompts]
        keys = [_key(request) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        with NotedAnswers(self._resume_file) as answers:
            open_requests = {key: request for key, request in wanted.items() if key not in answers.known}
            done = len(wanted) - len(open_requests)
            for key, reply in self._ask(open_requests, whole=True):
                answers.note(key, reply.text, self.model)
                done += 1
                if progress is not None:
                    progress(done, len(wanted))
            return [answers.known[key] for key in keys]

    def replies(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> Iterator[tuple[list[int], Reply]]:
        """Asks whole chats and gives the answers as they come; equal chats are asked once. Nothing is noted: that is the caller's part.

        Args:
            chats: messages up to the point where the model answers.

        Yields:
            The indices of equal chats, and their answer; after a failure those under way are still given, then it is raised.

        Raises:
            ModelError: the server cannot be reached, refuses, or answers something else.
        """
        requests = [self._fixed | {"messages": [dict(message) for message in chat]} for chat in chats]
        places: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(_key(request), []).append(index)
        for key, reply in self._ask({key: requests[found[0]] for key, found in places.items()}):
            yield places[key], reply

    def knock(self) -> None:
        """Looks whether the server is there and takes the key, by asking for its list of models; what is in it does not matter.

        Raises:
            ModelError: it cannot be reached, or refuses the key.
        """
        timeout = min(self._timeout, _LONGEST_KNOCK_SECONDS)

        def open_the_door() -> None:
            try:
                self._send(None, f"{self._url}/models", timeout)
            except _AgainError as trouble:
                if trouble.status is None or trouble.status in _NOT_THERE_YET:
                    raise
            except _RefusedError as error:
                if error.status in (401, 403):
                    raise

        self._again(open_the_door)

    def _ask(self, requests: Mapping[str, Mapping[str, Any]], *, whole: bool = False) -> Iterator[tuple[str, Reply]]:
        """Yields answers as they come; after a failure those under way are still yielded, then it is raised.

        No more are under way, or here and not yet taken, than may be asked at once: so many, and no more, does a kill lose.
        """
        self._stopping.clear()
        failure: ModelError | None = None
        waiting, futures = iter(requests.items()), {}
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:

            def ask_next(count: int = 1) -> None:
                for key, request in itertools.islice(waiting, count):
                    futures[pool.submit(self._unless_stopped, request, whole)] = key

            ask_next(self._concurrency)
            try:
                while futures:
                    for future in concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)[0]:
                        key = futures.pop(future)
                        try:
                            reply = future.result()
                        except concurrent.futures.CancelledError:
                            continue
                        except ModelError as error:
                            failure = failure or error
                            self._stop(futures)
                            continue
                        self.n_asked += 1
                        yield key, reply
                        if failure is None:  # only now: the answer is where the caller keeps it
                            ask_next()
            finally:
                self._stop(futures)
        if failure is not None:
            raise failure

    def _stop(self, futures: Mapping[concurrent.futures.Future[Reply], str]) -> None:
        self._stopping.set()
        for future in futures:
            future.cancel()

    def _unless_stopped(self, request: Mapping[str, Any], whole: bool) -> Reply:
        """Asks nothing more once a request has failed; the thread that failed says so before it takes the next."""
        if self._stopping.is_set():
            raise concurrent.futures.CancelledError
        try:
            return self._one(request, whole)
        except ModelError:
            self._stopping.set()
            raise

    def _one(self, request: Mapping[str, Any], whole: bool) -> Reply:
        body = json.dumps(request, ensure_ascii=False).encode()
        reply = self._again(lambda: self._read(*self._send(body, self.address, self._timeout)))
        if whole and reply.cut_off:
            raise ModelError(
                f"endpoint {self.address}: an answer was cut off at max_tokens {self._fixed['max_tokens']}; raise max_tokens"
            )
        return reply

    def _again(self, attempt: Callable[[], T]) -> T:
        """Tries until it goes well, what went wrong will not pass, or all attempts are used."""
        wait = self._wait
        for number in range(1, self._attempts + 1):
            try:
                return attempt()
            except _AgainError as trouble:
                if number == self._attempts or self._stopping.is_set():
                    raise ModelError(
                        f"endpoint {self.address}: {trouble} ({number} attempts); check that the server runs, or raise timeout or attempts"
                    ) from None
                self._stopping.wait(min(max(wait, trouble.wait_seconds), _LONGEST_WAIT_SECONDS))
                wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def _send(self, body: bytes | None, address: str, timeout: float) -> tuple[bytes, str]:
        """Returns what the server answered with a good status, and the key that was sent; without a body it is only read."""
        key = os.environ.get(self._variable, "").strip()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            method = "GET" if body is None else "POST"
            request = urllib.request.Request(address, data=body, headers=headers, method=method)
            with self._opener.open(request, timeout=timeout) as reply:
                content: bytes = reply.read(_MOST_BYTES + 1)
                if reply.length and len(content) <= _MOST_BYTES:  # read(n) takes a lost connection for the end
                    raise http.client.IncompleteRead(content, reply.length)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                self._refused(error, key)
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and lost connections among them
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise _AgainError(f"no answer ({_without(str(reason), key)[:200]})") from None
        except ValueError as error:  # a key that no header can hold
            raise ModelError(
                f"endpoint {self.address}: {_without(str(error), key)[:200]}; check {self._variable}"
            ) from None
        return content, key

    def _refused(self, error: urllib.error.HTTPError, key: str) -> NoReturn:
        try:
            said = error.read(2000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        said = " ".join(_without(said, key).split())[:200]
        if error.code in (408, 429) or error.code >= 500:
            raise _AgainError(f"status {error.code} ({said})", _seconds(error.headers.get("Retry-After")), error.code)
        advice = (
            f"check the key in {self._variable}" if error.code in (401, 403) else "check address, model and settings"
        )
        raise _RefusedError(f"endpoint {self.address}: status {error.code} ({said}); {advice}", error.code)

    def _read(self, content: bytes, key: str) -> Reply:
        """Returns an answer that is exactly what it should be."""
        text, reason, tokens = None, None, None
        try:
            reply = json.loads(content.decode())
            [choice] = reply["choices"]
            reason = choice.get("finish_reason")
            tokens = (reply.get("usage") or {}).get("completion_tokens")
            text = choice["message"]["content"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        if not isinstance(text, str):
            shown = " ".join(_without(content[:2000].decode("utf-8", "replace"), key).split())[:100]
            raise ModelError(
                f"endpoint {self.address}: the answer is no chat completion ({shown!r}); check that the address is that of an OpenAI-compatible "
                "server, up to /v1"
            )
        if reason == "content_filter":
            raise ModelError(
                f"endpoint {self.address}: a filter of the server cut an answer off, so it is not the model's; turn the filter off"
            )
        most = self._fixed["max_tokens"]
        if isinstance(tokens, int) and tokens > most:
            raise ModelError(
                f"endpoint {self.address}: an answer has {tokens} tokens, and max_tokens is {most}; use a server that keeps to max_tokens"
            )
        return Reply(text, reason == "length")


class _RefusedError(ModelError):
    """A status that asking again does not change."""

    def __init__(self, problem: str, status: int) -> None:
        super().__init__(problem)
        self.status = status


@dataclasses.dataclass
class _AgainError(Exception):
    """Something that may be over after a while."""

    message: str
    wait_seconds: float = 0.0
    status: int | None = None

    def __str__(self) -> str:
        return self.message


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _checked_address(url: str) -> str:
    if "@" in url or "?" in url or "#" in url:
        raise ModelError(
            "endpoint: the address must hold no password, query or fragment; a key belongs in an environment variable"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or any(c.isspace() for c in url):
        raise ModelError(f"endpoint {url!r}: an address such as http://127.0.0.1:8000/v1 is needed")
    return url.rstrip("/").removesuffix("/chat/completions")


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _key(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _seconds(retry_after: str | None) -> float:
    """Reads a Retry-After header in seconds; a date is not waited for."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def _without(text: str, key: str) -> str:
    return text.replace(key, "<key>") if key else text
