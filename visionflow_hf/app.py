"""`visionflow app`: encoding, decoding and walks between images in the browser; also the app.py of a Space.

In a Space the model is the folder `model` beside this file, or the first of `models` in README.md, and the corpus is
the first of `datasets` there.
"""

import os
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import RepoCard
from matplotlib import pyplot as plt
from PIL import Image

from visionflow_hf import inference
from visionflow_hf.corpus.responses import each_image_of, pairs_of, responses_of
from visionflow_hf.corpus.schema import Corpus, open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation import brain, pictures
from visionflow_hf.evaluation.page import picture, png
from visionflow_hf.evaluation.predictions import (
    batches_of,
    check_subjects,
    decode_fmri,
    encode_images,
    in_standard_units,
    to_array,
)
from visionflow_hf.evaluation.quality import VoxelScores
from visionflow_hf.hub import load_model
from visionflow_hf.metrics import cross_correlation
from visionflow_hf.modeling.ridge import Ridge, fit_ridge

MODEL_FOLDER = "model"  # in a Space that brings its model
SAMPLES, CANDIDATES, STEPS = 4, 5, 9
RIDGE_SIDE = 64  # px of the longer side of what ridge makes: it has a weight for each voxel and each pixel
MOST_UPLOADED = "200mb"
RESPONSE = "predicted response, standard deviations"
CSS = """
.gradio-container { --model: #0b6e99; --ridge: #d9822b; --nearest: #8a5aa8; --grey: #777; }
.dark .gradio-container { --model: #4fb6e3; --ridge: #f0a35c; --nearest: #c39be0; --grey: #9aa0a6; }
.upload img { width: 100%; height: 100%; object-fit: contain; }
.shown h3 { margin: 1rem 0 .4rem; font-size: 1rem; }
.shown figure { margin: 0; }
.shown figcaption { opacity: .8; font-size: .8rem; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)); gap: .6rem; }
.pictures.large { grid-template-columns: repeat(3, minmax(0, 14rem)); }
.pictures img { display: block; width: 100%; }
.shown img.sharp { image-rendering: pixelated; }
.shown svg { display: block; width: 100%; max-width: 34rem; height: auto; color: var(--body-text-color); }
.shown .brain { display: block; width: 100%; max-width: 46rem; }
.shown td, .shown th { padding: .25rem .4rem; text-align: right; vertical-align: top; font-size: .86rem; }
.shown td:first-child { text-align: left; }
"""


@dataclass
class HeldOut:
    """The test stimuli of one subject, and ridge regression fitted on its train stimuli.

    Attributes:
        fmri: array of shape (stimuli, voxels), in the corpus's unit, the repeats averaged.
        images: uint8 array of shape (stimuli, height, width[, 3]), of the model's size.
        latents: means of q(z, w | image), `(stimuli, latent_dim + linear_dim)`.
    """

    stimulus_ids: list[str]
    fmri: np.ndarray
    images: np.ndarray
    latents: torch.Tensor
    ridge: Ridge


@dataclass
class Decoded:
    """What one response tells. What needs a corpus is None, or empty, without one.

    Attributes:
        reconstruction, ridge, shown: uint8 arrays of shape (height, width[, 3]).
        samples: uint8 array of shape (samples, height, width[, 3]), decoded from samples of q(z | fmri).
        candidates: the most likely test stimuli, each its image, its name and how far its log-likelihood is below the
            highest.
        scores: rows of figure, model, ridge, chance; of a test stimulus only.
    """

    reconstruction: np.ndarray
    samples: np.ndarray
    ridge: np.ndarray | None
    shown: np.ndarray | None
    candidates: list[tuple[np.ndarray, str, float]]
    scores: list[tuple[str, str, str, str]]


