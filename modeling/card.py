# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The card of a model that was made from another one: the other's text under a new name, without its results."""

import os
import re

from huggingface_hub import ModelCard
from transformers.utils import logging
from yaml import YAMLError

from .optional_files import optional_file

logger = logging.get_logger(__name__)

CARD = "README.md"
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
    with open(file, encoding="utf-8") as opened:
        try:
            card = ModelCard(opened.read(), ignore_metadata_errors=True)
        except (ValueError, YAMLError) as error:
            logger.warning(f"the card of {origin} cannot be read ({error}): it is not continued")
            return None
    training = card.data.to_dict().get("visionflow")
    if not isinstance(training, dict) or "model_id" not in training:
        return None
    old, known = str(training["model_id"]), config.subjects
    text = re.sub(RESULTS, lambda found: found[1] + NOT_EVALUATED + found[3], card.text, flags=re.DOTALL)
    for before in NAMED:
        text = text.replace(f'{before}{old}"', f'{before}{name}"')
    text = re.sub(SUBJECT, lambda found: found[0] if found[1] in known else f'subject="{known[0]}"', text)
    subjects = ", ".join(f"{name} ({voxels} voxels)" for name, voxels in zip(known, config.num_voxels, strict=True))
    made = (
        f"Made from `{os.path.basename(old) if os.path.isabs(old) else old}`, by more training or by other fits; its "
        f"subjects are {subjects}. What follows is about the model that it was made from.\n"
    )
    if made not in text:
        text = text.replace(TRAINING, f"{TRAINING}\n{made}", 1)
    card.text = text
    card.data.visionflow = {key: value for key, value in training.items() if key != "results"} | {"model_id": name}
    card.data.eval_results = card.data.model_name = None
    if not local:
        card.data.base_model = origin
    return str(card)


def write_card(config, folder: str, name: str | None = None, **options) -> None:
    """Write README.md into a folder that has none, or that has a draft of transformers."""
    file = os.path.join(folder, CARD)
    if os.path.isfile(file):
        with open(file, encoding="utf-8") as opened:
            there = opened.read()
        if not any(draft in there for draft in DRAFTS):
            return
    card = card_of_origin(config, name or str(folder), **options)
    if card is not None:
        with open(file, "w", encoding="utf-8") as opened:
            opened.write(card)
