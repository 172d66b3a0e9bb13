"""Faults of the Hub: connections that drop, refusals, spoiled answers, and a repository that changes meanwhile.

A model and a corpus are pushed to a Hub on the loopback interface and read from it. One answer is spoiled, or all from
one on; then the same command runs again without a fault.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from forked import Ended, run
from loopback_hub import TOKEN, LoopbackHub
from PIL import Image
from safetensors.numpy import load, save
from table import Row

MODEL, CORPUS = "lab/model", "lab/corpus"
WAYS = {
    "connection closed before the Hub has acted": lambda make: None,
    "connection closed after the Hub has acted, without an answer": lambda make: make() and None,
    "connection closed in the midst of an answer": lambda make: half(make(), whole=False),
    "429 with Retry-After": lambda make: (429, {"Retry-After": "1"}, b""),
    "500": lambda make: (500, {}, b""),
    "answer cut short, but well-formed": lambda make: half(make(), whole=True),
    "a byte of a file is another one": lambda make: with_another_byte(make()),
}
CHANGED = "the repository changes between two requests"


@dataclass
class Use:
    """What a user does with the Hub.

    Attributes:
        words: the command line.
        kind, name: of the repository that it is about.
        result: what the command gave, to be compared with that of a run without a fault.
        pushes: whether it writes to the Hub.
    """

    words: list
    kind: str
    name: str
    result: Callable[[Ended], object]
    pushes: bool = False


def hub_faults(hub: LoopbackHub, work: Path, model: Path, corpus: Path, tries: int, seed: int = 0) -> Iterator[Row]:
    """Rows of the faults of the Hub.

    Args:
        hub: its address is HF_ENDPOINT, and `work`/home HF_HOME, since before huggingface_hub was imported.
        tries: of each fault and use.
    """
    rng = np.random.default_rng(seed)
    uses, log = make_uses(work, model, corpus), work / "log"
    for use in sorted(uses, key=lambda use: not use.pushes):
        prepare_for(use, hub, work, {})
        ended = run(use.words, log, before=online)
        if ended.code:
            raise SystemExit(ended.text)
    whole = {key: repository.commits[-1][1] for key, repository in hub.repositories.items()}
    sound = {place: outcome(use, hub, work, log, whole) for place, use in enumerate(uses)}
    for fault in [*WAYS, CHANGED]:
        row = Row(f"Hub: {fault}")
        for place, use in enumerate(uses):
            if fault == CHANGED and use.pushes:
                continue
            expected, requests = sound[place]
            for number in range(tries):
                for_good = fault != CHANGED and number % 4 == 3
                moment = int(rng.integers(1, requests + 1))
                case = f"{use.words[0]} {use.name}, request {moment}{' and all that follow' if for_good else ''}"
                problems, wrong = try_once(use, hub, work, whole, expected, fault, moment, for_good)
                row.add([f"{case}: {problem}" for problem in problems], wrong=wrong)
        yield row


def try_once(use, hub, work, whole, expected, fault, moment, for_good) -> tuple[list[str], bool]:
    """What is wrong with one try, and whether a wrong result was given for a right one."""
    before = prepare_for(use, hub, work, whole)
    problems, wrong, log = [], False, work / "log"
    accepted = [expected]
    if fault == CHANGED:
        other = other_version(before)
        hub.repositories[f"{use.kind}/{use.name}"].commit(other)
        accepted.append(outcome(use, hub, work, log, whole, keep=True)[0])
        prepare_for(use, hub, work, whole)
        hub.spoil = after(moment, lambda make: change(hub, use, other) or make(), for_good=False, all_requests=True)
    else:
        hub.spoil = after(moment, WAYS[fault], for_good)
    ended = run(use.words, log, before=online)
    hub.spoil = lambda make, method, path: make()
    files = hub.repositories[f"{use.kind}/{use.name}"].commits[-1][1]
    if not ended.is_one_line:
        problems.append(f"exit code {ended.code}, {ended.text.strip()[-300:]}")
    elif ended.code == 0 and (use.result(ended) not in accepted if not use.pushes else files != expected):
        problems, wrong = [*problems, "a wrong result without an error"], True
    if use.pushes and files not in (before, expected):
        problems.append("what is on the Hub is neither the earlier nor the new")
    text = ended.text
    again = run(use.words, log, before=online)
    if again.code:
        problems.append(f"the second try ends with {again.code}, {again.text.strip()[-300:]}")
    elif not use.pushes and use.result(again) not in accepted:
        problems, wrong = [*problems, "the second try gives a wrong result"], True
    elif use.pushes and hub.repositories[f"{use.kind}/{use.name}"].commits[-1][1] != expected:
        problems.append("the second push left something else")
    if fault != CHANGED and (damaged := damaged_files(hub, use, work)):
        problems.append(f"{', '.join(damaged)} in the cache are damaged")
    if shown := places_of_token(text + again.text, hub, work):
        problems.append(f"the token is in {', '.join(shown)}")
    return problems, wrong


def make_uses(work: Path, model: Path, corpus: Path) -> list[Use]:
    picture, out = work / "picture.png", work / "out.npz"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(picture)
    encode = ["encode", MODEL, picture, "--subject", "subj01", "--output", out, "--device", "cpu"]
    return [
        Use(["push", model, MODEL], "models", MODEL, lambda ended: None, pushes=True),
        Use(["push-corpus", corpus, CORPUS], "datasets", CORPUS, lambda ended: None, pushes=True),
        Use(encode, "models", MODEL, lambda ended: np.load(out)["fmri"].tobytes()),
        Use(["inspect", CORPUS, "--json"], "datasets", CORPUS, lambda ended: ended.text[ended.text.index("{") :]),
    ]


def online() -> None:
    """This process may ask the Hub, which the others of the benchmark may not."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = False
    os.environ["HF_TOKEN"] = TOKEN


