"""Model folders, local and on the Hub: config, weights, processor, remote code and model card."""

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path

import torch
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError

from visionflow_hf import __version__
from visionflow_hf.cards import card_template, results_of, with_metadata, with_results
from visionflow_hf.corpus.leakage import SEEN, write_seen
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import writing
from visionflow_hf.hub_cache import file_of, whole_files
from visionflow_hf.hub_errors import cause_of, hub_errors
from visionflow_hf.metrics import LEAST_CEILING
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.card import NAMED, weights_hash
from visionflow_hf.modeling.configuration_visionflow import TAGS
from visionflow_hf.results import (
    SIMULATED,
    benchmark_results,
    escaped,
    is_simulated,
    table,
    with_model_index,
    with_result,
)

logger = logging.getLogger(__name__)

MODEL_ERRORS = (  # what transformers and the model raise on a damaged config, processor or weights
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
    *(SafetensorError, StrictDataclassError, ImportError),
)
TEMPLATE = card_template("model_card.md")
RESULTS = ".eval_results"  # a file for each benchmark of the Hub
PUSHED = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "processor_config.json"),
    *("voxels.parquet", SEEN),
    *("*.py", "requirements.txt", f"{RESULTS}/*.yaml"),
)
OF_ONE_MODEL = ("model*.safetensors", "model*.safetensors.index.json", "voxels.parquet", SEEN, f"{RESULTS}/*.yaml")


def save_model(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    folder: str | os.PathLike,
    training: dict,
    model_id: str | os.PathLike | None = None,
    seen: Collection[str] = (),
) -> None:
    """Write a model folder: config, weights, processor, remote code and a new model card.

    All files are written first, and then take their names, config.json last: a folder with a config.json holds a whole
    model.

    Args:
        training: what the card says about the training: `encoder`, `unit`, `n_stimuli`, `n_trials`, `steps`, `seed` and
            `data_license`; `base_model` and `datasets` where they have names on the Hub. The card's metadata keeps it.
        model_id: the name by which the card loads the model; `folder` without.
        seen: hashes of the images that it was trained on, by which `evaluate` finds test stimuli among them.
    """
    folder = Path(folder)
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(folder):
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            if seen:
                write_seen(partial, seen)
            make_card(str(model_id or folder), model.config, training).save(partial / "README.md")
            (folder / "config.json").unlink(missing_ok=True)
            for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
                file.replace(folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_card(model_id: str, config: VisionFlowConfig, training: dict) -> ModelCard:
    """A new model card from the template model_card.md.

    Args:
        model_id: the name or folder that the card's examples load the model from.
        training: as in `save_model`, with the results of evaluations under `results`, see `visionflow_hf.results`.
    """
    training = training | {"model_id": model_id}
    return ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="image-feature-extraction",
            license=training.get("data_license") or "unknown",
            base_model=training.get("base_model"),
            datasets=training.get("datasets"),
            tags=list(TAGS),
            visionflow=training,
        ),
        template_path=str(TEMPLATE),
        version=__version__,
        subjects=config.subjects,
        voxel_counts=dict(zip(config.subjects, config.num_voxels, strict=True)),
        image_size=config.image_size,
        num_channels=config.num_channels,
        latent_dim=config.latent_dim,
        linear_dim=config.linear_dim,
        linear_layers=config.linear_layers,
        escaped=escaped,
        table=table,
        least_ceiling=LEAST_CEILING,
        is_simulated=is_simulated,
        simulated_note=SIMULATED,
        **training,
    )


def hub_name(name: str | os.PathLike | None) -> str | None:
    """`name` where it is one on the Hub, ORG/NAME; None for a folder."""
    on_the_hub = name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not Path(name).exists()
    return str(name) if on_the_hub else None


def training_of(card: Path) -> dict | None:
    """The entry `visionflow` in the metadata of a card; None if the card is not one that `save_model` wrote."""
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("visionflow")
    except (OSError, ValueError, yaml.YAMLError):
        return None


def training_of_model(run: str | os.PathLike) -> dict:
    """The same of a model in a folder or on the Hub; empty where its card does not tell.

    Raises:
        UserError: the Hub does not give the card.
    """
    card = file_of(run, "README.md")
    return (card and training_of(card)) or {}


