"""What can fail between here and the Hub, each as one line that names the cause and the remedy."""

import errno
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)

from visionflow_hf.errors import UserError

HUB_ERRORS = (HfHubHTTPError, HFValidationError, HTTPError, OSError, json.JSONDecodeError)
NO_CONNECTION = (HTTPError, ConnectionError, TimeoutError, socket.gaierror, LocalEntryNotFoundError)
NO_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
LOG_IN = "log in with `hf auth login`"


@contextmanager
def hub_errors(name: str, before: str = "") -> Iterator[None]:
    """Raise `UserError` where the block fails to write to the repository `name` on the Hub.

    Args:
        before: how its line begins.
    """
    try:
        yield
    except (*HUB_ERRORS, RuntimeError, ValueError) as error:
        told = error
        if str(error).startswith("Invalid metadata in README.md"):  # how huggingface_hub says that the Hub refuses it
            raise UserError(f"{before}the Hub refuses the card of {name}: {message_of(error)}") from error
        if isinstance(error, RuntimeError):  # of an upload, which wraps what went wrong
            error = error.__cause__
        if not isinstance(error, HUB_ERRORS):
            raise
        status = status_of(error)
        if isinstance(error, GatedRepoError):
            line = cause_of(name, error)
        elif status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
            answer = f" ({answer_of(error)})" if status else ""
            line = f"the Hub refused {name}{answer}: {LOG_IN}, with an account that may write there"
        elif status == 404:
            line = f"the Hub has no {name} (404): check the name, and that your account belongs to the organisation"
        else:
            line = cause_of(name, error)
        raise UserError(before + line) from told


@contextmanager
def reading_corpus(name: str) -> Iterator[None]:
    """Raise `UserError` where the block fails to read the corpus `name`, which is no folder, from the Hub."""
    try:
        yield
    except HUB_ERRORS as error:
        nothing = f"{name} is no corpus: there is no such folder, and "
        status = status_of(error)
        if isinstance(error, GatedRepoError):
            line = cause_of(name, error)
        elif status in (401, 403, 404) or isinstance(error, RepositoryNotFoundError):
            answer = (
                f"the Hub gives none ({answer_of(error) or 'not found'}): check the name, and {LOG_IN} if it is private"
            )
            line = nothing + answer
        elif is_unreachable(error):
            line = nothing + cause_of(name, error)
        else:
            line = cause_of(name, error)
        raise UserError(line) from error


def cause_of(name: str, error: Exception) -> str:
    """The line for whatever is no question of rights."""
    status = status_of(error)
    if isinstance(error, HFValidationError):
        return f"{name} is no name on the Hub: give ORG/NAME"
    if isinstance(error, GatedRepoError):
        return f"the Hub gives {name} to those alone who accept its conditions: do so on its page there, and {LOG_IN}"
    if status == 429:
        return "the Hub was asked too often (429): wait some minutes and try again"
    if status is not None and status >= 500:
        return f"the Hub has a fault of its own ({status}): try again later"
    if status is not None:
        return f"the Hub did not accept the request for {name} ({status}): {message_of(error)}"
    if is_unreachable(error):
        return f"the Hub cannot be reached ({message_of(error)}): check the network and HF_HUB_OFFLINE"
    if isinstance(error, json.JSONDecodeError):
        return f"the Hub's answer about {name} is not whole ({message_of(error)}): try again"
    if isinstance(error, OSError) and error.errno:
        file = f" ({error.filename})" if error.filename else ""
        return f"{name} cannot be transferred: {error.strerror}{file}"
    return f"{name} cannot be transferred: {message_of(error)}"


def answer_of(error: Exception) -> str:
    """The status of the Hub's answer, and with 403 the reason that it gives, such as a full storage."""
    status, reason = status_of(error), getattr(error, "server_message", None)
    return f"403: {' '.join(reason.split())[:200]}" if status == 403 and reason else str(status or "")


def status_of(error: Exception) -> int | None:
    """The HTTP status of the Hub's answer, None where it gave none."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def is_unreachable(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in NO_NETWORK:
        return True
    return isinstance(error, NO_CONNECTION) and status_of(error) is None


def message_of(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
