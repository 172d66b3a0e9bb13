"""Every failure between here and the Hub names its own cause."""

import errno
import json
import os
import socket
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.hub_errors import hub_errors, reading_corpus
from visionflow_hf.modeling import VisionFlowModel


def answered(status: int, message: str = "said the server", kind=HfHubHTTPError, **more) -> HfHubHTTPError:
    return kind(message, response=SimpleNamespace(status_code=status, headers={}, request=None), **more)


def failed(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


def line_of(context, error: Exception) -> str:
    with pytest.raises(UserError) as caught, context("lab/x"):
        raise error
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("context", [hub_errors, reading_corpus])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (answered(429), "the Hub was asked too often (429): wait"),
        (answered(500), "the Hub has a fault of its own (500): try again later"),
        (answered(503), "the Hub has a fault of its own (503)"),
        (answered(413, "Payload\ntoo large"), "the Hub did not accept the request for lab/x (413): Payload too large"),
        (HFValidationError("no"), "lab/x is no name on the Hub: give ORG/NAME"),
        (failed(errno.ENOSPC, "/disk/model"), "lab/x cannot be transferred: No space left on device (/disk/model)"),
        (failed(errno.ENOENT, "/gone"), "lab/x cannot be transferred: No such file or directory (/gone)"),
        (failed(errno.EACCES, "/mine"), "lab/x cannot be transferred: Permission denied (/mine)"),
        (json.JSONDecodeError("Unterminated string", '{"a": "', 6), "the Hub's answer about lab/x is not whole"),
        (OSError("Consistency check failed"), "lab/x cannot be transferred: Consistency check failed"),
    ],
)
def test_what_is_no_question_of_rights_says_nothing_of_logging_in(context, error, cause):
    line = line_of(context, error)
    assert cause in line and "log in" not in line and "network" not in line and "no corpus" not in line


@pytest.mark.parametrize("context", [hub_errors, reading_corpus])
@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        failed(errno.ENETUNREACH),
        socket.gaierror(-2, "Name or service not known"),
        TimeoutError("timed out"),
        HTTPError("no answer"),
        OfflineModeIsEnabled("offline"),
        LocalEntryNotFoundError("not in the cache"),
    ],
)
def test_only_a_missing_connection_is_one(context, error):
    assert "the Hub cannot be reached" in line_of(context, error)


@pytest.mark.parametrize("status", [401, 403])
def test_only_missing_rights_ask_to_log_in(status):
    assert f"the Hub refused lab/x ({status}): log in with `hf auth login`" in line_of(hub_errors, answered(status))
    assert "check the name, and log in with `hf auth login`" in line_of(reading_corpus, answered(status))


@pytest.mark.parametrize("context", [hub_errors, reading_corpus])
def test_the_reason_that_the_hub_gives_is_said(context):
    assert "(403: your storage\nis full)".replace("\n", " ") in line_of(
        context, answered(403, server_message="your storage\nis full")
    )


@pytest.mark.parametrize("context", [hub_errors, reading_corpus])
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_names_its_conditions(context, status):
    line = line_of(context, answered(status, kind=GatedRepoError))
    assert "lab/x to those alone who accept its conditions: do so on its page there, and log in" in line
    assert "no corpus" not in line and "may write" not in line


def test_a_repository_that_is_not_there():
    assert "the Hub has no lab/x (404): check the name" in line_of(hub_errors, answered(404))
    line = line_of(reading_corpus, answered(404))
    assert line.startswith("lab/x is no corpus: there is no such folder, and the Hub gives none (404): check the name")


def test_an_upload_tells_what_ended_it():
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = HTTPError("Server disconnected")
    assert "the Hub cannot be reached (Server disconnected)" in line_of(hub_errors, error)
    with pytest.raises(RuntimeError, match="shapes"), hub_errors("lab/x"):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("error", [HTTPError("Server disconnected"), answered(500)])
def test_a_model_that_cannot_be_downloaded(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(VisionFlowModel, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"no model at lab/x: the Hub (cannot be reached|has a fault of its own)"):
        load_model("lab/x")