def add_result(run: str | os.PathLike, result: dict) -> None:
    """Add a result to the card of a model folder, or replace that of the same corpus and split.

    Results on the test split of a corpus of the Hub also go to .eval_results/, which the Hub's leaderboards read; those
    under leakage go neither there nor to `model-index`. In the card only the results in its metadata and in its results
    section change. If `run` is a name on the Hub, or if its card cannot be changed, the card stays as it is and a line
    in the log says why.
    """
    run = Path(run)
    card, partial = run / "README.md", run / ".README.md.partial"
    if not run.is_dir():
        logger.info(f"{run} is on the Hub: its card was not changed")
        return
    training = training_of(card)
    if training is None:
        logger.warning(f"{card} was not written by `visionflow train`: it was not changed")
        return
    training["results"] = with_result(training.get("results", []), result | {"weights": weights_hash(run)})
    try:
        text = card.read_bytes().decode()
        text = with_metadata(text, ("visionflow", "results"), training["results"])
        index = with_model_index(ModelCard(text).data.to_dict().get("model-index"), result, run.resolve().name)
        text = with_metadata(text, ("model-index",), index) if index else text
        new = make_card(str(run), VisionFlowConfig.from_pretrained(run), training)
        text = with_results(text, results_of(new.text))
        partial.write_bytes(text.encode())
        partial.replace(card)
        if result["split"] == "test" and hub_name(result["dataset"]):
            file = run / RESULTS / f"{result['dataset'].replace('/', '_')}.yaml"
            if result["leakage"]:
                file.unlink(missing_ok=True)
            else:
                file.parent.mkdir(exist_ok=True)
                file.write_text(yaml.safe_dump(eval_result_entries_to_yaml(benchmark_results(result)), sort_keys=False))
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning(f"{card} was not changed ({reason}): the results are in the report only")
        return
    logger.info(f"added the results to {card}")
    if result["leakage"]:
        logger.warning(f"they are not in model-index and {RESULTS}, which leaderboards read: {result['leakage']}")


def named(card: str, name: str, training: dict) -> str:
    """The text of a card with another name of the model: in the code examples, the citation and the metadata.

    Args:
        training: the entry `visionflow` of the card, which holds the name that the card has now.
    """
    old = training.get("model_id")
    if old is None:
        raise UserError("the card has no `model_id` under `visionflow:` in its metadata: train the model again")
    for before in NAMED:
        card = card.replace(f'{before}{old}"', f'{before}{name}"')
    try:
        card = with_metadata(card, ("visionflow", "model_id"), name)
    except ValueError as error:
        raise UserError(f"{error}: write the metadata one entry per line, as `train` does") from error
    index = ModelCard(card).data.to_dict().get("model-index")
    if index and index[0]["name"] == Path(old).resolve().name:
        index[0]["name"] = Path(name).name
        card = with_metadata(card, ("model-index",), index)
    return card


def load_model(
    name_or_path: str | os.PathLike, device: str | None = "cpu"
) -> tuple[VisionFlowModel, VisionFlowProcessor]:
    """A trained model and its processor, from a folder or the Hub, with this package's code.

    Args:
        device: where the model shall be, such as `cpu` or `cuda:1`; None for a GPU where there is one.

    Raises:
        UserError: there is none, its weights are not those that this version's model has, or no such device.
    """
    device = chosen_device(device)
    name = str(name_or_path)
    if not (Path(name) / "config.json").is_file() and (Path(name).exists() or name.count("/") != 1):
        raise UserError(
            f"{name} is no model folder (no config.json in it): give a RUN that `train` finished, or ORG/NAME"
        )
    try:
        with whole_files(name):
            model, found = VisionFlowModel.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
            commit = model.config._commit_hash or "main"  # of both, if the Hub changes meanwhile; none of a folder
            processor = VisionFlowProcessor.from_pretrained(name, revision=commit)
        model.config.check_widths()
    except HTTPError as error:
        raise UserError(f"no model at {name}: {cause_of(name, error)}") from error
    except MODEL_ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            file = f" ({error.filename})" if error.filename else ""
            raise UserError(f"model {name} cannot be read: {error.strerror}{file}") from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "safetensors" in reason and "fmri_statistics" not in reason:
            reason += " (only safetensors are read, since a pickle can run code)"
        raise UserError(f"no model at {name}: {reason}") from error
    resized = {key for key, *_ in found["mismatched_keys"]}
    others = sorted(found["missing_keys"] | found["unexpected_keys"] | resized)
    if others:
        raise UserError(
            f"{name} does not fit this version of VisionFlow: {count(others, 'weight')} missing, unknown or of another "
            f"size; train it again, or install the version that made it"
        )
    try:
        processor.check_subjects(model.config)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    for size in ("image_size", "num_channels"):
        ours, theirs = getattr(processor, size), getattr(model.config, size)
        if ours != theirs:
            raise UserError(
                f"{name}: {size} is {ours} in the processor, {theirs} in the model; load both from one folder"
            )
    return model.to(device), processor


