# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The card of a model that was made from another one, or anew: the text under a new name, without the old results."""

import hashlib
import os
import re

from huggingface_hub import ModelCard
from transformers.utils import logging
from yaml import YAMLError

from .optional_files import optional_file

logger = logging.get_logger(__name__)
logger.addFilter(lambda record: record.levelno >= logging.get_verbosity())  # of transformers, under any name

CARD = "README.md"
LEADERBOARDS = ".eval_results"  # a folder beside the card, with results for the Hub's leaderboards
BLOCK = 2**24  # bytes of weights that are read at once
NAMED = ('name, revision = "', 'model="', 'note = "Model ')  # what stands before the name where the card gives it
SUBJECT = r'subject="([^"]+)"'  # in the examples
RESULTS = r"(<!-- begin results[^>]*-->\r?\n)(.*?)(\r?\n<!-- end results -->)"
NOT_EVALUATED = """
Not evaluated yet. `visionflow evaluate RUN CORPUS REPORT`, with the folder of this model as RUN, adds results here."""
TRAINING = "\n## Training\n"
DRAFTS = (  # of transformers
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub.",
    "generated automatically according to the information the Trainer had access to",
)


def card_of_origin(config, name: str, **options) -> str | None:
    """The card of a model under the name `name`, from that of the model whose weights were loaded.

    All that was written into the old card stays, but its results, which are not of these weights. `base_model` is the
    old model, where it was loaded from the Hub.

    Args:
        options: of `optional_file`, with which the model was loaded.

    Returns:
        None where no weights were loaded, or where the card there is not one of VisionFlow.
    """
    origin, commit = config._name_or_path, getattr(config, "_commit_hash", None)
    local = os.path.isdir(origin)
    if not local and origin.count("/") != 1:  # neither a folder nor a name on the Hub
        return None
    try:
        file = optional_file(origin, CARD, revision=commit or "main", **options)
    except OSError as error:
        logger.warning(f"the card of {origin} cannot be read ({error}): it is not continued")
        return None
    if file is None:
        return None
    with open(file, "rb") as opened:
        card = card_of_ours(opened.read().replace(b"\r\n", b"\n"), origin)
    if card is None:
        return None
    old, known = str(card.data.visionflow["model_id"]), config.subjects
    drop_results(card)
    text = with_name(card.text, old, name)
    text = re.sub(SUBJECT, lambda found: found[0] if not known or found[1] in known else f'subject="{known[0]}"', text)
    subjects = ", ".join(f"{name} ({voxels} voxels)" for name, voxels in zip(known, config.num_voxels, strict=True))
    made = (
        f"Made from `{os.path.basename(old) if os.path.isabs(old) else old}`, by more training or by other fits; its "
        f"subjects are {subjects}. What follows is about the model that it was made from.\n"
    )
    if made not in text:
        text = text.replace(TRAINING, f"{TRAINING}\n{made}", 1)
    card.text = text
    card.data.visionflow["model_id"] = name
    if not local:
        card.data.base_model = origin
    return str(card)


def write_card(config, folder: str, name: str | None = None, kept: bytes | None = None, **options) -> None:
    """Write README.md into a folder that has none, or that has a draft of transformers.

    A card of VisionFlow that is there loses its results where they are of other weights than those in the folder, and
    takes the name `name` where one is given. All else in it stays, and so does any other text.

    Args:
        kept: what `card_in` gave before transformers wrote its own card over it.
    """
    there = kept or card_in(folder)
    if there is None:
        card = card_of_origin(config, name or str(folder), **options)
        new = None if card is None else card.encode()
    else:
        new = updated(there, folder, name)
    if new is not None and new != card_in(folder):
        with open(os.path.join(folder, CARD), "wb") as opened:
            opened.write(new)


def card_in(folder: str | os.PathLike) -> bytes | None:
    """README.md of a folder; None where there is none, or a draft of transformers."""
    file = os.path.join(folder, CARD)
    if not os.path.isfile(file):
        return None
    with open(file, "rb") as opened:
        there = opened.read()
    return None if any(draft.encode() in there for draft in DRAFTS) else there


def updated(there: bytes, folder: str, name: str | None) -> bytes:
    """A card for the weights that its folder has now, see `write_card`; results of others leave the folder as well."""
    card = card_of_ours(there, folder)
    if card is None:
        return there
    text, old, results = there.decode(), str(card.data.visionflow["model_id"]), card.data.visionflow.get("results")
    weights = weights_hash(folder) if results else None
    if results and not all(isinstance(one, dict) and one.get("weights") == weights for one in results):
        drop_results(card)
        text = str(card)
        for file in leaderboards_in(folder):
            os.remove(os.path.join(folder, file))
    if name is not None and name != old:
        text = with_name(text, old, name)
        text = re.sub(r"^( +model_id:)[^\r\n]*", lambda found: f"{found[1]} {name}", text, count=1, flags=re.MULTILINE)
        index = rf"^(model-index:\r?\n- name:) {re.escape(os.path.basename(old))}(?=\r?$)"
        text = re.sub(index, lambda found: f"{found[1]} {os.path.basename(name)}", text, flags=re.MULTILINE)
    return text.encode()


def card_of_ours(text: bytes, origin: str) -> ModelCard | None:
    """A card of VisionFlow, by the entry `visionflow` in its metadata; None for any other text."""
    if b"visionflow:" not in text:
        return None
    try:
        card = ModelCard(text.decode(), ignore_metadata_errors=True)
    except (ValueError, YAMLError) as error:
        logger.warning(f"the card of {origin} cannot be read ({error}): it stays as it is")
        return None
    training = card.data.get("visionflow")
    return card if isinstance(training, dict) and "model_id" in training else None


def drop_results(card: ModelCard) -> None:
    """Take the results out of a card's text and metadata."""
    card.text = re.sub(RESULTS, lambda found: found[1] + NOT_EVALUATED + found[3], card.text, flags=re.DOTALL)
    card.data.visionflow = {key: value for key, value in card.data.visionflow.items() if key != "results"}
    card.data.eval_results = card.data.model_name = None


def with_name(text: str, old: str, name: str) -> str:
    """The text of a card with another name of the model in its examples and its citation."""
    for before in NAMED:
        text = text.replace(f'{before}{old}"', f'{before}{name}"')
    return text


def weights_hash(folder: str | os.PathLike) -> str:
    """SHA-256 of the weights in a model folder: the card keeps it with each result that they gave."""
    found = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        if name.startswith("model") and name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as opened:
                while block := opened.read(BLOCK):
                    found.update(block)
    return found.hexdigest()


def has_no_results(folder: str) -> bool:
    """Whether the card in a folder is one of VisionFlow that has no results."""
    card = card_of_ours(card_in(folder) or b"", folder)
    return card is not None and not card.data.visionflow.get("results")


def leaderboards_in(folder: str) -> list[str]:
    """The files with results for leaderboards, by their places in a folder."""
    there = os.path.join(folder, LEADERBOARDS)
    return [f"{LEADERBOARDS}/{name}" for name in os.listdir(there)] if os.path.isdir(there) else []
