"""The configuration that overrides give, outside Hydra's own command line."""

from collections.abc import Sequence
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from jaxq.errors import JaxqError
from jaxq.harness.config import Config, conf_dir, register
from jaxq.harness.hydra_errors import hydra_sentence
from jaxq.harness.overrides import with_model


def compose_config(overrides: Sequence[str]) -> Config:
    """The configuration of a run.

    Args:
        overrides: As on the command line: "method=best", "calib.samples=8".

    Raises:
        JaxqError: an override names no option, or has a value of the wrong type.
    """
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="jaxq"):
            return cast(Config, compose("config", overrides=with_model(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise JaxqError(hydra_sentence(error)) from error