def prepare_for(use: Use, hub: LoopbackHub, work: Path, whole: dict) -> dict:
    """An empty cache, and on the Hub what was pushed, or an older state where it is to be pushed; returns that."""
    shutil.rmtree(work / "home", ignore_errors=True)
    key = f"{use.kind}/{use.name}"
    if key not in whole:
        return {}
    files = whole[key]
    if use.pushes:
        files = {path: b"earlier" if path != ".gitattributes" else data for path, data in files.items()}
    hub.blobs.clear()
    hub.repositories[key].commits.clear()
    hub.repositories[key].commit(files)
    return files


def outcome(use: Use, hub: LoopbackHub, work: Path, log: Path, whole: dict, keep: bool = False) -> tuple[object, int]:
    """What the use gives without a fault, and its number of requests."""
    if not keep:
        prepare_for(use, hub, work, whole)
    before = len(hub.requests)
    ended = run(use.words, log, before=online)
    if ended.code:
        raise SystemExit(ended.text)
    key = f"{use.kind}/{use.name}"
    return (hub.repositories[key].commits[-1][1] if use.pushes else use.result(ended)), len(hub.requests) - before


def after(moment: int, way: Callable, for_good: bool, all_requests: bool = False) -> Callable:
    """Spoil the request of this number, from 1, or the first one after it that the fault can concern."""
    seen, done = 0, False

    def spoil(make, method, path):
        nonlocal seen, done
        seen += 1
        if seen < moment or (done and not for_good):
            return make()
        right = None

        def made():
            nonlocal right
            right = make() if right is None else right
            return right

        spoiled = way(made)
        done = done or all_requests or spoiled is None or spoiled != right
        return spoiled

    return spoil


def half(answer, whole: bool):
    """An answer whose content ends in its midst; `whole`: and whose head says so."""
    status, headers, data = answer
    if len(data) < 2:
        return answer
    cut = data[: len(data) // 2]
    return status, headers | {"Content-Length": len(cut if whole else data)}, cut


def with_another_byte(answer):
    """Another byte in the midst of the content of a large file."""
    status, headers, data = answer
    if "ETag" not in headers or not data:
        return answer
    place = len(data) // 2
    return status, headers, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def other_version(files: dict[str, bytes]) -> dict[str, bytes]:
    """Another state of the repository: for a model other weights and other statistics, for a corpus another card."""
    new = dict(files)
    for path, data in files.items():
        if path.endswith(".safetensors"):
            new[path] = save({name: array * np.float32(1.25) for name, array in load(data).items()}, {"format": "pt"})
    new["README.md"] = files["README.md"] + b"\nAnother version.\n"
    return new


def change(hub: LoopbackHub, use: Use, files: dict[str, bytes]) -> None:
    hub.repositories[f"{use.kind}/{use.name}"].commit(files)


def damaged_files(hub: LoopbackHub, use: Use, work: Path) -> list[str]:
    """Files in the cache that are not what the Hub has."""
    folder = work / "home" / "hub" / f"{use.kind}--{use.name.replace('/', '--')}" / "snapshots"
    repository = hub.repositories[f"{use.kind}/{use.name}"]
    damaged = []
    for snapshot in folder.glob("*"):
        _, files = repository.at(snapshot.name) or (None, {})
        found = [file for file in snapshot.rglob("*") if file.is_file()]
        names = [file.relative_to(snapshot).as_posix() for file in found]
        damaged += [name for file, name in zip(found, names, strict=True) if file.read_bytes() != files.get(name)]
    return damaged


def places_of_token(text: str, hub: LoopbackHub, work: Path) -> list[str]:
    """Where the token stands that it must not: in what was said, in files, or on the Hub."""
    token = TOKEN.encode()
    places = ["what was said"] if TOKEN in text else []
    places += [str(file) for file in work.rglob("*") if file.is_file() and token in file.read_bytes()]
    for key, repository in hub.repositories.items():
        places += [f"{key}/{path}" for _, files in repository.commits for path, data in files.items() if token in data]
    return places