class Demo:
    """What the page shows, as arrays.

    Args:
        run: model folder, or ORG/NAME on the Hub.
        corpus: folder, or ORG/NAME on the Hub, whose test split is shown; it also knows regions and places of voxels.
        device: such as `cpu` or `cuda`; None for a GPU where there is one.

    Raises:
        UserError: the model or the corpus cannot be used, or they do not fit each other.
    """

    def __init__(self, run: str | os.PathLike, corpus: str | os.PathLike | None = None, device: str | None = None):
        self.model, self.processor = load_model(run, device)
        self.corpus: Corpus | None = None
        self.held_out: dict[str, HeldOut] = {}
        self.subjects, self.stimuli = list(self.processor.subjects), {}
        if not self.subjects:
            raise UserError(f"{run} knows no subject: train it on some with --from_model {run}")
        height, width = self.processor.image_size
        self.size = (width, height)
        small = min(1, RIDGE_SIDE / max(self.size))
        self.ridge_size = (max(1, round(width * small)), max(1, round(height * small)))
        if corpus is not None:
            self.corpus = open_corpus(corpus)
            self.train, self.test = (pairs_of(self.corpus.splits[name]) for name in ("train", "test"))
            check_subjects(self.processor, self.corpus, self.train, self.test)
            self.subjects = sorted(set(self.test["subject"]))
            for subject, stimulus in zip(self.test["subject"], self.test["stimulus_id"], strict=True):
                self.stimuli.setdefault(subject, {})[stimulus] = None

    def stimuli_of(self, subject: str) -> list[str]:
        """The names of the subject's test stimuli; none without a corpus."""
        return list(self.stimuli.get(subject, ()))

    def held_out_of(self, subject: str) -> HeldOut:
        """The test stimuli of a subject and its ridge, which are made when they are first asked for."""
        if subject not in self.held_out:
            average, _ = responses_of(self.test, subject).averaged()
            images = self.images(self.test, average.stimulus_ids, self.size)
            _, latents = encode_images(self.model, self.processor, list(map(Image.fromarray, images)), subject)
            seen, _ = responses_of(self.train, subject).averaged()
            pixels = self.images(self.train, seen.stimulus_ids, self.ridge_size)
            pixels = torch.from_numpy(pixels.reshape(len(pixels), -1)).float()
            fmri = in_standard_units(self.model, self.processor, subject, seen.fmri).cpu()
            ridge = fit_ridge(fmri, pixels, seen.stimulus_ids)
            latents = torch.from_numpy(latents)
            self.held_out[subject] = HeldOut(average.stimulus_ids, average.fmri, images, latents, ridge)
        return self.held_out[subject]

    def images(self, split: Dataset, stimulus_ids: list[str], size: tuple[int, int]) -> np.ndarray:
        """uint8 array of shape (stimuli, height, width[, 3]); `size` is (width, height) in px."""
        batches = batches_of(each_image_of(split, stimulus_ids))
        return np.concatenate([to_array(some, self.processor, size) for some in batches])

    def encode(self, image: Image.Image, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """The predicted response (voxels,), in standard deviations from train's mean, and the image decoded back."""
        fmri, _ = encode_images(self.model, self.processor, [image], subject)
        decoded, _ = decode_fmri(self.model, self.processor, fmri, subject, self.size)
        return (fmri[0] - self.processor.fmri_mean[subject]) / self.processor.fmri_std[subject], decoded[0]

    def regions(self, subject: str) -> dict[str, np.ndarray]:
        """The places of the voxels of each region; all voxels, and where the corpus knows regions, those."""
        found = {"all voxels": np.arange(len(self.processor.fmri_mean[subject]))}
        if self.corpus is not None:
            regions: dict[str, list[int]] = {}
            for voxel, names in enumerate(self.corpus.voxels_of(subject)["roi"]):
                for name in names:
                    regions.setdefault(name, []).append(voxel)
            found |= {name: np.array(regions[name]) for name in sorted(regions)}
        return found

    def decode(self, fmri: np.ndarray, subject: str, stimulus: str | None = None, seed: int = 0) -> Decoded:
        """Decode one response.

        Args:
            fmri: array of shape (voxels,), in the corpus's unit.
            stimulus: the test stimulus that was shown, where it is known.
            seed: of the samples.
        """
        batch = self.processor(fmri=fmri[None], subject=subject).to(self.model.device)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            samples = self.model.reconstruct_image(**batch, num_samples=SAMPLES, generator=generator)[0]
        samples = to_array(self.processor.post_process_images(samples), self.processor, self.size)
        (reconstruction,), _ = decode_fmri(self.model, self.processor, fmri[None], subject, self.size)
        if subject not in self.stimuli:
            return Decoded(reconstruction, samples, None, None, [], [])
        held_out = self.held_out_of(subject)
        pixels = held_out.ridge.predict(batch["fmri"].cpu()).clamp(0, 255).round().byte().numpy()
        small = Image.fromarray(pixels.reshape(*self.ridge_size[::-1], *held_out.images.shape[3:]))
        (ridge,) = to_array([small], self.processor, self.size)
        likelihood = inference.likelihoods(self.model, self.processor, fmri[None], subject, held_out.latents)[0]
        order = np.argsort(-likelihood, kind="stable")
        candidates = [
            (held_out.images[one], held_out.stimulus_ids[one], float(likelihood[one] - likelihood[order[0]]))
            for one in order[:CANDIDATES]
        ]
        if stimulus is None:
            return Decoded(reconstruction, samples, ridge, None, candidates, [])
        own = held_out.stimulus_ids.index(stimulus)
        rank = 1 + int(np.flatnonzero(order == own)[0])
        scores = scores_of(held_out.images, own, reconstruction, ridge, rank)
        return Decoded(reconstruction, samples, ridge, held_out.images[own], candidates, scores)

    def decode_trial(self, stimulus: str, subject: str) -> Decoded:
        """Decode the subject's response to a test stimulus, its repeats averaged."""
        held_out = self.held_out_of(subject)
        return self.decode(held_out.fmri[held_out.stimulus_ids.index(stimulus)], subject, stimulus)

    def decode_file(self, file: str | os.PathLike, row: int, subject: str) -> Decoded:
        """Decode a row, from 0, of a file as `visionflow decode` takes it."""
        fmri = inference.read_fmri(Path(file))
        inference.check_voxels(fmri, Path(file).name, subject, self.processor)
        if not 0 <= row < len(fmri):
            raise UserError(f"there is no row {row} in {Path(file).name}: it has the rows 0 to {len(fmri) - 1}")
        return self.decode(fmri[row], subject)

    @torch.no_grad()
    def walk(self, first: Image.Image, second: Image.Image) -> np.ndarray:
        """Images decoded at even steps on the line from the latent of one image to that of another.

        Returns:
            uint8 array of shape (steps, height, width[, 3]).
        """
        batch = self.processor(images=[first, second], subject=self.subjects[0]).to(self.model.device)
        posterior = self.model.encode_image(batch["pixel_values"])
        along = torch.linspace(0, 1, STEPS, device=self.model.device)[:, None]
        means = posterior.learned.mean, posterior.linear.mean
        latents = [torch.lerp(mean[:1], mean[1:], along.to(mean)) for mean in means]
        return to_array(self.processor.post_process_images(self.model.decode(*latents)), self.processor, self.size)


def scores_of(
    images: np.ndarray, own: int, reconstruction: np.ndarray, ridge: np.ndarray, rank: int
) -> list[tuple[str, str, str, str]]:
    """Rows of figure, model, ridge, chance; chance is what the model's reconstruction reaches with the other images.

    Args:
        images: uint8 array of shape (stimuli, height, width[, 3]); `own` is the place of the one shown.
        rank: of the one shown, by likelihood.
    """
    similar = cross_correlation(images, np.stack([reconstruction, ridge]))  # (stimuli, 2)
    others = np.delete(similar, own, axis=0)
    rows = [("similarity to the image shown (r over pixels)", *(f"{r:.2f}" for r in similar[own]), "-")]
    if len(others):
        rows[0] = (*rows[0][:3], f"{np.nanmean(others[:, 0]):.2f}")
        less = (others < similar[own]).mean(0)
        rows.append(("other test images that are less similar", *(f"{share:.0%}" for share in less), "50%"))
        chance = f"{(len(images) + 1) / 2:g}"
        rows.append((f"rank of the image shown by likelihood, of {len(images)}", str(rank), "-", chance))
    return rows


def draw_regions(response: np.ndarray, regions: dict[str, np.ndarray]) -> plt.Figure:
    """The response of each region, or the 40 largest: median, quartiles, and 5th to 95th percentile of its voxels.

    Args:
        response: array of shape (voxels,), standardised.
        regions: the places of each region's voxels.
    """
    largest = sorted(regions, key=lambda name: -len(regions[name]))[: pictures.REGIONS]
    regions = {name: voxels for name, voxels in regions.items() if name in largest}
    figure, axis = plt.subplots(figsize=(4.2, 0.8 + 0.32 * len(regions)), layout="constrained")
    line = {"color": pictures.MODEL}
    axis.boxplot(
        [response[voxels] for voxels in regions.values()],
        orientation="horizontal",
        whis=(5, 95),
        widths=0.6,
        showfliers=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops=line | {"linewidth": 2.5},
    )
    names = [f"{pictures.shortened(name)} ({len(voxels)})" for name, voxels in regions.items()]
    axis.set(yticks=range(1, len(regions) + 1), yticklabels=names, ylim=(len(regions) + 0.6, 0.4), xlabel=RESPONSE)
    axis.axvline(0, color=pictures.GREY, linewidth=0.8, zorder=0)
    axis.tick_params(axis="y", length=0)
    return figure


def draw_brain(demo: Demo, response: np.ndarray, subject: str) -> plt.Figure | None:
    """The response on the cortical surface or in space; None where no places are known, or nilearn is missing."""
    if demo.corpus is None or find_spec("nilearn") is None:
        return None
    voxels = demo.corpus.voxels_of(subject)
    if "vertex" in voxels and voxels["vertex"].notna().all():
        names = np.array([",".join(names) for names in voxels["roi"]])
        places = {f"vertex/{subject}": voxels["vertex"].to_numpy(dtype=np.int32), f"roi/{subject}": names}
        values, _ = brain.on_surface(places, VoxelScores({subject: {"model": response}}, {}))
        if np.isfinite(values).any():
            return brain.draw_surface(values, RESPONSE, signed=True)
    places = voxels[["x", "y", "z"]]
    if places.notna().all(axis=None):
        return brain.draw_volume(places.to_numpy(dtype=np.float32), response, RESPONSE, signed=True)
    return None


def encoded_html(demo: Demo, image: Image.Image | None, subject: str) -> str:
    """What is shown of an image: the image decoded back, the predicted response by region and in the brain."""
    if image is None:
        return ""
    response, decoded = demo.encode(image, subject)
    html = pictures_html("Decoded back from the predicted response", {"decoded back": decoded}, large=True)
    with plt.rc_context(pictures.STYLE):
        svg = pictures.to_svg(draw_regions(response, demo.regions(subject)), "regions")
        drawn = draw_brain(demo, response, subject)
    html += f"""<h3>Predicted response by region</h3><figure>{svg}<figcaption id="regions-caption">Line: median of the
    voxels. Box: quartiles. Whiskers: 5th to 95th percentile. 0 is the voxel's mean over train.</figcaption></figure>"""
    if drawn is not None:
        source = png(drawn, "").source
        html += f'<h3>In the brain</h3><img class="brain" src="{source}" alt="Predicted response in the brain">'
    return html


def decoded_html(decoded: Decoded) -> str:
    """What is shown of a response."""
    known = {"image shown": decoded.shown, "reconstruction": decoded.reconstruction, "ridge regression": decoded.ridge}
    known = {name: pixels for name, pixels in known.items() if pixels is not None}
    html = pictures_html("Reconstruction", known, large=True)
    if decoded.scores:
        heads, *rows = [("", "model", "ridge", "chance"), *decoded.scores]
        head = "".join(f'<th scope="col">{name}</th>' for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        html += f"<h3>Scores</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    html += pictures_html("Samples of the posterior", {f"sample {n}": one for n, one in enumerate(decoded.samples, 1)})
    if decoded.candidates:
        likely = {f"{name}: {below:.1f}": image for image, name, below in decoded.candidates}
        html += pictures_html("Most likely test stimuli, and their log-likelihood relative to the first", likely)
    return html


def walk_html(demo: Demo, first: Image.Image | None, second: Image.Image | None) -> str:
    """The steps between two images."""
    if first is None or second is None:
        return ""
    steps = demo.walk(first, second)
    return pictures_html("Steps", {f"{place / (STEPS - 1):.0%}": one for place, one in enumerate(steps)})


def pictures_html(title: str, images: dict[str, np.ndarray], large: bool = False) -> str:
    """uint8 images (height, width[, 3]) side by side, as many as the page is wide, by caption."""
    shown = [picture(pixels, caption) for caption, pixels in images.items()]
    figures = "".join(
        f'<figure><img class="{"sharp" if one.sharp else ""}" src="{one.source}" alt="{escape(one.alt)}">'
        f"<figcaption>{escape(one.alt)}</figcaption></figure>"
        for one in shown
    )
    return f'<h3>{escape(title)}</h3><div class="pictures{" large" if large else ""}">{figures}</div>'


def page(demo: Demo, title: str):
    """The page of a model, a `gradio.Blocks`."""
    gr = gradio()

    def encode(image, subject):
        return encoded_html(demo, image, subject)

    def decode_trial(stimulus, subject):
        return "" if stimulus not in demo.stimuli_of(subject) else decoded_html(demo.decode_trial(stimulus, subject))

    def decode_file(file, row, subject):
        return "" if file is None else decoded_html(demo.decode_file(file, int(row or 0), subject))

    def walk(first, second):
        return walk_html(demo, first, second)

    def stimuli_of(subject):
        names = demo.stimuli_of(subject)
        return gr.Dropdown(names, value=names[0] if names else None)

    subject, *_ = demo.subjects
    names = demo.stimuli_of(subject)
    examples = [Image.fromarray(one) for one in demo.images(demo.test, names[:2], demo.size)] if names else []
    first, second = [*examples, None, None][:2]
    image_input = {"type": "pil", "sources": ["upload", "clipboard"], "height": 260, "elem_classes": "upload"}
    with gr.Blocks(title=f"VisionFlow: {title}", analytics_enabled=False) as made:
        gr.Markdown(f"# VisionFlow\nImages and the fMRI responses they evoke, both ways. Model: `{title}`.")
        subject = gr.Dropdown(demo.subjects, value=subject, label="Subject")
        with gr.Tab("Encode"):
            gr.Markdown("From an image to the response that the model predicts, and back to an image.")
            image = gr.Image(first, label="Image", **image_input)
            shown = gr.HTML(elem_classes="shown")
            gr.on([made.load, image.change, subject.change], encode, [image, subject], shown)
        with gr.Tab("Decode"):
            gr.Markdown("From a measured response to the image that was seen.")
            stimulus = gr.Dropdown(
                names,
                value=names[0] if names else None,
                label="Response to a test stimulus, its repeats averaged",
                visible=bool(names),
            )
            with gr.Accordion("A response of your own", open=not names):
                file = gr.File(label=".npz with the array fmri, or .npy", file_types=[".npz", ".npy"], height=120)
                row = gr.Number(0, precision=0, minimum=0, label="Row of the file, from 0")
            shown = gr.HTML(elem_classes="shown")
            subject.change(stimuli_of, subject, stimulus)
            gr.on([made.load, stimulus.change, subject.change], decode_trial, [stimulus, subject], shown)
            gr.on([file.upload, row.change], decode_file, [file, row, subject], shown)
        with gr.Tab("Walk"):
            gr.Markdown("Images decoded at even steps between the latents of two images.")
            with gr.Row():
                start = gr.Image(first, label="From", **image_input)
                end = gr.Image(second, label="To", **image_input)
            shown = gr.HTML(elem_classes="shown")
            gr.on([made.load, start.change, end.change], walk, [start, end], shown)
    return made


def gradio():
    """The library of the extra `app`."""
    try:
        import gradio
    except ImportError as error:
        raise UserError("the app needs gradio: pip install 'visionflow-hf[app]'") from error
    return gradio


def launch(
    run: str | os.PathLike,
    corpus: str | os.PathLike | None = None,
    device: str | None = None,
    port: int | None = None,
    block: bool = True,
):
    """Serve the page of a model until it is interrupted; without `block` return its `gradio.Blocks` at once.

    Raises:
        UserError: no gradio, no such model or corpus, or a port that is taken.
    """
    gr = gradio()
    made = page(Demo(run, corpus, device), title=Path(run).name if Path(run).exists() else str(run))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none fetched
    try:
        made.launch(
            server_port=port,
            show_error=True,
            theme=theme,
            css=CSS,
            max_file_size=MOST_UPLOADED,
            footer_links=["api"],
            prevent_thread_lock=not block,
        )
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}): give another with --port, or none") from error
    return made


if __name__ == "__main__":  # in a Space
    card = RepoCard.load("README.md").data.to_dict()
    launch(
        MODEL_FOLDER if Path(MODEL_FOLDER).is_dir() else card["models"][0],
        next(iter(card.get("datasets", [])), None),
    )
