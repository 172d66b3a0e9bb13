# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Files that may lie beside a model. One that the Hub fails to give is not taken for absent."""

import os

from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers.utils import cached_file
from transformers.utils.hub import is_offline_mode


def optional_file(name: str | os.PathLike, file: str, **options) -> str | None:
    """The path of a file beside a model, in a folder or on the Hub; None where there is none.

    Args:
        options: `revision`, `token` and so on, as `cached_file` takes them.

    Raises:
        OSError: the Hub does not answer, or refuses the file. Offline, what is not in the cache counts as absent.
    """
    try:
        return cached_file(name, file, **options)
    except OSError as error:
        offline = is_offline_mode() or options.get("local_files_only")
        if error.__cause__ is None or (offline and isinstance(error.__cause__, LocalEntryNotFoundError)):
            return None
        raise


def delete_others(repo_id: str, folder: str | os.PathLike, places: list[str], **options) -> None:
    """Delete files of an earlier model from a repository to which a folder was pushed, since transformers only adds.

    Args:
        places: how the paths begin of the files that are deleted where the folder has none of that name.
        options: `revision` and `token`.
    """
    if not places:
        return
    api = HfApi()
    there = api.list_repo_files(repo_id, **options)
    gone = [file for file in there if file.startswith(tuple(places)) and not os.path.isfile(os.path.join(folder, file))]
    if gone:
        operations = [CommitOperationDelete(file) for file in gone]
        api.create_commit(repo_id, operations, commit_message="Delete files of the earlier model", **options)
