"""What the Hub refuses, as errors that the user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from visionflow_hf.errors import UserError

HUB_ERRORS = (HfHubHTTPError, HFValidationError, HTTPError, OSError)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Raise `UserError` where what the block asks of the repository `name` cannot be."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{name} is no name on the Hub: give ORG/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise UserError(
            f"the Hub refused {name} ({status}): log in with `hf auth login`, as somebody who may write there"
        ) from error
    except HUB_ERRORS as error:
        raise UserError(
            f"the Hub cannot be reached ({' '.join(str(error).split())}): check the network and HF_HUB_OFFLINE"
        ) from error