def chosen_device(name: str | None) -> torch.device:
    """The device of this name, which must be usable; None for a GPU where there is one, else the CPU."""
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name} cannot be used ({reason}): give cpu, or leave --device out") from error


def model_files(run: str | os.PathLike) -> dict[str, Path]:
    """The files of a model folder that go to the Hub, by their place in it, but for the card.

    Raises:
        UserError: no whole model folder.
    """
    run = Path(run)
    needed = ("config.json", "processor_config.json", "fmri_statistics.safetensors", "README.md")
    missing = [file for file in (*needed, *shards_in(run)) if not (run / file).is_file()]
    if missing or not any(run.glob("model*.safetensors")):
        raise UserError(f"{run} is no model folder ({', '.join(missing) or 'no weights'} missing): give a finished RUN")
    return {file.relative_to(run).as_posix(): file for pattern in PUSHED for file in sorted(run.glob(pattern))}


def shards_in(run: Path) -> list[str]:
    """The files of weights that are divided, as their index names them; none where there is a single file."""
    index = run / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is damaged ({error}): train or save the model again") from error


def left_over(there: Iterable[str], files: Collection[str]) -> list[str]:
    """Weights, voxels, train images and results of an earlier model in a repository that are not pushed now."""
    return [
        file
        for file in there
        if file not in files
        and any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for pattern in OF_ONE_MODEL)
    ]


def push(run: str | os.PathLike, name: str, private: bool = False, tag: str | None = None) -> str:
    """Push a model folder to the Hub as one commit, with its card under the new name; returns the commit's address.

    Weights, voxels, train images and results of an earlier model there are deleted.

    Args:
        run: folder that `train` wrote. Checkpoints and the Trainer's state stay at home.
        name: ORG/NAME; the repository is made where there is none.
        private: make a new repository private.
        tag: a name for this commit, such as v1, which `revision=` takes.

    Raises:
        UserError: no whole model folder, a name that is none, a tag that is there already, no right to write there, or
            no connection; or it is public and shall be private.
    """
    run = Path(run)
    card = run / "README.md"
    files = model_files(run)
    training = training_of(card)
    if training is None:
        raise UserError(
            f"{card} has no entry `visionflow:` in its metadata, as `train` writes it: train the model again"
        )
    api = HfApi()
    with hub_errors(name):
        name = make_repository(api, name, private)
        if tag is not None and tag in {one.name for one in api.list_repo_refs(name).tags}:
            raise UserError(f"{name} has a tag {tag} already: give another")
        operations = [CommitOperationAdd(file, source) for file, source in files.items()]
        operations.append(CommitOperationAdd("README.md", named(card.read_bytes().decode(), name, training).encode()))
        operations += [CommitOperationDelete(file) for file in left_over(api.list_repo_files(name), files)]
        commit = api.create_commit(name, operations, commit_message=f"VisionFlow model {name}")
    if tag is not None:
        with hub_errors(name, f"{name} was pushed ({commit.commit_url}), but not tagged {tag}: "):
            api.create_tag(name, tag=tag, revision=commit.oid)
    return commit.commit_url


def prepare_push(name: str, private: bool = False) -> None:
    """Make the repository of a model where there is none, before hours of training that end in a push.

    Raises:
        UserError: as `push`, where the Hub would refuse it.
    """
    api = HfApi()
    with hub_errors(name):
        api.auth_check(make_repository(api, name, private), write=True)  # a reader, too, may "make" one that is there


def make_repository(api: HfApi, name: str, private: bool, **kind) -> str:
    """Make a repository where there is none; returns its whole name.

    Args:
        kind: `repo_type` and so on, as `HfApi.create_repo` takes them.

    Raises:
        UserError: it shall be private, and is there already in public.
    """
    name = api.create_repo(name, private=private or None, exist_ok=True, **kind).repo_id
    if private and api.repo_info(name, repo_type=kind.get("repo_type")).private is False:
        raise UserError(f"{name} is there already, in public: make it private on the Hub, or give another name")
    return name
