"""Text drawn from the model itself: when a run needs it, and the samples that it then gets."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxq.data.drawn_text import Drawing, TextDrawer, read_vocabulary
from jaxq.errors import JaxqError
from jaxq.files.model_file import hash_model, load_model
from jaxq.forms.registry import find_form
from jaxq.harness.config import Config, DataConfig
from jaxq.harness.tokenizer_files import find_tokenizer
from jaxq.methods.registry import find_method
from jaxq.progress import Progress
from jaxq.runtime.language_model import open_language_model

SELF = "self"
"""The value of ``calib.source`` and ``eval.source`` that asks for drawn text."""

SEEDS = {"calib": 0, "eval": 1}
"""Seeds of drawn text: text of the evaluation is never that of the calibration."""


def data_sources(data: DataConfig) -> list[str]:
    """Names of the options that say where data comes from, if given."""
    return [name for name in ("tokens", "text", "dataset", "source") if getattr(data, name)]


def asked_to_draw(config: Config) -> str | None:
    """The option that asks for drawn text; None where none does."""
    options = {
        "calib.source": config.calib.source == SELF and config.calib.samples,
        "calib.self_share": config.calib.self_share and config.calib.samples,
        "eval.source": config.eval.source == SELF and config.eval.samples,
    }
    return next((name for name, value in options.items() if value), None)


def draws_by_default(config: Config) -> bool:
    """True where a language model would get drawn text because its method needs data and the run names none."""
    if config.model.name == "embedded" or config.calib.samples <= 0 or data_sources(config.calib):
        return False
    if config.method.name == "auto":
        return find_form(config.form.name, config.form.accuracy_level).scaled
    return find_method(config.method.name).needs_data


def needs_data(config: Config) -> bool:
    """True where the run's method cannot do without data."""
    return config.method.name != "auto" and find_method(config.method.name).needs_data


@dataclass(eq=False)
class DrawnText:
    """Samples drawn from a model.

    Attributes:
        drawer: Draws them.
        progress: Shows the drawing.
        dry_run: Give random tokens of the same shape, and only estimate the seconds.
        seconds: About the seconds that drawing would take, in a dry run; 0 before.
    """

    drawer: TextDrawer
    progress: Progress
    dry_run: bool
    seconds: float = field(default=0.0)

    def rows(self, part: str, samples: int, length: int) -> np.ndarray:
        """Token ids [samples, length] for "calib" or "eval".

        Raises:
            JaxqError: the model cannot be run on samples of this length, or the cache cannot be written.
        """
        drawing = Drawing(length, SEEDS[part])
        if self.dry_run:
            ids, seconds = self.drawer.stand_in(drawing, samples)
            self.seconds += seconds
            return ids
        return self.drawer.rows(drawing, samples, self.progress("draw text", self.drawer.steps(drawing, samples)))


def open_drawn_text(
    config: Config, source: Path, cache: Path, progress: Progress
) -> tuple[DrawnText | None, list[str]]:
    """Samples drawn from a model, where the run asks for them or needs them; and notes for the report.

    Args:
        config: The configuration.
        source: The model's file.
        cache: The cache folder.
        progress: Shows the drawing.

    Raises:
        JaxqError: the run asks for drawn text and the model is no language model, or cannot be run.
    """
    option = asked_to_draw(config)
    if option is None and not draws_by_default(config):
        return None, []
    try:
        model = open_language_model(source)
    except JaxqError as error:
        if option is not None or needs_data(config):
            raise
        return None, [f"the model is rounded to nearest, without drawn text: {error}"]
    if isinstance(model, str):
        if option is not None:
            raise JaxqError(
                f"{option} asks for text drawn from the model, and {str(source)!r} is no language model: {model}; give "
                f"{option.partition('.')[0]}.tokens=<npz file> with inputs of the model instead"
            )
        return None, []
    vocabulary = read_vocabulary(model.vocabulary, find_tokenizer(config, "calib", source), source.parent)
    drawer = TextDrawer(model, vocabulary, hash_model(source, load_model(source)), cache / "drawn")
    return DrawnText(drawer, progress, config.dry_run), []
