"""The checkpoint folder from which a training run is resumed."""

import json
import logging
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from visionflow_hf.errors import UserError

logger = logging.getLogger(__name__)


def find_checkpoint(folders: list[Path], resume: str | None) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` means; None to begin anew.

    Args:
        resume: `auto` for the last one in the first of `folders` that has any; or a path.
    """
    if resume is None:
        return None
    if resume != "auto":
        if broken := missing_in(Path(resume)):
            raise UserError(f"{resume} is no whole checkpoint ({broken}): give another checkpoint-N folder, or auto")
        return str(resume)
    for folder in folders:
        found = [path for path in folder.glob("checkpoint-*") if is_checkpoint(path)]
        for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
            if not (broken := missing_in(path)):
                return str(path)
            logger.warning(f"{path} is passed over, since it is not whole: {broken}")
    return None


def is_checkpoint(path: Path) -> bool:
    """Whether the Trainer gives such names: `checkpoint-STEP`."""
    return path.name.startswith("checkpoint-") and path.name.removeprefix("checkpoint-").isdigit()


def refuse_other_sizes(checkpoint: str | Path, model: nn.Module) -> None:
    """Raise `UserError` where weights of the checkpoint have other shapes than those of the model."""
    weights = model.state_dict()
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(file, "pt") as kept:
            for name in weights.keys() & set(kept.keys()):
                before, now = tuple(kept.get_slice(name).get_shape()), tuple(weights[name].shape)
                if before != now:
                    raise UserError(
                        f"{checkpoint} has {name} of shape {before}, and this model of shape {now}: the voxels or the "
                        "flags have changed since, so leave out --resume_from_checkpoint and add --overwrite"
                    )


def missing_in(checkpoint: Path) -> str | None:
    """What a checkpoint folder lacks because the run was killed while it was written; None if it is whole."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if "global_step" not in state:
            return "trainer_state.json has no global_step"
    except (OSError, ValueError) as error:
        return f"trainer_state.json: {error}".splitlines()[0]
    if not any((checkpoint / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return f"no {SAFE_WEIGHTS_NAME}"
    for file in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file.name}: {error}".splitlines()[0]
    for pattern in ("optimizer.pt", "scheduler.pt", "rng_state*.pth"):
        files = sorted(checkpoint.glob(pattern))
        if not files:
            return f"no {pattern}"
        for file in files:
            if not zipfile.is_zipfile(file):
                return f"{file.name} is cut short"
    return None
