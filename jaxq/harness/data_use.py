"""Which data a run reads, as far as its configuration tells."""

from pathlib import Path

from jaxq.data.token_files import read_npz
from jaxq.harness.config import Config, DataConfig
from jaxq.harness.drawn_text import asked_to_draw, data_sources, draws_by_default
from jaxq.harness.text_sources import as_list


def draws(config: Config) -> bool:
    """True for a run that draws text from the model, if it is a language model."""
    return asked_to_draw(config) is not None or draws_by_default(config)


def has_calibration(config: Config) -> bool:
    """True for a run with calibration data, or that may draw some."""
    return config.calib.samples > 0 and bool(
        data_sources(config.calib) or config.model.name == "embedded" or draws_by_default(config)
    )


def has_evaluation(config: Config) -> bool:
    """True for a run with held-out data, or that may have some."""
    sources = data_sources(config.eval) or (config.eval.split and config.calib.dataset) or config.calib.tokens
    others = config.eval.holdout_fraction or config.model.name == "embedded" or draws(config)
    return config.eval.samples > 0 and bool(sources or others)


def evaluates_text(config: Config) -> bool:
    """True for a run whose held-out data is text."""
    file = config.eval.tokens or (
        config.calib.tokens
        and not data_sources(config.eval)
        and not config.eval.split
        and config.model.name != "embedded"
        and config.calib.self_share < 1  # then the evaluation reads drawn text too
    )
    return has_evaluation(config) and not file


def evaluates_dataset(config: Config) -> bool:
    """True for a run that is evaluated on a dataset."""
    own = config.eval.dataset or (config.eval.split and config.calib.dataset)
    return config.eval.samples > 0 and bool(own)


def evaluates_calibration_source(config: Config) -> bool:
    """True for a run that is evaluated on a part of what ``calib`` names: of its text, its dataset or its file.

    Raises:
        JaxqError: the file of ``calib.tokens`` cannot be read.
    """
    if config.eval.samples <= 0 or data_sources(config.eval):
        return False
    held_out = config.eval.holdout_fraction > 0 or bool(config.eval.split and config.calib.dataset)
    return held_out or bool(config.calib.tokens and "eval" in read_npz(Path(config.calib.tokens)))


def names_text(data: DataConfig) -> bool:
    """True for options that name text or a dataset."""
    return data.samples > 0 and bool(data.text or data.dataset)


def names_several(data: DataConfig) -> bool:
    """True for options that name several texts or datasets."""
    return data.samples > 0 and len(as_list(data.text) or as_list(data.dataset)) > 1
