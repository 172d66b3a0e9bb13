"""Model folders, here and on the Hub: config, weights, processor, the code that reads them, and the card."""

import logging
import os
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData

from visionflow_hf.cards import card_template
from visionflow_hf.errors import UserError, count
from visionflow_hf.hub_errors import hub_errors
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.results import escaped, eval_results, table, with_result

logger = logging.getLogger(__name__)

TEMPLATE = card_template("model_card.md")
PUSHED = ("*.safetensors", "*.safetensors.index.json", "config.json", "processor_config.json", "*.py")


def save_model(
    model: VisionFlowModel, processor: VisionFlowProcessor, folder: str | os.PathLike, training: dict
) -> None:
    """Write everything that a stranger needs to use the model, its card included.

    Args:
        training: what the card says of the training: `encoder`, `unit`, `n_stimuli`, `n_trials`, `steps`, `seed` and
            `data_license`. The card's head keeps it, so that the card can be written anew.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    make_card(str(folder), model.config, training).save(folder / "README.md")


def make_card(model_id: str, config: VisionFlowConfig, training: dict) -> ModelCard:
    """The card of a model that is loaded by the name `model_id`, from the template model_card.md.

    Args:
        training: as in `save_model`, and under `results` what evaluations found, see `visionflow_hf.results`.
    """
    results = training.get("results", [])
    return ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            tags=["visionflow", "fmri", "visual-cortex", "brain-decoding", "brain-encoding"],
            model_name=Path(model_id).resolve().name if results else None,
            eval_results=eval_results(results) or None,
            visionflow=training,
        ),
        template_path=str(TEMPLATE),
        model_id=model_id,
        version=version("visionflow-hf"),
        subjects=config.subjects,
        voxel_counts=dict(zip(config.subjects, config.num_voxels, strict=True)),
        image_size=config.image_size,
        num_channels=config.num_channels,
        latent_dim=config.latent_dim,
        wavelet_dim=config.wavelet_dim,
        escaped=escaped,
        table=table,
        **training,
    )


def training_of(card: Path) -> dict | None:
    """What the head of a card says of training and evaluations; None if it is no card that `save_model` wrote."""
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("visionflow")
    except (OSError, ValueError, yaml.YAMLError):
        return None


def add_result(run: str | os.PathLike, result: dict) -> None:
    """Write the card of a model folder anew, with one more result; a name on the Hub is left alone.

    Says in one line where the results are, or why they are not in the card: they are in the report in any case.
    """
    run = Path(run)
    card, partial = run / "README.md", run / ".README.md.partial"
    if not run.is_dir():
        logger.info(f"{run} is on the Hub: its card stays as it is")
        return
    training = training_of(card)
    if training is None:
        logger.warning(f"{card} is no card that `train` wrote: it stays as it is")
        return
    training["results"] = with_result(training.get("results", []), result)
    try:
        make_card(str(run), VisionFlowConfig.from_pretrained(run), training).save(partial)
        partial.replace(card)
    except OSError as error:
        partial.unlink(missing_ok=True)
        logger.warning(f"{card} cannot be written ({error.strerror}): it stays as it is")
        return
    logger.info(f"the figures are in {card}")


def load_model(name_or_path: str | os.PathLike) -> tuple[VisionFlowModel, VisionFlowProcessor]:
    """A trained model and its processor, from a folder or the Hub, with this package's code.

    Raises:
        UserError: there is none, or its weights are not those that this version's model has.
    """
    name = str(name_or_path)
    if not (Path(name) / "config.json").is_file() and (Path(name).exists() or name.count("/") != 1):
        raise UserError(
            f"{name} is no model folder (no config.json in it): give a RUN that `train` finished, or ORG/NAME"
        )
    try:
        model, found = VisionFlowModel.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
        processor = VisionFlowProcessor.from_pretrained(name)
    except OSError as error:
        remedy = " (only safetensors are read, since a pickle can run code)" if "safetensors" in str(error) else ""
        raise UserError(f"no model at {name}: {' '.join(str(error).split())}{remedy}") from error
    resized = {key for key, *_ in found["mismatched_keys"]}
    others = sorted(found["missing_keys"] | found["unexpected_keys"] | resized)
    if others:
        raise UserError(
            f"{name} does not fit this version of VisionFlow: {count(others, 'weight')} missing, unknown or of another "
            f"size; train it again, or install the version that made it"
        )
    return model, processor


def push(run: str | os.PathLike, name: str, private: bool = False) -> str:
    """Push a model folder to the Hub as one commit, its card in the new name; returns the commit's address.

    Args:
        run: folder that `train` wrote. Checkpoints and the Trainer's state stay at home.
        name: ORG/NAME; the repository is made where there is none.
        private: make a new repository private.

    Raises:
        UserError: no whole model folder, a name that is none, no right to write there, or no connection.
    """
    run = Path(run)
    card = run / "README.md"
    missing = [file for file in ("config.json", "processor_config.json", card.name) if not (run / file).is_file()]
    if missing or not any(run.glob("*.safetensors")):
        raise UserError(f"{run} is no model folder ({', '.join(missing) or 'no weights'} missing): give a finished RUN")
    training = training_of(card)
    if training is None:
        raise UserError(f"{card} is no card that `train` wrote (no `visionflow:` in its head): train the model again")
    api = HfApi()
    with hub_errors(name):
        name = api.create_repo(name, private=private or None, exist_ok=True).repo_id
        new_card = make_card(name, VisionFlowConfig.from_pretrained(run), training)
        files = {file.name: file for pattern in PUSHED for file in sorted(run.glob(pattern))}
        operations = [CommitOperationAdd(file, source) for file, source in files.items()]
        operations.append(CommitOperationAdd("README.md", str(new_card).encode()))
        return api.create_commit(name, operations, commit_message=f"VisionFlow model {name}").commit_url
